"""Batches: shapes, where the weights lie, how many devices share them, how they are compiled."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures import noise

import si_jax
from si_jax import batching
from si_jax.networks import programs

ROOT = Path(__file__).parents[1]


def compiled_by(detector):
    return [len(run._programs) for run in (detector._run, detector._predict_run)]


def test_three_shapes_at_most_and_none_after_warming_up(tiny):
    images = noise(50)
    detector = si_jax.make_detector("energy", tiny, batch_size=16).calibrate(images)
    warm = compiled_by(detector.warm_up())
    assert max(warm) <= 3
    scores = detector.score(images)
    for count in (1, 2, 9, 16, 40):
        np.testing.assert_allclose(detector.score(images[:count]), scores[:count], rtol=1e-5)
        assert detector.predict(images[:count]).label.shape == (count,)
    assert compiled_by(detector) == warm


def test_warming_up_is_for_the_dtype_that_is_asked_for_or_was_fitted_on(tiny):
    images = np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype(np.float32)
    asked = si_jax.make_detector("energy", tiny, batch_size=1).calibrate(images)
    fitted = si_jax.make_detector("react", tiny, batch_size=1).fit(images).calibrate(images)
    for detector in (asked.warm_up(dtype=np.float32), fitted.warm_up()):
        warm = compiled_by(detector)
        detector.predict(images[:1])
        detector.score(images[:1])
        assert compiled_by(detector) == warm


def test_a_small_evaluation_runs_small_batches_alone(monkeypatch):
    """From the fit to the last score, whatever the detectors' own batch sizes."""
    sizes = []
    start = batching.Batched.start

    def noted(self, images, *, batch_size):
        sizes.append((len(images), batch_size))
        return start(self, images, batch_size=batch_size)

    monkeypatch.setattr(batching.Batched, "start", noted)
    options = {"detectors": ["msp", "knn"], "limit": 4, "fit_limit": 11}
    si_jax.evaluate_benchmark("digits", **options, options={"knn": {"k": 3}})
    assert {size for size, _ in sizes} == {4, 11}
    assert all(batch == (8 if count == 4 else 11) for count, batch in sizes)


def test_small_sets_make_small_batches():
    sizes = [batching.fitting_batch_size(count, 64) for count in (1, 2, 8, 9, 63, 64, 1000)]
    assert sizes == [1, 8, 8, 8, 8, 64, 64]
    assert batching.fitting_batch_size(3, 4) == 4
    assert batching.fitting_batch_size(2, 1) == 1


def test_weights_are_placed_once_however_many_detectors_run(tiny, tiny_images):
    detectors = [si_jax.make_detector(name, tiny) for name in ("msp", "energy", "max-logit")]
    for detector in detectors:
        detector.score(tiny_images[:2])
    tiny.logits(tiny_images[:2])
    devices = tuple(jax.local_devices())
    placed = tiny.replicated.on(devices)
    assert tiny.replicated.on(devices) is placed
    assert all(detector._run._weights[0] is tiny.replicated for detector in detectors)


DEVICES = """
import jax, numpy as np, si_jax
model = si_jax.build_model(
    "resnet8", 5, seed=3, input_size=(8, 8), widths=(4, 6, 8), blocks=(1, 1, 1)
)
images = np.random.default_rng(0).integers(0, 256, (13, 8, 8, 3), np.uint8)
every = jax.local_devices()
assert len(every) == 8
for name, options in {"si-z": {"combine": "multiply"}, "energy": {}}.items():
    scores = []
    for count in (1, 8):
        jax.local_devices = lambda: every[:count]
        with jax.transfer_guard("disallow"):
            detector = si_jax.make_detector(name, model, batch_size=8, **options)
            scores.append(detector.score(images))
    np.testing.assert_allclose(*scores, rtol=1e-5)
"""


def test_one_and_eight_devices_give_the_same_scores():
    """The shapes of the shares differ, and so the order of sums. All other tests have two."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
    subprocess.run([sys.executable, "-c", DEVICES], env=environment, check=True)


def convolution(x, kernel, groups=1):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=names, feature_group_count=groups
    )


def convolved(x):
    x = jnp.maximum(convolution(x, jnp.ones((3, 3, 8, 8))), 0)
    return convolution(x, jnp.ones((1, 1, 8, 8)))


def attended(x):
    tokens = x.reshape(len(x), -1, 8)
    return jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", tokens, tokens)) @ tokens


def standardised(x):
    kernel = jnp.arange(3.0 * 3 * 8 * 8).reshape(3, 3, 8, 8)
    kernel = (kernel - kernel.mean((0, 1, 2))) / kernel.std((0, 1, 2))
    return convolution(x, kernel).sum()


FUNCTIONS = {
    "convolutions": (convolved, True),
    "in a loop": (lambda x: jax.lax.scan(lambda y, _: (convolved(y), None), x, length=2)[0], True),
    "called": (jax.jit(convolved), True),
    "their gradient": (jax.grad(lambda x: jnp.vdot(convolved(x), x)), True),
    "grouped convolutions": (lambda x: convolution(x, jnp.ones((3, 3, 1, 8)), groups=8), False),
    "attention behind a convolution": (lambda x: attended(convolved(x)), False),
    "standardised kernels": (standardised, False),
    "neither": (jnp.sin, False),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_programs_of_ordinary_convolutions_are_left_to_eigen(case, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    function, is_eigen = FUNCTIONS[case]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 8)), jnp.float32)
    jitted = jax.jit(function)
    program = programs.compiled(jitted, x)
    np.testing.assert_allclose(program(x), jitted(x), rtol=1e-4, atol=1e-4)
    chosen = programs._options(jitted.trace(x).jaxpr)
    assert chosen == ({programs.YNNPACK: ""} if is_eigen and programs._is_known() else {})
    if is_eigen:
        assert "ynn_fusion" not in program.as_text()


def test_what_the_environment_says_holds(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{programs.YNNPACK}=LIBRARY_FUSION_TYPE_REDUCE")
    x = jnp.ones((2, 6, 6, 8))
    assert programs._options(jax.jit(convolved).trace(x).jaxpr) == {}


def test_an_option_that_xla_has_not_is_left_out(monkeypatch):
    monkeypatch.setattr(programs, "YNNPACK", "xla_cpu_has_no_such_option")
    programs._is_known.cache_clear()
    try:
        program = programs.compiled(jax.jit(convolved), jnp.ones((2, 6, 6, 8)))
        assert program(jnp.ones((2, 6, 6, 8))).shape == (2, 6, 6, 8)
    finally:
        programs._is_known.cache_clear()
