"""Programs of networks, compiled in the faster of XLA's ways for the device that runs them.

On a CPU, XLA hands convolutions and reductions to one library (YNNPACK) and leaves most matrix
products to another (Eigen). Eigen's ordinary convolutions are up to twice as fast, YNNPACK's
grouped ones and its softmax up to 1.6 times. So a program that consists of ordinary convolutions is
compiled without YNNPACK, and one with many products or reductions as XLA has it: a transformer, or
BiT, whose kernels and groups are normalised. Scores differ by float32 rounding. What it saves is
measured in `scripts/README.md`.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
"""XLA's option that lists what goes to YNNPACK; where the environment sets it, that holds."""


def compiled(function: jax.stages.Wrapped, *arguments: Any) -> Callable[..., Any]:
    """A function compiled for arguments of the shapes, dtypes and devices of those given.

    Args:
        function: what `jax.jit` gave.
        arguments: arrays, or trees of arrays.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]  # it is one of JAX's flags
        return function
    traced = function.trace(*arguments)
    return traced.lower().compile(compiler_options=_options(traced.jaxpr))


def _options(jaxpr: Any) -> dict[str, str]:
    if jax.default_backend() != "cpu" or YNNPACK in os.environ.get("XLA_FLAGS", ""):
        return {}
    counts = _counts(jaxpr)
    others = counts["product"] + counts["reduction"] / 2  # a tap's density is a reduction or two
    return {YNNPACK: ""} if counts["convolution"] > others and _is_known() else {}


def _counts(jaxpr: Any) -> Counter[str]:
    """How many equations are ordinary convolutions, matrix products and reductions."""
    counts: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            counts["product"] += 1
        elif name.startswith(("reduce_", "arg")):
            counts["reduction"] += 1
        elif name == "conv_general_dilated":
            counts["convolution"] += eqn.params["feature_group_count"] == 1
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                called = getattr(part, "jaxpr", part)
                if hasattr(called, "eqns"):
                    counts += _counts(called)
    return counts


@functools.cache
def _is_known() -> bool:
    """Whether this XLA has the option: it refuses one that it has not."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={YNNPACK: ""})
    except jax.errors.JaxRuntimeError:
        return False
    return True
