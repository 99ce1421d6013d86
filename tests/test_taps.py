"""The taps that a family of networks declares, and an architecture that is added in one place."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import si_jax
from si_jax import taps
from si_jax.models import ARCHITECTURES, Architecture, family_of
from si_jax.models.family import Family, IfPresent, Layout


class Mine(nn.Module):
    num_classes: int
    widths: tuple[int, ...] = (4, 6)

    @nn.compact
    def __call__(self, x, train: bool = False):
        for i, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), strides=2, name=f"conv{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name=f"norm{i}")(x))
        return nn.Dense(self.num_classes, name="out")(jnp.mean(x, axis=(1, 2)))


def mine_taps(module):
    norms = ("norm*", IfPresent("extra*"))
    roles = dict.fromkeys(("si-z", "gaia-z", "inner", "si-c", "si-c-inner"), norms)
    return {**roles, "outer": ("(features)",), "inner:last": (f"norm{len(module.widths) - 1}",)}


FAMILY = Family(
    title="network of mine",
    build=Mine,
    head="out",
    taps=mine_taps,
    stages=lambda module: tuple(f"norm{i}" for i in range(len(module.widths))),
    layouts=(
        Layout(
            block=r"norm\d+\.",
            modules=(),
            head="out.weight",
            infer=lambda shapes: {
                "widths": tuple(shapes[k][0] for k in sorted(shapes) if k.startswith("conv")
                                and k.endswith("weight"))
            },
        ),
    ),
)  # fmt: skip


@pytest.fixture
def mine(monkeypatch):
    row = Architecture(FAMILY, 5, (8, 8), "half", {"widths": (4, 6)})
    monkeypatch.setitem(ARCHITECTURES, "mine", row)


def test_one_declaration_serves_taps_stages_checkpoints_and_the_converter(mine, tmp_path):
    model = si_jax.build_model("mine", 3, seed=1)
    assert family_of(model.module) is FAMILY
    assert taps.default_taps(model, "si-z") == ("norm0", "norm1")
    assert taps.default_taps(model, "inner", "last") == ("norm1",)
    assert taps.default_taps(model, "outer") == ("(features)",)
    assert si_jax.make_detector("rankfeat", model, stages=1).settings["taps"] == ["norm1"]
    loaded = si_jax.load_model(si_jax.save_checkpoint(tmp_path / "mine", model))
    params, stats = model.variables["params"], model.variables["batch_stats"]
    state = {}
    for i in range(2):
        state[f"conv{i}.weight"] = np.transpose(params[f"conv{i}"]["kernel"], (3, 2, 0, 1))
        state[f"conv{i}.bias"] = params[f"conv{i}"]["bias"]
        state[f"norm{i}.weight"], state[f"norm{i}.bias"] = (
            params[f"norm{i}"][x] for x in ("scale", "bias")
        )
        for x in ("mean", "var"):
            state[f"norm{i}.running_{x}"] = stats[f"norm{i}"][x]
    state["out.weight"], state["out.bias"] = params["out"]["kernel"].T, params["out"]["bias"]
    converted = si_jax.convert_torch("mine", state)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    for other in (loaded, converted):
        np.testing.assert_array_equal(other.logits(images), model.logits(images))


def test_a_pattern_that_matches_nothing_is_an_error_unless_it_may(mine, monkeypatch):
    model = si_jax.build_model("mine", 3)
    misspelt = dataclasses.replace(FAMILY, taps=lambda module: {"si-z": ("norm*", "nrom*")})
    monkeypatch.setitem(ARCHITECTURES, "mine", Architecture(misspelt, 5, (8, 8), "half"))
    with pytest.raises(ValueError, match=r"nothing in the network matches 'nrom\*'"):
        taps.default_taps(model, "si-z")
