"""What a model refuses, and what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures import noise
from PIL import Image

import si_jax
from si_jax.networks import network
from si_jax.networks.checking import as_images, check_weights

SHAPE, MEAN, STD = (8, 8, 3), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def test_every_scale_gives_the_same_normalised_images():
    images = noise(5)
    images[0, 0, 0] = (0, 255, 0)
    unit = images.astype(np.float64) / 255
    normalised = ((unit - MEAN) / STD).astype(np.float32)
    assert as_images(images, SHAPE, MEAN, STD) is images
    for scale in (None, "uint8", "unit", "normalised"):  # uint8 arrays are 0 to 255
        assert as_images(images, SHAPE, MEAN, STD, scale) is images
    assert as_images(normalised, SHAPE, MEAN, STD) is normalised
    for given, scale in ((unit, "unit"), (unit * 255 + 0.1 * (unit < 0.5), "uint8")):
        taken = as_images(given, SHAPE, MEAN, STD, scale)
        assert taken.dtype == np.float32
        np.testing.assert_allclose(taken, normalised, atol=2e-3 if scale == "uint8" else 1e-6)
    for dtype in (np.int64, np.float16, np.float64, jnp.bfloat16):
        taken = as_images(images.astype(dtype) // 8, SHAPE, MEAN, STD, "uint8")
        assert taken.dtype == np.uint8
    np.testing.assert_array_equal(as_images(list(images), SHAPE, MEAN, STD), images)
    np.testing.assert_array_equal(as_images(jnp.asarray(images), SHAPE, MEAN, STD), images)
    pictures = [Image.fromarray(image) for image in images]
    np.testing.assert_array_equal(as_images(pictures, SHAPE, MEAN, STD), images)


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


PICTURE = Image.fromarray(zeros(*SHAPE))
FLOATS = np.random.default_rng(1).uniform(0, 1, (4, *SHAPE)).astype(np.float32)
UNKNOWN = {  # what is said -> images of which it is said where their scale is not
    r"one image without a batch axis: give images\[None": zeros(8, 8, 3),
    r"channels first: give images.transpose\(0, 2": zeros(2, 3, 8, 8),
    r"one image .*images.transpose\(1, 2, 0\)\[None\]$": zeros(3, 8, 8),
    r"grey: give np.repeat\(images\[..., None\], 3, axis": zeros(5, 8, 8),
    r"grey: give np.repeat\(images, 3, axis=-1\)$": zeros(2, 8, 8, 1),
    r"shape \(2, 8, 8, 1\)\) must have.* 8x8x3": zeros(2, 8, 8, 1),
    r"last channel: give images\[..., :3\]$": zeros(2, 8, 8, 4),
    "bring them to the model's input size first$": zeros(2, 9, 9, 3),
    r"give np.asarray\(images\).transpose\(0, 2": [zeros(3, 8, 8)] * 2,
    r"one image without a batch axis: give np.asarray\(images\)\[None\]$": PICTURE,
    r"\(of mode P\) must be RGB or grey: give image.con": [PICTURE.convert("P")] * 2,
    r"\(of mode RGBA\) must be RGB or grey": [PICTURE.convert("RGBA")],
    r"different shapes, \(8, 8, 3\) and": [zeros(8, 8, 3), zeros(9, 8, 3)],
    r"\(a list\) cannot be read as numbers": [None, None],
    r"\(a str\) cannot be read as numbers": "picture.png",
    "dtype int64.* scale='uint8'": zeros(2, 8, 8, 3, dtype=np.int64),
    "dtype float64.* scale='unit'": zeros(2, 8, 8, 3, dtype=np.float64),
    "are not normalised: say scale='uint8'": FLOATS * 255,
    "are not normalised": FLOATS * 1e38,
    r"from 0 to 0.7843\) look like \[0, 1\]": np.round(FLOATS * 200) / np.float32(255),
    r"look like \[0, 1\]": (FLOATS > 0.5).astype(np.float32),
}
OF_A_SCALE = [
    (zeros(2, 8, 8, 3, dtype=bool), "unit", "real numbers"),
    (zeros(2, 8, 8, 3, dtype=np.complex64), "unit", "real numbers"),
    (FLOATS * 255, "unit", "scale='unit' means 0 to 1"),
    (-FLOATS, "uint8", "scale='uint8' means 0 to 255"),
    (FLOATS * np.nan, "unit", "NaN"),
    (FLOATS, "grey", r"scale \(='grey'\) must be one of uint8, unit, normalised"),
]


@pytest.mark.parametrize(
    ("given", "scale", "message"), [*((x, None, k) for k, x in UNKNOWN.items()), *OF_A_SCALE]
)
def test_what_cannot_be_images_is_refused(given, scale, message):
    with pytest.raises(ValueError, match=message):
        as_images(given, SHAPE, MEAN, STD, scale)


def test_a_grey_image_without_its_channel():
    with pytest.raises(ValueError, match=r"give images\[\.\.\., None\]"):
        as_images(zeros(5, 8, 8), (8, 8, 1), MEAN[:1], STD[:1])


def test_what_may_be_normalised_is_taken():
    plain = np.zeros((2, *SHAPE), np.float32)  # images of the mean colour
    bright = FLOATS * 0.4 + 0.3
    noise = np.random.default_rng(2).normal(0, 2, (4, *SHAPE)).astype(np.float32)
    for floats in (plain, bright, noise):
        assert as_images(floats, SHAPE, MEAN, STD) is floats
    unit = np.round(FLOATS * 255) / np.float32(255)
    assert as_images(unit, SHAPE, (0.0,) * 3, (1.0,) * 3) is unit  # the same thing there


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"mean": (123.675, 116.28, 103.53)}, r"mean .* \[0, 1\].* divide values .* by 255"),
        ({"std": (58.395, 57.12, 57.375)}, r"std .* \(0, 1\].* divide values"),
        ({"std": (0.0, 0.2, 0.2)}, r"std \(=\(0.0, 0.2, 0.2\)\) must lie in \(0, 1\]"),
        ({"std": (-0.2,) * 3}, r"std .* \(0, 1\]"),
        ({"std": (float("inf"), 0.2, 0.2)}, r"std .* \(0, 1\]"),
        ({"mean": (float("nan"), 0.5, 0.5)}, r"mean .* \[0, 1\]"),
        ({"scale": "float"}, r"scale \(='float'\)"),
    ],
)
def test_constants_that_no_images_have(tiny, constants, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny, **constants)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_weights_that_are_broken_are_refused_by_name(tiny, value):
    variables = jax.tree.map(np.copy, dict(tiny.variables))
    variables["params"]["conv1"]["kernel"][1, 1, 0, 2] = value
    with pytest.raises(ValueError, match=r"variables: params/conv1/kernel holds"):
        dataclasses.replace(tiny, variables=variables)
    with pytest.raises(ValueError, match="params/conv1/kernel"):
        dataclasses.replace(tiny, variables=jax.tree.map(jnp.asarray, variables))


def test_a_network_of_zeros_is_refused(tiny):
    nothing = jax.tree.map(np.zeros_like, dict(tiny.variables))
    with pytest.raises(ValueError, match="variables: all weights are zero"):
        dataclasses.replace(tiny, variables=nothing)
    nothing["params"]["linear"]["kernel"][0, 0] = 1  # a network that is strange, and no more
    dataclasses.replace(tiny, variables=nothing)


def test_weights_to_come_and_whole_numbers_are_passed_over(tiny):
    check_weights(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tiny.variables))
    check_weights({"steps": np.array(10**9), "half": np.ones(3, jnp.bfloat16), "none": np.ones(0)})


def test_logits_that_are_not_finite_are_refused(tiny, tiny_images):
    broken = dataclasses.replace(tiny, variables=jax.tree.map(np.copy, dict(tiny.variables)))
    broken.variables["params"]["linear"]["bias"][0] = np.inf
    for call in (broken.logits, broken.features):
        with pytest.raises(ValueError, match="infinite logits for 13 of 13 images, image 0"):
            call(tiny_images)
    huge = np.full((2, 8, 8, 3), 3e38, np.float32)
    with pytest.raises(ValueError, match="values that are too large"):
        si_jax.make_detector("msp", tiny).score(huge, scale="normalised")


@pytest.mark.parametrize(
    ("loop", "mixes"),
    [
        (lambda x: jax.lax.map(jnp.sin, x), False),
        (lambda x: jax.lax.scan(lambda y, _: (jnp.sin(y), None), x, length=2)[0], False),
        (lambda x: jax.lax.scan(lambda y, row: (y + row, y), x[0], x)[1], True),
    ],
)
def test_a_loop_over_the_batch_mixes_images_if_it_carries_something(loop, mixes):
    assert network.may_mix(jax.make_jaxpr(loop)(jnp.zeros((61, 3))).jaxpr, 61) == mixes
