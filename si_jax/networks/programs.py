"""Programs, compiled in the faster of XLA's ways for the device that runs them.

On a CPU, XLA hands convolutions and reductions to one library (YNNPACK), or else leaves them to
another (Eigen). Eigen is the faster at ordinary convolutions, YNNPACK at depthwise ones and at
reductions, so the work of each is weighed. Scores differ by float32 rounding. `python
scripts/benchmark.py ways` measures both; see `scripts/README.md`.
"""

import functools
import math
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

from si_jax.networks.equations import inner_jaxprs

YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
"""XLA's option that lists what goes to YNNPACK; where the environment sets it, that holds."""

GROUPED, REDUCED = 100, 500
"""What a multiplication of a grouped convolution, and a reduced element, weigh: the seconds that
YNNPACK saves there, by those that Eigen saves in a multiplication of an ordinary convolution."""


def compiled(function: jax.stages.Wrapped, *arguments: Any) -> Callable[..., Any]:
    """A jitted function, compiled for arguments of these shapes, dtypes and devices."""
    if without_jit():
        return function
    traced = function.trace(*arguments)
    return traced.lower().compile(compiler_options=_options(traced.jaxpr))


def without_jit() -> bool:
    """Whether functions are run step by step, as under `jax.disable_jit()`."""
    return jax.config.jax_disable_jit  # type: ignore[attr-defined]  # it is one of JAX's flags


def without_ynnpack(jaxpr: Any) -> bool:
    """Whether a program is compiled without YNNPACK, as that is the faster way for it."""
    if jax.default_backend() != "cpu" or YNNPACK in os.environ.get("XLA_FLAGS", ""):
        return False
    work = _work(jaxpr)
    others = GROUPED * work["grouped"] + REDUCED * work["reduced"]
    return work["ordinary"] > others and _is_known()


def _options(jaxpr: Any) -> dict[str, str]:
    return {YNNPACK: ""} if without_ynnpack(jaxpr) else {}


def _work(jaxpr: Any) -> Counter[str]:
    """Multiplications of ordinary and of grouped convolutions, and elements that are reduced."""
    work: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        name, shapes = eqn.primitive.name, [x.aval.shape for x in (*eqn.invars, *eqn.outvars)]
        if name.startswith(("reduce_", "arg")):
            work["reduced"] += math.prod(shapes[0])
        elif name == "conv_general_dilated":
            (_, kernel, result), given = shapes, eqn.params
            is_grouped = max(given["feature_group_count"], given["batch_group_count"]) > 1
            each = math.prod(kernel) // kernel[given["dimension_numbers"].rhs_spec[0]]
            work["grouped" if is_grouped else "ordinary"] += math.prod(result) * each
        for called in inner_jaxprs(eqn):
            work += _work(called)
    return work


@functools.cache
def _is_known() -> bool:
    """Whether this XLA has the option: it refuses one that it has not."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={YNNPACK: ""})
    except jax.errors.JaxRuntimeError:
        return False
    return True
