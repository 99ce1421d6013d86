"""Equality with the published PyTorch code, on whole arrays, through the converter.

The stored values are float32 results of another framework. A unit whose pre-activation is within
rounding error of zero may come out on the other side of its ReLU, even in float64. Where a tap's
density shows that, by at most `POSITIONS` of its up to 65,536 positions, the score may differ by
just as much as those positions weigh, and by 1e-6 otherwise.
"""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

import si_jax
from si_jax import integration, splitting, taps
from si_jax.integration import max_logit

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = {  # our name -> the recipe's, classes, image size
    "resnet34": ("resnet34", 100, 32),
    "wrn_40_2": ("wrn_40_2", 100, 32),
    "bit_r101x1": ("bit_s_r101x1", 1000, 96),
}
TAGS = {
    "add_a0.001": {"combine": "add", "step_size": 0.001},
    "multiply_a1over255": {"preset": "published-defaults"},
    "multiply_a0.1": {"combine": "multiply", "step_size": 0.1},
}
POSITIONS = {"resnet34": 1, "wrn_40_2": 2, "bit_r101x1": 4}  # per tap and image
ALL_TAPS = 64  # one chunk, which compiles fastest
pytestmark = pytest.mark.usefixtures("one_device")
ZERO_DEFLATION = [  # network, variant of its taps, settings, engine
    ("resnet34", None, "add_a0.001", "general"),
    ("wrn_40_2", None, "multiply_a1over255", "general"),
    ("bit_r101x1", "gn", "multiply_a0.1", "general"),
    ("resnet34", None, "add_a0.001", "gradient"),
    *((net, None, "add_a0.001", "activation") for net in NETWORKS),
    *((net, None, "multiply_a0.1", "closed") for net in NETWORKS),
]
"""Every engine, and every setting; that engines are equal anywhere, `test_oracle.py` shows."""


@cache
def model_and_images(name):
    arch, classes, size = NETWORKS[name]
    model = si_jax.convert_torch(name, recipe.checkpoint(arch, classes), input_size=(size, size))
    return model, recipe.images(2, size).transpose(0, 2, 3, 1)


@cache
def golden(name, prefix=""):
    with np.load(GOLDEN / f"{prefix}{NETWORKS[name][0]}_seed0.npz") as file:
        return {key: file[key] for key in file.files}


