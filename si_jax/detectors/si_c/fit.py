"""The fit of S&I-C by readings alone, see `si_jax.detectors.si_c.score`: NumPy in and out."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_triangular

from si_jax.detectors.base import State
from si_jax.detectors.fitting import Moments, Sample, float32
from si_jax.detectors.si_c import score
from si_jax.detectors.si_c.readings import Channels

Rows = Float[np.ndarray, "images channels"]
Square = Float[np.ndarray, "channels channels"]

BLOCK, HELD_OUT = 10, 3
"""Of every ten fitting images in a row, three, drawn at random, are for the calibration part."""

LEAST_IMAGES = 2 * BLOCK  # 14 and 6: far too few for good scores, yet enough to compute some
LEAST_SHRINKAGE = 1e-3  # below which a covariance with doubled channels could be singular
LEAST_SHORTFALL = 0.01  # in deviations of a component; a normal distribution's is 0.8 of its own
DEVIATIONS = 3.29  # a normal distribution's 95 % quantile minus its 5 % quantile


def fit(
    readings: Iterable[score.Readings],
    channels: Channels | None = None,
    *,
    components: Sequence[str] = score.ALL,
    shrinkage: int | float | str = 0.1,
    max_calibration: int = 5000,
    seed: int = 0,
) -> State:
    """Learn from the readings of in-distribution images what `apply` needs.

    `mean`, `sigma` and the covariance come from 70 % of the images, medians and quantiles from
    the other 30 % (fitted and standardised on the same images, the distances would come out far
    too small). Channels that never vary are left out: nothing is known of how they do, and their
    slightest deviation would decide. For the same reason `sigma` is at least half a position's
    share, so that a difference of one position never counts as more than two deviations.

    Options are those of `si_c`; `shrinkage="ledoit-wolf"` is estimated from at most
    `max_calibration` images of the first part.

    Returns:
        float32 arrays. Of K components `"median"` and `"spread"` (K,), of confidence and energy
        `"base_median"` and `"base_spread"` (2,); of the components' sum its median,
        `"sum_median"`, and by how much those below are below it on average, `"sum_shortfall"`.
        With zero-deflation of D channels at T taps: `"mean"` and `"scale"` (D,), the latter
        1 / sigma, or 0 for a channel that is left out; `"whiten"` (D, D) with
        `whiten @ whiten.T` the inverse of the covariance; `"tap_share"` (D, T), which takes the
        mean over each tap's channels; and `"tap_calibration"` (n, T), the abnormality of each tap
        for the n images of the second part, each column sorted; and `"shrinkage"`, the share of
        the identity.
    """
    dense = "zero-deflation" in components
    names = ["confidence", "energy"]
    names += ["channel_average"] * ("channel-average" in components) + ["density"] * dense
    rng, sums = np.random.default_rng(seed), Moments()
    # drawn block by block, so that it depends on an image's place in the stream alone
    blocks = ((rng.permutation(BLOCK) < HELD_OUT).tolist() for _ in itertools.count())
    apart = itertools.chain.from_iterable(blocks)
    kept = Sample(max_calibration, [seed, 1])
    rows = Sample(max_calibration if shrinkage == "ledoit-wolf" else 0, [seed, 2])
    count = 0
    for part in readings:
        columns = [np.reshape(part[name], (len(part[name]), -1)) for name in names]
        table = np.concatenate(columns, axis=-1).astype(np.float32)
        if not np.isfinite(table).all():
            raise ValueError(
                "a fitting image has a NaN or infinite reading: it is broken, or the weights are"
            )
        count += len(table)
        second = np.fromiter(itertools.islice(apart, len(table)), bool, len(table))
        kept.add(table[second])
        if dense:
            density = table[~second, len(names) - 1 :]
            sums.add(density)
            rows.add(density)
    if count < LEAST_IMAGES:
        raise ValueError(
            f"images (={count}) are too few to fit on: give at least {LEAST_IMAGES}, or thousands"
        )
    table = np.stack(kept.rows)
    held = {name: table[:, i] for i, name in enumerate(names)}
    state: dict[str, Any] = {}
    if dense:
        assert channels is not None, "zero-deflation needs the channels"
        held["density"] = table[:, len(names) - 1 :]
        state = _densities(sums, channels, shrinkage, rows.rows)
        abnormality = score.tap_abnormality(state, score.standardise(state, held["density"]))
        state["tap_calibration"] = np.sort(abnormality, axis=0).astype(np.float32)
    values = np.asarray(score.component_values(state, held, components))
    state["median"], state["spread"] = _centre(values, components)
    base = np.stack([held["confidence"], held["energy"]], axis=-1)
    state["base_median"], state["base_spread"] = _centre(base, ["confidence", "energy"])
    total = score.component_sum((values - state["median"]) / state["spread"])
    state["sum_median"] = median = np.median(total)
    shortfall = np.mean(median - total[total < median]) if (total < median).any() else 0.0
    state["sum_shortfall"] = max(float(shortfall), LEAST_SHORTFALL)
    return float32(**state)


def _centre(values: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Median of each column, and its deviation by the 5 % and 95 % quantiles."""
    low, median, high = np.percentile(values, [5, 50, 95], axis=0)
    for name, spread in zip(names, high - low, strict=True):
        if not spread > 0:
            raise ValueError(f"{name} does not vary among the fitting images: give others")
    return median, (high - low) / DEVIATIONS


def ledoit_wolf(standardised: Rows, covariance: Square, count: int) -> float:
    """Ledoit & Wolf's share of the identity in a covariance, at least 0.001.

    `min(b^2, d^2) / d^2` with `d^2 = ||C - m I||^2` and `b^2 = (mean ||u u' - C||^2) / count`
    (Journal of Multivariate Analysis, 2004, section 3.2), `m` the mean of the diagonal.
    """
    square = np.sum(covariance**2)
    distance = square - np.trace(covariance) ** 2 / len(covariance)
    fourth = np.mean(np.sum(standardised.astype(np.float64) ** 2, axis=-1) ** 2)
    share = min(1.0, (fourth - square) / count / distance) if distance > 0 else 1.0
    return max(share, LEAST_SHRINKAGE)


def _densities(moments: Moments, channels: Channels, shrinkage: float | str, rows: list) -> dict:
    """What is learnt of the densities from the first part; see `fit`."""
    covariance = moments.covariance()
    variance = np.diag(covariance).copy()
    varying = variance > 0
    if not varying.any():
        raise ValueError(
            "zero-deflation: no density varies among the fitting images, as of images that are all"
            " alike: give others, or leave it out by components, such as 'energy,channel-average'"
        )
    sigma = np.maximum(np.sqrt(np.where(varying, variance, 1)), 0.5 / channels.positions)
    scale = np.where(varying, 1 / sigma, 0)
    mean = moments.mean()
    covariance *= scale[:, None]
    covariance *= scale
    share = shrinkage
    if isinstance(share, str):
        some = ((np.stack(rows) - mean) * scale)[:, varying]
        share = ledoit_wolf(some, covariance[np.ix_(varying, varying)], moments.count)
    covariance *= 1 - share
    covariance[np.diag_indices_from(covariance)] += share
    root = np.linalg.cholesky(covariance)
    whiten = solve_triangular(root, np.eye(len(root)), lower=True).T
    tap_share = np.zeros((len(scale), len(channels.taps)))
    tap_share[np.arange(len(scale)), channels.tap] = varying
    tap_share /= np.maximum(tap_share.sum(axis=0), 1)
    state = {"mean": mean, "scale": scale, "whiten": whiten, "tap_share": tap_share}
    return float32(**state, shrinkage=share)
