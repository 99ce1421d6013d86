"""AUROC and FPR95 over groups of sets, and bootstrap intervals of averages and differences."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from si_jax.evaluation import bootstrap, measuring, metrics
from si_jax.evaluation.bootstrap import Drawn
from si_jax.evaluation.metrics import METRICS, IdScores

MEASURED = ("auroc", "fpr95", "fpr95_ood_positive")
"""The metrics of `si_jax.evaluation.metrics.METRICS` that the study tells."""

OodScores = Mapping[str, Float[np.ndarray, "_"]]
"""Set -> scores of its images."""


def group_means(
    id_scores: IdScores, ood_scores: OodScores, groups: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Group -> metric -> mean over its sets, fractions.

    Args:
        id_scores: (n,) scores of in-distribution images.
        ood_scores: scores of each out-of-distribution set.
        groups: set -> group.

    Raises:
        ValueError: if a score is not finite.
    """
    counts = {name: metrics.count(id_scores, scores) for name, scores in ood_scores.items()}
    rows = {name: {m: METRICS[m].of(c) for m in MEASURED} for name, c in counts.items()}
    return measuring.averages(rows, groups)


def drawn(
    id_scores: IdScores,
    ood_scores: OodScores,
    groups: Mapping[str, str],
    *,
    resamples: int,
    seed: int,
) -> Drawn:
    """Bootstrap draws of each set's metrics and of each group's means.

    In-distribution images are drawn alike for all sets of a draw, and for all detectors, so that
    means and differences of detectors can be taken draw by draw.
    """
    options: dict[str, Any] = {"metrics": MEASURED, "resamples": resamples, "seed": seed}
    sets = {name: bootstrap.draws(id_scores, s, **options) for name, s in ood_scores.items()}
    return sets | bootstrap.means(sets, groups)


def differences(
    one: Drawn, other: Drawn, means: Mapping[str, Any], other_means: Mapping[str, Any]
) -> dict[str, dict[str, list[float]]]:
    """Group -> metric -> [difference, low, high], paired over the same draws.

    Args:
        one: of a detector.
        other: of the one that it is compared with.
        means: group -> metric -> the detector's mean.
        other_means: the other's.
    """
    return {
        group: {
            metric: [
                means[group][metric] - other_means[group][metric],
                *bootstrap.interval(one[group][metric] - other[group][metric]),
            ]
            for metric in MEASURED
        }
        for group in means
    }
