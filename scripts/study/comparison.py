"""The main tables of the study of S&I-C: its forms among all other detectors, and intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from si_jax.detectors import make_detector
from si_jax.evaluation import metrics
from si_jax.evaluation.metrics import METRICS
from si_jax.model import Model

FORMS = ("hinge", "sum")
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    **{
        name: {f"{name}-{form}": {"form": form} for form in FORMS}
        for name in ("si-c", "si-c-forward")
    },
    "lts": {"lts": {}, "lts-85": {"percentile": 85.0}},
    "nci": {"nci": {}, "nci-0.01": {"alpha": 0.01}},
    "mahalanobis": {"mahalanobis": {}, "mahalanobis-normalised": {"normalise": True}},
    "relative-mahalanobis": {
        "relative-mahalanobis": {},
        "relative-mahalanobis-normalised": {"normalise": True},
    },
}
"""Detector -> label -> options, where the defaults are not all that is compared."""

REFERENCE = "msp"
"""What differences are taken from; always evaluated."""

MEASURED = ("auroc", "fpr95", "fpr95_ood_positive")
"""The metrics of `si_jax.evaluation.metrics.METRICS` that the study reports."""

Scores = Mapping[str, np.ndarray]
"""Set -> (n,) scores of its images, those in distribution first."""


def detectors(
    names: Sequence[str], model: Model
) -> tuple[dict[str, tuple[str, dict[str, Any]]], dict[str, str]]:
    """Label -> name and options of each variant; and of those that cannot be made, the reason."""
    chosen, failures = {}, {}
    for name in dict.fromkeys((*names, REFERENCE)):
        for label, options in VARIANTS.get(name, {name: {}}).items():
            try:
                make_detector(name, model, **options)
                chosen[label] = (name, options)
            except ValueError as error:
                failures[label] = str(error)
    return chosen, failures


def group_means(scores: Scores, groups: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Group -> metric -> mean over its sets, fractions."""
    known, *_ = scores.values()
    counts = {name: metrics.count(known, scores[name]) for name in groups}
    rows = {name: {m: METRICS[m].of(c) for m in MEASURED} for name, c in counts.items()}
    return metrics.averages(rows, groups)


def compare(
    scores: Mapping[str, Scores], groups: Mapping[str, str], *, resamples: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Intervals, and differences from `REFERENCE`, by the bootstrap over images.

    The same images are drawn for all detectors, so that differences are taken draw by draw.

    Args:
        scores: label -> scores.
        groups: set -> group.
        resamples: metrics.draws.
        seed: their seed.

    Returns:
        Label -> set or group -> metric -> [low, high]; and label -> group -> metric ->
        [difference, low, high], fractions.
    """
    options: dict[str, Any] = {"metrics": MEASURED, "resamples": resamples, "seed": seed}
    drawn, means = {}, {}
    for label, sets in scores.items():
        known, *_ = sets.values()
        by_set = {name: metrics.draws(known, sets[name], **options) for name in groups}
        drawn[label] = by_set | metrics.averages(by_set, groups)
        means[label] = group_means(sets, groups)
    differences = {
        label: {
            group: {
                metric: [
                    value - means[REFERENCE][group][metric],
                    *metrics.interval(
                        drawn[label][group][metric] - drawn[REFERENCE][group][metric]
                    ),
                ]
                for metric, value in row.items()
            }
            for group, row in means[label].items()
        }
        for label in scores
    }
    return {label: metrics.intervals(rows) for label, rows in drawn.items()}, differences