def assert_same_score(detector, found, density, score):
    """Densities equal up to a few positions, the score up to what these positions weigh."""
    shapes = {call.path: call.shape for call in detector.model.calls}
    shapes = [shapes[tap] for tap in detector.settings["taps"]]
    channels = sum(shape[-1] for shape in shapes)
    off = (found["tap_density"] - density) * [np.prod(shape) for shape in shapes]
    off = np.where(np.abs(off) < 0.1, 0, np.abs(off))  # the rest is rounding of the mean
    assert off.max() < POSITIONS[detector.model.name] + 0.1
    weight = off @ [2 / np.prod(shape[:-1]) for shape in shapes] / channels
    assert (np.abs(-found["score"] - score) <= 1e-6 * score + weight).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_logits(name):
    model, images = model_and_images(name)
    logits = model.logits(images, batch_size=2)
    np.testing.assert_allclose(logits, golden(name)["logits"], rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant", "tag", "engine"), ZERO_DEFLATION)
def test_si_z(name, variant, tag, engine):
    model, images = model_and_images(name)
    prefix = f"zero_deflation/{variant or 'before_head'}/" if name.startswith("bit") else ""
    options = {"engine": "auto" if engine == "closed" else engine, "tap_chunk": ALL_TAPS}
    detector = si_jax.make_detector(
        "si-z", model, variant=variant, batch_size=2, **options, **TAGS[tag]
    )
    assert detector.settings["engine"] == engine
    stored, found = golden(name), detector.details(images)
    density, score = (stored[f"{prefix}{tag}/{key}"] for key in ("tap_density", "score"))
    assert_same_score(detector, found, density, score)


@pytest.mark.slow
def test_si_a():
    model, images = model_and_images("bit_r101x1")
    options = {"batch_size": 2, "tap_chunk": ALL_TAPS, "preset": "published-defaults"}
    found = si_jax.make_detector("si-a", model, **options).score(images)
    stored = golden("bit_r101x1")["channel_average/multiply_a1over255/score"]
    np.testing.assert_allclose(-found, stored, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_gaia(name):
    model, images = model_and_images(name)
    stored = golden(name, "gaia_")
    variants = {"before_head": None, "gn": "gn"} if name.startswith("bit") else {"bn": None}
    for key, variant in variants.items():
        found = si_jax.make_detector("gaia-z", model, variant=variant, batch_size=2).score(images)
        tolerance = {"resnet34": 1e-6, "wrn_40_2": 4e-6, "bit_r101x1": 4e-5}[name]  # positions
        np.testing.assert_allclose(-found, stored[f"gaia_z/{key}/score"], rtol=tolerance)
    found = si_jax.make_detector("gaia-a", model, batch_size=2).score(images)
    np.testing.assert_allclose(-found, stored["gaia_a/before_head/score"], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_gradient_of_every_step(name):
    model, _ = model_and_images(name)
    stored = golden(name)
    prefix = "zero_deflation/before_head/" if name.startswith("bit") else ""
    prefix += "multiply_a0.1/"
    names = taps.default_taps(model, "si-z")
    attribution, ascent = gradients(name, 0.1)
    for key, found in (("grad_norm", attribution), ("ce_norm", ascent)):
        norms, expected = np.stack([norm(found[tap]) for tap in names]), stored[prefix + key]
        # A saturated softmax leaves cross-entropy gradients that are rounding errors. BiT's first
        # tap has some whose sign, and so the step of 0.1, differs even between float32 and float64.
        tolerance = 2e-2 if name.startswith("bit") else 5e-3
        np.testing.assert_allclose(norms[:, 0], expected[:, 0, :1], rtol=5e-3, atol=1e-15)
        np.testing.assert_allclose(norms, expected[..., :1], rtol=tolerance, atol=1e-15)
    compared = 0
    for index, tap in enumerate(names):
        for step in range(2):
            for key, found in (("grad", attribution), ("ce_grad", ascent)):
                whole = stored.get(f"{prefix}tap{index}/step{step}/{key}")
                if whole is not None:
                    ours = np.asarray(found[tap])[step, 0].transpose(2, 0, 1)
                    wrong = np.abs(ours - whole[0]) > 5e-3 * np.abs(whole).max()
                    if key == "grad":
                        wrong |= (ours != 0) != (whole[0] != 0)
                    # one position behind the tap on the other side of its ReLU moves a patch
                    assert wrong.mean() <= (0 if name == "resnet34" else 0.01)
                    compared += 1
    assert compared == (0 if name.startswith("bit") else 16)


def gradients(name, step_size):
    """Of the first image: tap -> gradients of the target, and of what gives the step, two steps."""
    model, images = model_and_images(name)
    names = taps.default_taps(model, "si-z")

    def walk(variables, images):
        linear = splitting.linearise(model, variables, images, names)
        upwards = integration.direction(linear, max_logit, integration.AscentPath())
        first = [linear.gradient(target) for target in (max_logit, upwards)]
        moved = {k: linear.out.outputs[k] + step_size * jnp.sign(first[1][k]) for k in names}
        split = linear.split(moved)
        second = [split(target) for target in (max_logit, upwards)]
        return jax.tree.map(lambda *g: jnp.stack(g), first, second)

    # without optimisation its loops take minutes
    options = {"xla_backend_optimization_level": 1}
    return jax.jit(walk, compiler_options=options)(model.variables, images[:1])


def norm(gradient):
    """(steps, batch, ...) -> (steps, batch)."""
    gradient = np.asarray(gradient, np.float64)
    return np.sqrt((gradient**2).reshape(*gradient.shape[:2], -1).sum(-1))
