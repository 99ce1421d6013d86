"""How programs are compiled on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import si_jax
from si_jax.networks import programs


def convolution(x, kernel, groups=1):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=names, feature_group_count=groups
    )


def convolved(x):
    return convolution(
        jnp.maximum(convolution(x, jnp.ones((3, 3, 8, 8))), 0), jnp.ones((1, 1, 8, 8))
    )


def grouped(x):
    return convolution(x, jnp.ones((3, 3, 1, 8)), groups=8) @ jnp.ones((8, 8))


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
    "grouped convolutions": (grouped, False),
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
    chosen = programs.compiler_options(jitted.trace(x).jaxpr)
    assert chosen == ({programs.YNNPACK: ""} if is_eigen and programs._is_known() else {})
    if is_eigen:
        assert "ynn_fusion" not in program.as_text()


def test_what_the_environment_says_holds(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{programs.YNNPACK}=LIBRARY_FUSION_TYPE_REDUCE")
    x = jnp.ones((2, 6, 6, 8))
    assert programs.compiler_options(jax.jit(convolved).trace(x).jaxpr) == {}


def test_an_option_that_xla_has_not_is_left_out(monkeypatch):
    monkeypatch.setattr(programs, "YNNPACK", "xla_cpu_has_no_such_option")
    programs._is_known.cache_clear()
    try:
        program = programs.compiled(jax.jit(convolved), jnp.ones((2, 6, 6, 8)))
        assert program(jnp.ones((2, 6, 6, 8))).shape == (2, 6, 6, 8)
    finally:
        programs._is_known.cache_clear()


def test_scores_are_those_of_the_other_way(tiny, tiny_images, monkeypatch):
    """Within float32 rounding."""
    scores = {}
    for flags in ("", f"--{programs.YNNPACK}=LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        scores[flags] = si_jax.make_detector("energy", tiny).score(tiny_images)
    np.testing.assert_allclose(*scores.values(), rtol=1e-5)
