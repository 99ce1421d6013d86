"""The notebook runs from top to bottom, here with few images."""

import os
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "tfds"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SI_JAX_LIMIT", "40")
    monkeypatch.setenv("SI_JAX_CHECKPOINT", str(tmp_path / "no network is asked.pt"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    monkeypatch.setenv("MPLBACKEND", "agg")
    data = DATA if DATA.is_dir() else tmp_path  # nothing is downloaded
    monkeypatch.setenv("SI_JAX_DATA_DIR", str(data))
    notebook = nbformat.read(ROOT / "scripts" / "colab.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "letters: 100% out-of-distribution" in text or "letters: 9" in text
    assert "published convention" in text and "digits" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
