"""Confidence intervals of metrics by the bootstrap over images."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from si_jax.checks import check_least
from si_jax.evaluation.metrics import METRICS, Correct, IdScores, OodScores, counts_at, places

ENDS = (2.5, 97.5)
"""Percentiles of the draws at which an interval ends."""

Draws = Float[np.ndarray, "resamples"]
Drawn = Mapping[str, Mapping[str, Draws]]
"""Set or group -> metric -> its values for the draws."""


def draws(
    id_scores: IdScores,
    ood_scores: OodScores,
    *,
    metrics: Sequence[str] = ("auroc", "fpr95"),
    resamples: int = 200,
    seed: int = 0,
    correct: Correct | None = None,
) -> dict[str, Draws]:
    """(resamples,) fractions of each metric, of images drawn with replacement.

    In-distribution and out-of-distribution images are drawn each from their own set. The draws
    depend on the seed and the sets' sizes alone, so detectors are compared on the same draws.
    """
    id_places, ood_places, values = places(id_scores, ood_scores)
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"metrics: {unknown[0]!r} is not one of {', '.join(METRICS)}")
    if correct is None and (lacking := [name for name in metrics if METRICS[name].needs_correct]):
        raise ValueError(f"metrics: {lacking[0]!r} needs `correct`, which images are classified so")
    check_least(2, resamples=resamples)
    rngs = [np.random.default_rng([seed, which]) for which in (0, 1)]
    drawn = {name: np.empty(resamples) for name in metrics}
    for draw in range(resamples):
        chosen, others = (
            rng.integers(len(place), size=len(place))
            for place, rng in zip((id_places, ood_places), rngs, strict=True)
        )
        right = None if correct is None else correct[chosen]
        counts = counts_at(id_places[chosen], ood_places[others], right, values)
        for name in metrics:
            drawn[name][draw] = METRICS[name].of(counts)
    return drawn


def means(drawn: Drawn, groups: Mapping[str, str]) -> dict[str, dict[str, Draws]]:
    """Group -> metric -> the mean over its sets, draw by draw, of draws with one seed."""
    averaged = {}
    for group in dict.fromkeys(groups[name] for name in drawn):
        rows = [row for name, row in drawn.items() if groups[name] == group]
        averaged[group] = {m: np.mean([row[m] for row in rows], axis=0) for m in rows[0]}
    return averaged


def intervals(drawn: Drawn) -> dict[str, dict[str, list[float]]]:
    """Set or group -> metric -> [low, high], see `interval`."""
    return {
        name: {metric: list(interval(values)) for metric, values in row.items()}
        for name, row in drawn.items()
    }


def interval(drawn: Draws) -> tuple[float, float]:
    """The 95 % confidence interval of the percentile bootstrap: the middle 95 % of the draws.

    It says how much depends on the choice of the images, not of the weights.
    """
    low, high = np.percentile(drawn, ENDS)
    return float(low), float(high)
