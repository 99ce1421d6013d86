import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from si_jax.evaluation import speed

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"
spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def test_data(tmp_path, capsys):
    out = tmp_path / "figures.json"
    benchmark.main(["data", "--limit", "8", "--repeats", "1", "--workers", "2", "--out", str(out)])
    printed = capsys.readouterr().out
    sources = json.loads(out.read_text())["sources"]
    assert [row["images"] for row in sources] == [8] * 4
    for row in sources:
        assert row["source"] in printed
        assert len(row["images_per_second"]) == 1
        assert row["images_per_second"][0] > 0


def test_data_of_a_folder(tmp_path, capsys):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    benchmark.main(["data", "--folder", str(tmp_path), "--limit", "8", "--repeats", "1"])
    assert f"folder {tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["data", "--repeats", "0"], "at least one"),
        (["data", "--size", "huge"], "published small"),
        (["data", "--folder", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["data", "--data-dir", "{empty}"], "holds none of cifar10"),
        (["engines", "--model", "resnet7"], "resnet20"),
        (["engines", "--batch-size", "0"], r"batch_size \(=0\)"),
    ],
)
def test_mistakes(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        benchmark.main([word.format(empty=tmp_path) for word in given])


def test_engines(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.0)
    timed = {name: speed.TIMED[name] for name in ("energy", "si-c-forward")}
    monkeypatch.setattr(speed, "TIMED", timed)
    out = tmp_path / "figures.json"
    given = ["--model", "resnet8", "--batch-size", "2", "--repeats", "2", "--out", str(out)]
    benchmark.main(["engines", *given])
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == ["forward pass", *timed]
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["seconds_per_image"] > 0
        assert row["memory_bytes"] > 100_000
    assert "a forward pass takes" in capsys.readouterr().out


def test_random_weights_have_the_shapes_of_fresh_ones():
    model = speed.random_model("resnet8")
    expected = jax.eval_shape(
        model.module.init, jax.random.key(0), np.zeros((1, *model.image_shape), np.float32)
    )
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.variables)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), expected)
    logits = model.logits(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))
    assert np.isfinite(logits).all()
    assert logits.std() > 0
