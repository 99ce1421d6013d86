"""The comparison with pytorch-ood, which is run by hand (`scripts/compare_published.py`)."""

import importlib.util
import sys
from pathlib import Path

import pytest

from si_jax.detectors import DETECTORS

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_published.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("compare_published", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notes_are_of_detectors(script):
    assert set(script.NOTES) <= set(DETECTORS)


def test_without_pytorch_ood_it_says_what_to_install(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_ood", None)
    with pytest.raises(ValueError, match='pip install "pytorch-ood"'):
        script.main([])
