"""Files that are no checkpoint: each ends in one sentence, and executes nothing."""

import argparse
import importlib.util
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoint_states import TEXT, resnet8, run, safetensors_bytes, tensors, torch_bytes
from pictures import npy, npz, tarred, zipped

from si_jax.weights.convert import load_state


def old_tar():
    return tarred([(part, b"\x80\x02K\x00.") for part in ("storages", "tensors", "pickle")], "w")


def scaled():  # each by itself is credible
    scales = {"linear.weight": 1e20, "layer3.0.bn2.weight": 1e19}
    return {k: v * scales.get(k, 1) for k, v in resnet8().items()}


class Harmful:
    """Unpickling it would leave a file behind."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def cut_tar():
    return torch_bytes(tensors, _use_new_zipfile_serialization=False)[:-2000]


NO_NPZ = r"a\.npz can.* be read as a \.npz file"
NO_PTH = "is no PyTorch checkpoint"
MISTAKES = {  # file's name, its bytes, what the message must say
    "text npz": ("a.npz", lambda: TEXT, NO_NPZ),
    "npy": ("a.npz", lambda: npy(np.zeros(3)), NO_NPZ),
    "zip npz": ("a.npz", lambda: zipped([("a", "text")]), NO_NPZ),
    "bad npy in npz": ("a.npz", lambda: npz(a=b"text"), NO_NPZ),
    "objects": ("a.npz", lambda: npz(a=np.array([{}], object)), NO_NPZ),
    "cut npz": ("a.npz", lambda: npz(**resnet8())[:-100], NO_NPZ),
    "empty npz": ("a.npz", npz, "holds no state dict"),
    "scaled": ("a.npz", lambda: npz(**scaled()), "NaN or infinite logits"),
    "huge": (
        "a.npz",
        lambda: npz(**resnet8() | {"linear.bias": np.full(10, 3e38, np.float32)}),
        "linear/bias.*weights are broken",
    ),
    "text suffix": ("a.txt", lambda: TEXT, r"must end in one of.*\.npz.*\.pth"),
    "text safetensors": ("a.safetensors", lambda: TEXT, "is no safetensors file"),
    "zip safetensors": ("a.safetensors", lambda: zipped([("a", "text")]), "is no safetensors file"),
    "cut safetensors": ("a.safetensors", lambda: safetensors_bytes(resnet8())[:-9], "cut short"),
    "no tensors": ("a.safetensors", lambda: safetensors_bytes({}), "holds no state dict"),
    "text pth": ("a.pth", lambda: torch_bytes(tensors) and TEXT, NO_PTH),
    "empty pth": ("a.pth", lambda: torch_bytes(tensors) and b"", NO_PTH),
    "zip pth": ("a.pth", lambda: torch_bytes(tensors) and zipped([("a", "x")]), NO_PTH),
    "npz as pth": ("a.pth", lambda: torch_bytes(tensors) and npz(a=np.ones(2)), NO_PTH),
    "cut pth": ("a.pth", lambda: torch_bytes(tensors)[:-2000], "or is damaged or cut short"),
    "cut tar": ("a.tar", cut_tar, "or is damaged or cut short"),
    "old tar": (
        "a.pth.tar",
        lambda: torch_bytes(tensors) and old_tar(),
        "old tar format.*save it again with a newer PyTorch",
    ),
    "tensor": ("a.pt", lambda: torch_bytes(lambda torch: torch.ones(3)), "holds no state dict"),
    "list": ("a.pt", lambda: torch_bytes(lambda torch: [tensors(torch)]), "holds no state dict"),
    "no weights": ("a.pt", lambda: torch_bytes(lambda torch: {"model": {"a": 1}}), "no state dict"),
    "module": (
        "a.pth",
        lambda: torch_bytes(lambda torch: torch.nn.Linear(2, 2)),
        r"Python object \(torch\.nn\..*Linear\).*save the state dict alone",
    ),
    "arguments": (
        "a.th",
        lambda: torch_bytes(lambda torch: {"model": tensors(torch), "a": argparse.Namespace()}),
        r"Python object \(argparse\.Namespace\)",
    ),
    "harmful": ("a.pth", lambda: torch_bytes(lambda torch: Harmful()), r"Python object \(.*mkdir"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(mistake, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, content, message = MISTAKES[mistake]
    Path(name).write_bytes(content())
    status, out, err = run(capsys, name, "--model", "resnet8", "--out", "below/converted")
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and re.search(message, err), err
    assert err.count("\n") == 1 and err.endswith("\n")
    assert "weights_only" not in err and "allow_pickle" not in err
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_damaged_bytes_raise_nothing_else(tmp_path):
    """Whichever byte is damaged, a file is read or refused."""
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2)}
    compressed = io.BytesIO()
    np.savez_compressed(compressed, **arrays)
    files = {"a.npz": npz(**arrays), "b.npz": compressed.getvalue()}
    if importlib.util.find_spec("safetensors"):
        files["a.safetensors"] = safetensors_bytes(arrays)
    if importlib.util.find_spec("torch"):
        for name, is_new in (("a.pth", True), ("b.pth", False)):
            files[name] = torch_bytes(
                lambda torch: {k: torch.from_numpy(v) for k, v in arrays.items()},
                _use_new_zipfile_serialization=is_new,
            )
    rng = np.random.default_rng(0)
    refused = 0
    for name, content in files.items():
        path = tmp_path / name
        for _ in range(150):
            damaged = np.frombuffer(content, np.uint8).copy()
            where = rng.integers(0, len(damaged), rng.integers(1, 4))
            damaged[where] = rng.integers(0, 256, where.shape)
            path.write_bytes(damaged[: None if rng.random() < 0.8 else where[0]].tobytes())
            try:
                load_state(path, None, [])
            except ValueError:
                refused += 1
    assert refused > 0
