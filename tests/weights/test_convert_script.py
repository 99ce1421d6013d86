"""The script that converts: what it writes and prints, and that it leaves nothing behind."""

import hashlib
import json
import re
import sys

import numpy as np
import pytest
import recipe
from checkpoint_states import NARROW, TEXT, assert_same, draw, resnet8, run

import si_jax
from si_jax.models import NORMALISATIONS
from si_jax.weights import convert


def test_the_script_writes_a_checkpoint_with_a_card(tmp_path, capsys):
    source, out = tmp_path / "r8.npz", tmp_path / "below" / "r8"
    np.savez(source, **resnet8())
    status, printed, err = run(
        capsys, source, "--model", "resnet8", "--out", out, "--input-size", 16, 24
    )
    assert (status, err) == (0, "")
    expected = si_jax.convert_torch("resnet8", resnet8(), input_size=(16, 24))
    for part in (
        "resnet8, 10 classes",
        f"{expected.num_parameters:,}",
        "16x24",
        "cifar10",
        str(out),
    ):
        assert part in printed
    assert "47 arrays, equal after reloading" in printed
    assert "logits" in printed
    model = si_jax.load_model(out)
    assert_same(model, expected)
    card = json.loads((out / "card.json").read_text())
    assert card["source"] == "r8.npz"
    assert card["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (card["model"], card["num_classes"], card["input_size"]) == ("resnet8", 10, [16, 24])
    assert card["normalisation"] == "cifar10"
    assert (tuple(card["mean"]), tuple(card["std"])) == NORMALISATIONS["cifar10"]
    assert card["options"]["shortcut"] == "conv"
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 24, 3), np.uint8)
    np.testing.assert_allclose(model.logits(images), expected.logits(images), rtol=1e-5)

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    status, _, err = run(capsys, source, "--model", "resnet8", "--out", out)
    assert status == 2 and "exists already" in err
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_in_python_it_is_one_call(tmp_path):
    np.savez(tmp_path / "r8.npz", **resnet8())
    converted = si_jax.convert_checkpoint("resnet8", tmp_path / "r8.npz", tmp_path / "r8")
    assert converted.path == (tmp_path / "r8").resolve()
    assert_same(si_jax.load_model(converted.path), converted.model)
    low, high = converted.logits
    assert converted.difference <= 1e-4 * max(-low, high)
    with pytest.raises(ValueError, match="exists already"):
        si_jax.convert_checkpoint("resnet8", tmp_path / "r8.npz", tmp_path / "r8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.pth", "--model", "resnet8"), "nowhere.pth is not a file"),
        ((".", "--model", "resnet8"), "is not a file"),
        (("a.npz", "--model", "resnet9"), "unknown model 'resnet9'"),
        (("a.npz", "--model", "resnet20"), "convert it as 'resnet8'"),
        (("a.npz", "--model", "resnet8", "--input-size", "0", "3"), "at least 1 pixel"),
        (("a.npz", "--model", "resnet8", "--normalisation", "x"), "must be one of cifar10"),
    ],
)
def test_wrong_arguments_of_the_script(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **resnet8())
    status, out, err = run(capsys, *arguments, "--out", "converted")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def without(*names):
    return {k: v for k, v in resnet8().items() if k not in names}


def scaled():  # each by itself is credible
    scales = {"linear.weight": 1e20, "layer3.0.bn2.weight": 1e19}
    return {k: v * scales.get(k, 1) for k, v in resnet8().items()}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("bn1.weight", "conv1.weight"), r"missing: [\s\S]*missing: "),
        (scaled(), "NaN or infinite logits"),
        (
            resnet8() | {"linear.bias": np.full(10, 3e38, np.float32)},
            "linear/bias.*weights are broken",
        ),
    ],
)
def test_weights_that_make_no_network_are_refused(state, message, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **state)
    arguments = (tmp_path / "a.npz", "--model", "resnet8", "--out", tmp_path / "b")
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "") and re.search(message, err), err
    assert not (tmp_path / "b").exists()


def test_what_does_not_read_back_is_removed(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "a.npz", **resnet8())
    other = si_jax.convert_torch("resnet8", draw(recipe.resnet34_shapes(10, (1, 1, 1), NARROW), 1))
    monkeypatch.setattr(convert, "load_model", lambda path: other)
    status, out, err = run(
        capsys, tmp_path / "a.npz", "--model", "resnet8", "--out", tmp_path / "b"
    )
    assert (status, out) == (2, "")
    assert "has been removed" in err
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    ("package", "suffix"), [("torch", ".pth"), ("safetensors", ".safetensors")]
)
def test_without_the_package_that_reads_a_file(package, suffix, tmp_path, monkeypatch, capsys):
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(TEXT)
    status, _, err = run(capsys, path, "--model", "resnet8", "--out", tmp_path / "b")
    assert status == 2
    assert f'pip install "si-jax[{package}]"' in err and err.count("\n") == 1
    assert not (tmp_path / "b").exists()
