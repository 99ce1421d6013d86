"""S&I-C's score of readings and a fit: the same functions for NumPy and for JAX arrays.

An image's readings are its `"confidence"` (N,), the log-odds of the predicted class, its `"energy"`
(N,), and where a component needs them its `"channel_average"` (N,) and `"density"` (N, D), the
shares of the positions at which the D selected channels are on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from si_jax.detectors.base import State

Readings = Mapping[str, Num[Array | np.ndarray, "batch ..."]]
Rows = Float[Array | np.ndarray, "batch columns"]
OfTaps = Float[Array | np.ndarray, "batch taps"]

ALL = ("energy", "channel-average", "zero-deflation")  # in the order that is always theirs
COMPONENTS = {name: name.replace("-", "_") for name in ALL}
"""Component -> what its reading is called."""

FORMS = ("hinge", "sum")
"""How a score is made of the components.

`hinge` is the network's confidence, three parts of the standardised log-odds of the predicted class
and one of the energy, less 0.6 times the squared hinge: the further the components' sum is below
its median, the more it overrules the confidence; above the median it does not add to it. `sum` is
the components' sum itself.
"""

ENERGY_SHARE = 0.25
HINGE_WEIGHT = 0.6
LEAST = 1e-30  # what a zero is taken for before its logarithm; float32 still holds it
LIMIT = 10.0
"""How many deviations a component can speak for in-distribution: far beyond any such image, yet so
that a single one, such as gradients that all vanish in a dead network, does not outweigh others."""


def apply(
    state: State, readings: Readings, *, components: Sequence[str] = ALL, form: str = "hinge"
) -> dict[str, Num[Array | np.ndarray, "batch ..."]]:
    """Scores of images by their readings, and what they were made of.

    Args:
        state: what `fit` returned, for the same components; it serves every form.
        readings: of the images, NumPy or JAX arrays.
        components: keys of `COMPONENTS`, in its order.
        form: one of `FORMS`.

    Returns:
        `"score"` (N,); `"sum"` (N,), that of the standardised components, and `"hinge"` (N,), how
        far that is below the median of the calibration images, in their mean shortfalls (0 for half
        of them, and 1 on average for the others); `"confidence"` (N,) and the reading of each
        component, (N,), by its name in `COMPONENTS`; `"standardised"` (N, K), the components less
        their medians, divided by their spreads; and with zero-deflation `"tap_pvalue"` (N, T), the
        share of the calibration images, and of this one, whose tap is at least as abnormal, where a
        tap's abnormality is the mean of the squared standardised densities over its channels. Of a
        tap with no channel that varies, it is 1.
    """
    values = component_values(state, readings, components)
    standardised = (values - state["median"][None]) / state["spread"][None]
    total = component_sum(standardised)
    hinge = ((state["sum_median"] - total) / state["sum_shortfall"]).clip(min=0)
    base = namespace(values).stack([readings["confidence"], readings["energy"]], axis=-1)
    base = (base - state["base_median"][None]) / state["base_spread"][None]
    base = (base * np.array([[1 - ENERGY_SHARE, ENERGY_SHARE]], np.float32)).sum(axis=-1)
    results = {
        "score": {"hinge": base - HINGE_WEIGHT * hinge**2, "sum": total}[form],
        "sum": total,
        "hinge": hinge,
        "standardised": standardised,
        "confidence": readings["confidence"],
    }
    results |= {COMPONENTS[name]: values[:, i] for i, name in enumerate(components)}
    if "zero-deflation" in components:
        abnormality = tap_abnormality(state, standardise(state, readings["density"]))
        results["tap_pvalue"] = pvalues(state["tap_calibration"], abnormality)
    return results


def namespace(x: Array | np.ndarray) -> Any:
    """NumPy, or JAX for its arrays."""
    return np if isinstance(x, np.ndarray) else jnp


def component_sum(standardised: Rows) -> Float[Array | np.ndarray, "batch"]:
    """Sum of the standardised components, each of them cut off at `LIMIT`."""
    return standardised.clip(max=np.float32(LIMIT)).sum(axis=-1)


def standardise(state: State, density: Rows) -> Rows:
    """Densities less their means, in deviations; 0 for a channel that is left out."""
    return (density - state["mean"][None]) * state["scale"][None]


def tap_abnormality(state: State, standardised: Rows) -> OfTaps:
    """Mean over each tap's channels of the squared standardised densities."""
    with jax.default_matmul_precision("highest"):
        return standardised**2 @ state["tap_share"]


def pvalues(calibration: Array | np.ndarray, abnormality: OfTaps) -> OfTaps:
    """`(1 + #{calibration images at least as abnormal}) / (1 + n)` at each tap."""
    count = len(calibration)
    if isinstance(abnormality, np.ndarray):
        pairs = zip(calibration.T, abnormality.T, strict=True)
        below: Array | np.ndarray = np.stack([np.searchsorted(*pair) for pair in pairs], axis=-1)
    else:
        below = count - (calibration[None] >= abnormality[:, None]).sum(axis=1)
    return ((1 + count - below) / (1 + count)).astype(abnormality.dtype)


def component_values(state: State, readings: Readings, components: Sequence[str]) -> Rows:
    """The components before they are standardised.

    `zero-deflation` is `-0.5 log(u' S^-1 u)` of the standardised densities `u`; the others are
    readings as they are.
    """
    columns = dict(readings)
    if "zero-deflation" in components:
        with jax.default_matmul_precision("highest"):
            white = standardise(state, readings["density"]) @ state["whiten"]
        square = (white**2).sum(axis=-1).clip(min=LEAST)
        columns["zero_deflation"] = -0.5 * namespace(square).log(square)
    chosen = [columns[COMPONENTS[name]] for name in components]
    return namespace(chosen[0]).stack(chosen, axis=-1)
