"""Small checkpoints of every layout, as arrays and as bytes, for the tests of the converter."""

import functools
import io

import jax
import numpy as np
import pytest
import recipe

import si_jax
from si_jax import cli
from si_jax.commands import convert as script
from si_jax.models import Architecture, bit

NARROW = (16, 32, 64)
TEXT = b"This is a text file.\nIt has two lines.\n"
TINY_BIT = Architecture(
    bit.FAMILY, 1000, (32, 32), "half", {"units": (1, 2, 1, 1), "width_factor": 1}
)
"""A BiT with five units, so that the tests of its names are quick."""


def draw(shapes, seed=0):
    """A state dict of random arrays: name -> array."""
    return {key: recipe._draw(key, shape, seed) for key, shape in shapes.items()}


def resnet8(classes=10, prefix=""):
    state = _resnet8(classes)
    return {f"{prefix}{key}": value for key, value in state.items()}


@functools.cache
def _resnet8(classes):
    return draw(recipe.resnet34_shapes(classes, (1, 1, 1), NARROW))


@functools.cache
def tiny_bit(classes=7):
    return draw(recipe.bit_shapes(classes, (1, 2, 1, 1), prefix=""))


def google(state):
    """A BiT state dict as Google's `.npz` files have it: HWIO, slashes, gamma and beta."""
    found = {}
    for key, value in state.items():
        *module, leaf = key.split(".")
        if module[0] == "root":
            name = "root_block/standardized_conv2d/kernel"
        elif module[0] == "head":
            name = "head/conv2d/" + {"weight": "kernel", "bias": "bias"}[leaf]
        elif module[0] == "before_head":
            name = "group_norm/" + {"weight": "gamma", "bias": "beta"}[leaf]
        else:
            _, block, unit, layer = module
            where = "a/proj" if layer == "downsample" else " abc"[int(layer[-1])]
            kind = "group_norm" if layer.startswith("gn") else "standardized_conv2d"
            names = {"weight": "gamma", "bias": "beta"} if "gn" in layer else {"weight": "kernel"}
            name = f"{block}/{unit}/{where}/{kind}/{names[leaf]}"
        found[f"resnet/{name}"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return found


def assert_same(*two):
    """Two models' variables, or two trees of arrays, are equal to the bit."""
    first, second = (dict(x.variables) if isinstance(x, si_jax.Model) else x for x in two)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def run(capsys, *arguments):
    """Exit status, standard output and standard error of the script."""
    status = 0
    try:
        cli.run(lambda: script.main([str(a) for a in arguments]))
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def safetensors_bytes(state):
    return pytest.importorskip("safetensors.numpy", reason="it is not installed").save(state)


def torch_bytes(content, **options):
    """What PyTorch writes of `content(torch)`."""
    torch = pytest.importorskip("torch", reason="PyTorch writes its own checkpoint files")
    buffer = io.BytesIO()
    torch.save(content(torch), buffer, **options)
    return buffer.getvalue()


def tensors(torch, **more):
    return {k: torch.from_numpy(np.asarray(v)) for k, v in resnet8().items()} | more
