"""S&I-C's score of readings and a fit: the same functions for NumPy and for JAX arrays.

An image's readings are its `"energy"` (N,), `"channel_average"` (N,), and `"density"` (N, D), the
shares of the positions at which the D selected channels are on; those that a component needs.
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

LEAST = 1e-30  # what a zero is taken for before its logarithm; float32 still holds it
LIMIT = 10.0
"""How many deviations a component can speak for in-distribution: far beyond any such image, yet so
that a single one, such as gradients that all vanish in a dead network, does not outweigh others."""


def apply(
    state: State,
    readings: Mapping[str, Num[Array | np.ndarray, "batch ..."]],
    *,
    components: Sequence[str] = tuple(COMPONENTS),
    clip: bool = True,
) -> dict[str, Num[Array | np.ndarray, "batch ..."]]:
    """Scores of images by their readings, and what they were made of.

    Args:
        state: what `fit` returned, for the same components.
        readings: of the images, NumPy or JAX arrays.
        components: keys of `COMPONENTS`, in its order.
        clip: see `combine`.

    Returns:
        `"score"` (N,); the reading of each component, (N,), by its name in `COMPONENTS`;
        `"standardised"` (N, K), the same less their medians, divided by their spreads; and with
        zero-deflation `"tap_pvalue"` (N, T), the share of the calibration images, and of this one,
        whose tap is at least as abnormal, where a tap's abnormality is the mean of the squared
        standardised densities over its channels. Of a tap with no channel that varies, it is 1.
    """
    values = component_values(state, readings, components)
    standardised = (values - state["median"]) / state["spread"]
    results = {"score": combine(standardised, components, clip), "standardised": standardised}
    results |= {COMPONENTS[name]: values[:, i] for i, name in enumerate(components)}
    if "zero-deflation" in components:
        abnormality = tap_abnormality(state, standardise(state, readings["density"]))
        results["tap_pvalue"] = pvalues(state["tap_calibration"], abnormality)
    return results


def combine(
    standardised: Float[Array | np.ndarray, "batch components"],
    components: Sequence[str],
    clip: bool,
) -> Float[Array | np.ndarray, "batch"]:
    """The score: the sum of the standardised components, each of them cut off at `LIMIT`.

    Args:
        standardised: components less their medians, divided by their spreads; 0 is typical.
        components: what the columns are.
        clip: whether zero-deflation counts only where it is below its median. It tells little
            there: an image whose densities are closer to the mean than usual is no more
            in-distribution for it.
    """
    limits = [0.0 if clip and name == "zero-deflation" else LIMIT for name in components]
    return standardised.clip(max=np.float32(limits)).sum(axis=-1)


def standardise(
    state: State, density: Float[Array | np.ndarray, "batch channels"]
) -> Float[Array | np.ndarray, "batch channels"]:
    """Densities less their means, in deviations; 0 for a channel that is left out."""
    return (density - state["mean"]) * state["scale"]


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
    """`(1 + #{calibration images at least as abnormal}) / (1 + n)` at each tap.

    Args:
        calibration: abnormality of the n calibration images, each column sorted.
        abnormality: of the images in question.
    """
    count = len(calibration)
    if isinstance(abnormality, np.ndarray):
        pairs = zip(calibration.T, abnormality.T, strict=True)
        below = np.stack([np.searchsorted(*pair) for pair in pairs], axis=-1)
    else:
        below = jax.vmap(jnp.searchsorted, (1, 1), 1)(calibration, abnormality)
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
