"""Taps by path, glob and predicate, on our networks and on one that is not ours."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn
from small_networks import written

import si_jax
from si_jax import activation, splitting, taps
from si_jax.models import architecture, family_of
from si_jax.models.family import IfPresent
from si_jax.weights.checkpoint import abstract_variables


@pytest.fixture(scope="module")
def other():
    """Not ours: LayerNorm, a module that is called twice, another name for the head."""

    def network(x):
        x = nn.Conv(6, (3, 3))(x)
        x = nn.relu(nn.LayerNorm()(x))
        twice = nn.Dense(6, name="twice")
        x = nn.relu(twice(nn.relu(twice(x))))
        x = nn.Sequential([nn.Dense(7), nn.gelu, nn.LayerNorm(name="late")], name="mlp")(x)
        return nn.Dense(3, name="classify")(x.mean((1, 2)))

    return written(network, head="classify")


def test_calls_are_in_the_order_in_which_they_end(other):
    paths = [call.path for call in other.calls]
    assert paths[:4] == ["Conv_0", "LayerNorm_0", "twice", "twice#1"]
    assert paths[-2:] == ["mlp", "classify"]
    calls = {call.path: call for call in other.calls}
    assert calls["twice#1"].shape == (8, 8, 6) and calls["classify"].shape == (3,)
    assert not calls["mlp"].leaf


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, ("LayerNorm_0", "late")),
        ("Conv_0", ("Conv_0",)),
        ("twice*", ("twice", "twice#1")),
        (["twice#1", "LayerNorm_0"], ("LayerNorm_0", "twice#1")),
        (lambda module: isinstance(module, nn.Conv), ("Conv_0",)),
    ],
)
def test_taps_are_the_norms_or_what_is_asked_for(other, asked, expected):
    assert taps.select(other, asked) == expected
    assert taps.default_taps(other, "si-z") == taps.select(other)
    assert taps.default_taps(other, "outer") == (splitting.FEATURES,)


def test_what_matches_nothing_is_an_error(other):
    with pytest.raises(ValueError, match=r"nothing.*'nowhere'.*Conv_0"):
        taps.select(other, ["Conv_0", "nowhere"])
    with pytest.raises(ValueError, match="predicate"):
        taps.select(other, lambda module: False)


def test_outputs_are_recorded_and_edits_change_the_rest(other):
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    names = [call.path for call in other.calls]
    plain = splitting.forward(other, other.variables, x, record=names)
    edited = splitting.forward(
        other, other.variables, x, record=["twice#1"], edit={"twice#1": lambda z: z + 1}
    )
    np.testing.assert_array_equal(edited.outputs["twice#1"], plain.outputs["twice#1"] + 1)
    assert not np.allclose(edited.logits, plain.logits)
    head = other.variables["params"]["classify"]
    given = plain.features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(given, plain.logits, atol=1e-6)


EXPECTED = {  # the table of method, role by role: network -> role -> number of taps, first, last
    "resnet34": {
        "si-z": (36, "conv1", "layer4_2/bn2"),
        "gaia-z": (36, "bn1", "layer4_2/bn2"),
        "inner": (20, "layer3_0/bn1", "layer4_2/bn2"),
        "outer": (1, "layer4_2", "layer4_2"),
        "si-c": (36, "conv1", "layer4_2/bn2"),
        "si-c-inner": (20, "layer3_0/bn1", "layer4_2/bn2"),
    },
    "wrn_40_2": {
        "si-z": (38, "block1_0/bn1", "pool"),
        "gaia-z": (37, "block1_0/bn1", "bn1"),
        "inner": (37, "block1_0/bn1", "bn1"),
        "outer": (1, "pool", "pool"),
        "si-c": (37, "block1_0/bn1", "bn1"),
        "si-c-inner": (25, "block2_0/bn1", "bn1"),
    },
    "bit_r101x1": {
        "si-z": (10, "block4_unit01/gn1", "before_head"),
        "gaia-z": (10, "block4_unit01/gn1", "before_head"),
        "inner": (9, "block4_unit01/gn1", "block4_unit03/gn3"),
        "outer": (1, "before_head", "before_head"),
        "si-c": (10, "block4_unit01/gn1", "before_head/gn"),
        "si-c-inner": (9, "block4_unit01/gn1", "block4_unit03/gn3"),
    },
    "imagenet_resnet50": {  # no tap in front of the max-pool
        "si-z": (52, "layer1_0/bn1", "layer4_2/bn3"),
        "inner": (29, "layer3_0/bn1", "layer4_2/bn3"),
    },
    "imagenet_vit_b16": {
        "si-z": (25, "layer_00/ln_1", "ln"),
        "inner": (12, "layer_06/ln_1", "layer_11/ln_2"),
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_published_taps(name):
    arch = architecture(name)
    size = (64, 64) if name.startswith("bit") else arch.input_size
    module = arch.family.build(num_classes=10, **arch.options)
    shapes = abstract_variables(module, size)
    model = si_jax.build_model(name, 10, variables=shapes, input_size=size)
    for role, (count, first, last) in EXPECTED[name].items():
        found = taps.default_taps(model, role)
        assert (len(found), found[0], found[-1]) == (count, first, last), role
        if role == "si-c":
            assert not activation.without_activation(model, found)  # no gradient is needed
    if name == "resnet34":
        s = taps.default_taps(model, "si-z")
        assert s[7:10] == ("layer2_0/bn1", "layer2_0/bn2", "layer2_0/shortcut_bn")
        assert "bn1" not in s
    if name.startswith("bit"):
        assert taps.default_taps(model, "si-z", "gn")[-1] == "before_head/gn"
        with pytest.raises(ValueError, match="variant"):
            taps.default_taps(model, "si-z", "nothing")


def test_a_pattern_of_a_family_that_matches_nothing_is_an_error_unless_it_may(monkeypatch):
    model = si_jax.build_model("resnet8", 3, input_size=(8, 8))

    def found(role, *patterns):
        family = dataclasses.replace(family_of(model.module), taps=lambda module: {role: patterns})
        monkeypatch.setattr(taps, "family_of", lambda module: family)
        return taps.default_taps(model, role)

    assert found("si-z", "bn?", IfPresent("extra*"), "layer3_0/bn?") == (
        "bn1",
        "layer3_0/bn1",
        "layer3_0/bn2",
    )
    assert found("outer", splitting.FEATURES) == (splitting.FEATURES,)
    with pytest.raises(ValueError, match=r"nothing in the network matches 'nb\?'"):
        found("si-z", "bn?", "nb?")
