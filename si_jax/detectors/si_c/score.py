"""S&I-C's score of readings and a fit: the same functions for NumPy and for JAX arrays.

An image's readings are its `"confidence"` (N,), the log-odds of the predicted class, its `"energy"`
(N,), and where a component needs them its `"channel_average"` (N,) and `"density"` (N, D), the
shares of the positions at which the D selected channels are on.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from si_jax.detectors.base import State

COMPONENTS = {
    "energy": "energy",
    "channel-average": "channel_average",
    "zero-deflation": "zero_deflation",
}
"""Component -> what its reading is called, in the order in which components are always listed."""

ENERGY_SHARE = 0.25
HINGE_WEIGHT = 0.6
LEAST = 1e-30  # what a zero is taken for before its logarithm; float32 still holds it
LIMIT = 10.0
"""How many deviations a component can speak for in-distribution: far beyond any such image, yet so
that a single one, such as gradients that all vanish in a dead network, does not outweigh others."""


def apply(
    state: State,
    readings: Mapping[str, Num[Array | np.ndarray, "batch ..."]],
    *,
    components: Sequence[str] = tuple(COMPONENTS),
    form: str = "hinge",
) -> dict[str, Num[Array | np.ndarray, "batch ..."]]:
    """Scores of images by their readings, and what they were made of.

    Args:
        state: what `fit` returned, for the same components; it serves every form.
        readings: of the images, NumPy or JAX arrays.
        components: keys of `COMPONENTS`, in its order.
        form: a key of `FORMS`.

    Returns:
        `"score"` (N,); `"sum"` (N,), that of the standardised components, and `"hinge"` (N,), how
        far that is below its median, see `hinge`; `"confidence"` (N,) and the reading of each
        component, (N,), by its name in `COMPONENTS`; `"standardised"` (N, K), the components less
        their medians, divided by their spreads; and with zero-deflation `"tap_pvalue"` (N, T), the
        share of the calibration images, and of this one, whose tap is at least as abnormal, where a
        tap's abnormality is the mean of the squared standardised densities over its channels. Of a
        tap with no channel that varies, it is 1.
    """
    values = component_values(state, readings, components)
    standardised = (values - state["median"][None]) / state["spread"][None]
    total = component_sum(standardised)
    results = {
        "sum": total,
        "hinge": hinge(state, total),
        "standardised": standardised,
        "confidence": readings["confidence"],
    }
    results |= {COMPONENTS[name]: values[:, i] for i, name in enumerate(components)}
    if "zero-deflation" in components:
        abnormality = tap_abnormality(state, standardise(state, readings["density"]))
        results["tap_pvalue"] = pvalues(state["tap_calibration"], abnormality)
    return {"score": FORMS[form](state, readings, results), **results}


def component_sum(
    standardised: Float[Array | np.ndarray, "batch components"],
) -> Float[Array | np.ndarray, "batch"]:
    """Sum of the standardised components, each of them cut off at `LIMIT`."""
    return standardised.clip(max=np.float32(LIMIT)).sum(axis=-1)


def hinge(
    state: State, total: Float[Array | np.ndarray, "batch"]
) -> Float[Array | np.ndarray, "batch"]:
    """How far a sum is below the median of the calibration images, in their mean shortfalls.

    It is 0 for half of them, and 1 on average for the others.
    """
    return ((state["sum_median"] - total) / state["sum_shortfall"]).clip(min=0)


def _hinge_form(state, readings, results):
    pair = [readings["confidence"], readings["energy"]]
    xp = np if isinstance(pair[0], np.ndarray) else jnp
    base = (xp.stack(pair, axis=-1) - state["base_median"][None]) / state["base_spread"][None]
    base = base * np.float32([[1 - ENERGY_SHARE, ENERGY_SHARE]])
    return base.sum(axis=-1) - HINGE_WEIGHT * results["hinge"] ** 2


FORMS = {"hinge": _hinge_form, "sum": lambda state, readings, results: results["sum"]}
"""How a score is made of the components.

`hinge` is the network's confidence, three parts of the standardised log-odds of the predicted class
and one of the energy, less 0.6 times the squared `hinge`: the further the components' sum is below
its median, the more it overrules the confidence; above the median it does not add to it. `sum` is
the components' sum itself.
"""


def standardise(
    state: State, density: Float[Array | np.ndarray, "batch channels"]
) -> Float[Array | np.ndarray, "batch channels"]:
    """Densities less their means, in deviations; 0 for a channel that is left out."""
    return (density - state["mean"][None]) * state["scale"][None]


def tap_abnormality(
    state: State, standardised: Float[Array | np.ndarray, "batch channels"]
) -> Float[Array | np.ndarray, "batch taps"]:
    """Mean over each tap's channels of the squared standardised densities."""
    with jax.default_matmul_precision("highest"):
        return standardised**2 @ state["tap_share"]


def pvalues(
    calibration: Float[Array | np.ndarray, "images taps"],
    abnormality: Float[Array | np.ndarray, "batch taps"],
) -> Float[Array | np.ndarray, "batch taps"]:
    """`(1 + #{calibration images at least as abnormal}) / (1 + n)` at each tap."""
    count = len(calibration)
    if isinstance(abnormality, np.ndarray):
        pairs = zip(calibration.T, abnormality.T, strict=True)
        below: Array | np.ndarray = np.stack([np.searchsorted(*pair) for pair in pairs], axis=-1)
    else:
        below = count - (calibration[None] >= abnormality[:, None]).sum(axis=1)
    return ((1 + count - below) / (1 + count)).astype(abnormality.dtype)


def component_values(
    state: State,
    readings: Mapping[str, Num[Array | np.ndarray, "batch ..."]],
    components: Sequence[str],
) -> Float[Array | np.ndarray, "batch components"]:
    """The components before they are standardised.

    `zero-deflation` is `-0.5 log(u' S^-1 u)` of the standardised densities `u`; the others are
    readings as they are.
    """
    columns = []
    for name in components:
        if name != "zero-deflation":
            columns.append(readings[COMPONENTS[name]])
            continue
        density = readings["density"]
        xp = np if isinstance(density, np.ndarray) else jnp
        with jax.default_matmul_precision("highest"):
            white = standardise(state, density) @ state["whiten"]
        columns.append(-0.5 * xp.log((white**2).sum(axis=-1).clip(min=LEAST)))
    xp = np if isinstance(columns[0], np.ndarray) else jnp
    return xp.stack(columns, axis=-1)
