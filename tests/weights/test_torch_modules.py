"""PyTorch networks by their names, in the library and on the command line."""

import json
import sys
import types

import numpy as np
import pytest
from pictures import noise, put

import si_jax
from si_jax import commands
from si_jax.evaluation import results
from si_jax.reporting import html
from si_jax.weights.torch_modules import torch_model

torch = pytest.importorskip("torch")
pytest.importorskip("torchax")

CODE = """
from torch import nn


def make(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )


def wider():
    return make(9)
"""
SIZE = {"input_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
OPTIONS = ["--input-size", "32", "--mean", *["0.5"] * 3, "--std", *["0.25"] * 3]
IMAGES = noise(24, 32, 32, 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of networks, a state dict and images; the working directory."""
    monkeypatch.chdir(tmp_path)
    name = f"nets_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(CODE)
    space = {}
    exec(CODE, space)
    network = space["make"]()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    put(tmp_path / "images", IMAGES)
    return name, network.eval()


def logits(network, images=IMAGES):
    x = torch.from_numpy((images / np.float32(255) - np.float32(0.5)) / np.float32(0.25))
    with torch.no_grad():
        return network(x.permute(0, 3, 1, 2)).numpy()


def test_a_function_and_a_state_dict(folder):
    name, network = folder
    model = torch_model(f"{name}:make", "net.pth", **SIZE)
    np.testing.assert_allclose(model.logits(IMAGES), logits(network), atol=1e-5)
    assert model.name == f"{name}:make" and model.card["source"] == "net.pth"
    mistakes = {
        ("nets", None): "must be MODULE:FUNCTION of a Python module, timm:NAME or transformers:",
        (f"{name}:other", None): "has no attribute 'other'",
        ("no_such_module:make", None): "No module named 'no_such_module'",
        (f"{name}:wider", "net.pth"): "net.pth holds weights of another network: .*size mismatch",
    }
    for (what, file), said in mistakes.items():
        with pytest.raises(ValueError, match=said) as info:
            torch_model(what, file, **SIZE)
        assert "\n" not in str(info.value)
    with pytest.raises(ValueError, match=r"does not say .* give input_size and mean and std"):
        torch_model(f"{name}:make")


def test_transformers_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=32, patch_size=8, id2label={0: "cat", 1: "dog", 2: "owl"},
    )  # fmt: skip
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "vit")
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3}
    processor |= {"image_std": [0.25] * 3, "image_processor_type": "ViTImageProcessor"}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    model = torch_model(f"transformers:{tmp_path / 'vit'}")
    assert model.input_size == (32, 32) and model.card["classes"] == ["cat", "dog", "owl"]
    expected = logits(lambda x: network(x).logits)
    np.testing.assert_allclose(model.logits(IMAGES), expected, atol=1e-5)
    with pytest.raises(ValueError, match="transformers has no classifier"):
        torch_model(f"transformers:{tmp_path}")


def test_timms_configuration_says_how_images_enter(folder, monkeypatch):
    _, network = folder
    config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 0.875}
    timm = types.SimpleNamespace(
        create_model=lambda name, pretrained: network,
        data=types.SimpleNamespace(resolve_model_data_config=lambda network: config),
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    model = torch_model("timm:net")
    assert model.card["preprocessing"] == {"resize": 36, "crop": [32, 32]}
    np.testing.assert_allclose(model.logits(IMAGES), logits(network), atol=1e-5)


def test_from_calibration_to_verdicts_on_the_command_line(folder, capsys):
    name, _ = folder
    called = ["--torch", f"{name}:make"]
    line = ["calibrate", "net.pth", *called, *OPTIONS, "--detector", "energy", "--images", "images"]
    commands.dispatch([*line, "--out", "saved"])
    commands.dispatch(["predict", "saved", *called, "images/0.png"])
    assert "1 images: " in capsys.readouterr().err
    with pytest.raises(ValueError, match="of a network whose code is not saved with it"):
        commands.dispatch(["predict", "saved", "images/0.png"])
    with pytest.raises(ValueError, match="no network is named: give CHECKPOINT, or --torch NETW"):
        commands.dispatch(["calibrate", "--images", "images", "--out", "other"])
    model = torch_model(f"{name}:make", "net.pth", **SIZE)
    loaded = si_jax.load_detector("saved", model=model)
    expected = np.log(np.exp(np.float64(model.logits(IMAGES))).sum(1))
    np.testing.assert_allclose(loaded.score(IMAGES), expected, rtol=1e-5)


def test_an_evaluation_on_the_command_line(folder, capsys, monkeypatch):
    monkeypatch.setattr(results, "intervals", lambda job, arrays: {})
    monkeypatch.setattr(html, "write", lambda run, directory: directory / "report.html")
    name, _ = folder
    line = ["evaluate", "--torch", f"{name}:make", "--checkpoint", "net.pth", *OPTIONS]
    commands.dispatch([*line, "--detectors", "msp", "--limit", "20", "--out", "results"])
    assert "msp" in capsys.readouterr().out
