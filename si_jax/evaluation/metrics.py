"""How well scores separate in-distribution (ID) images from out-of-distribution (OOD) ones.

Scores are higher for images that look more in-distribution; every value is a fraction.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from sklearn import metrics as skm

IdScores = Float[np.ndarray, "known"]
OodScores = Float[np.ndarray, "novel"]
Counts = Int[np.ndarray, "values"]

METRICS: dict[str, str] = {
    "auroc": "AUROC",
    "fpr95": "FPR95 (ID positive)",
    "fpr95_ood_positive": "FPR95 (OOD positive)",
    "aupr_in": "AUPR-in",
    "aupr_out": "AUPR-out",
    "detection_error": "detection error",
    "auin": "AUIN",
    "auout": "AUOUT",
}
"""Metric's name -> its title in tables."""

HIGHER_IS_BETTER = frozenset({"auroc", "aupr_in", "aupr_out", "auin", "auout"})


def evaluate(id_scores: IdScores, ood_scores: OodScores) -> dict[str, float]:
    """All metrics of a pair of score sets.

    Args:
        id_scores: (n,) scores of in-distribution images.
        ood_scores: (m,) scores of out-of-distribution images.

    Returns:
        A fraction for each key of `METRICS`: AUROC (ID positive, ties count half); `fpr95`, see
        `fpr95`; `fpr95_ood_positive`, see there; `aupr_in` and `aupr_out`, average precision with
        ID and with OOD positive; `detection_error`, the least share of all images on the wrong
        side of one threshold; `auin` and `auout`, the trapezoidal areas under precision and recall
        of the published code.

    Raises:
        ValueError: if a set is empty, not one-dimensional, or holds NaN or infinite values.
    """
    known, novel = _check("id_scores", id_scores), _check("ood_scores", ood_scores)
    scores = np.concatenate([known, novel])
    is_known = np.concatenate([np.ones(len(known), bool), np.zeros(len(novel), bool)])
    fpr, tpr, _ = skm.roc_curve(is_known, scores, drop_intermediate=False)
    tp, fp = tpr * len(known), fpr * len(novel)
    return {
        "auroc": auroc(known, novel),
        "fpr95": fpr95(known, novel),
        "fpr95_ood_positive": fpr95_ood_positive(known, novel),
        "aupr_in": min(1.0, float(skm.average_precision_score(is_known, scores))),
        "aupr_out": min(1.0, float(skm.average_precision_score(~is_known, -scores))),
        "detection_error": float(np.min(len(known) - tp + fp) / len(scores)),
        "auin": _precision_area(tp, fp),
        "auout": _precision_area((len(novel) - fp)[::-1], (len(known) - tp)[::-1]),
    }


def auroc(id_scores: IdScores, ood_scores: OodScores) -> float:
    """Chance that an ID image has a higher score than an OOD image, ties counting half.

    Raises:
        ValueError: as for `evaluate`.
    """
    known, novel = _check("id_scores", id_scores), _check("ood_scores", ood_scores)
    is_known = np.concatenate([np.ones(len(known), bool), np.zeros(len(novel), bool)])
    return float(skm.roc_auc_score(is_known, np.concatenate([known, novel])))


def fpr95(id_scores: IdScores, ood_scores: OodScores) -> float:
    """Share of OOD strictly above the threshold that keeps 95 % of ID (published convention).

    The threshold is element round(0.05 n), by Python's rounding, of the n sorted ID scores.

    Raises:
        ValueError: as for `evaluate`.
    """
    known, novel = _check("id_scores", id_scores), _check("ood_scores", ood_scores)
    threshold = np.sort(known)[round(0.05 * len(known))]
    return float(np.mean(novel > threshold))


def fpr95_ood_positive(id_scores: IdScores, ood_scores: OodScores) -> float:
    """Share of ID rejected at the threshold that catches 95 % of OOD (OpenOOD's convention).

    Raises:
        ValueError: as for `evaluate`.
    """
    known, novel = _check("id_scores", id_scores), _check("ood_scores", ood_scores)
    is_novel = np.concatenate([np.zeros(len(known), bool), np.ones(len(novel), bool)])
    fpr, tpr, _ = skm.roc_curve(is_novel, -np.concatenate([known, novel]))
    return float(fpr[np.argmax(tpr >= 0.95)])


def bootstrap(
    id_scores: IdScores,
    ood_scores: OodScores,
    *,
    metrics: Sequence[str] = ("auroc", "fpr95"),
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % confidence intervals by the percentile bootstrap over images.

    The intervals say how much depends on the choice of the images, not of the weights.

    Args:
        id_scores: (n,) scores of in-distribution images.
        ood_scores: (m,) scores of out-of-distribution images.
        metrics: keys of `METRICS`.
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        Metric -> (low, high), fractions.

    Raises:
        ValueError: as for `evaluate`; or if a metric is unknown or `resamples` is less than 2.
    """
    drawn = bootstrap_draws(id_scores, ood_scores, metrics=metrics, resamples=resamples, seed=seed)
    return {name: interval(values) for name, values in drawn.items()}


def interval(drawn: Float[np.ndarray, "resamples"]) -> tuple[float, float]:
    """The middle 95 % of what was drawn."""
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def bootstrap_draws(
    id_scores: IdScores,
    ood_scores: OodScores,
    *,
    metrics: Sequence[str] = ("auroc", "fpr95"),
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "resamples"]]:
    """Metrics of images drawn with replacement; arguments and errors as for `bootstrap`.

    In-distribution and out-of-distribution images are drawn each from their own set. The draws
    depend on the seed and the sets' sizes alone, so detectors are compared on the same draws.

    Returns:
        Metric -> (resamples,) fractions.
    """
    known, novel = _check("id_scores", id_scores), _check("ood_scores", ood_scores)
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"metrics: {unknown[0]!r} is not one of {', '.join(METRICS)}")
    if resamples < 2:
        raise ValueError(f"resamples (={resamples}) must be at least 2")
    values, places = np.unique(np.concatenate([known, novel]), return_inverse=True)
    places = places[: len(known)], places[len(known) :]
    draws = [np.random.default_rng([seed, which]) for which in (0, 1)]
    found = {name: np.empty(resamples) for name in metrics}
    for draw in range(resamples):
        counts = np.stack(
            [
                np.bincount(place[rng.integers(len(place), size=len(place))], minlength=len(values))
                for place, rng in zip(places, draws, strict=True)
            ]
        )
        counts = counts[:, counts.any(axis=0)]
        for name in metrics:
            found[name][draw] = _FROM_COUNTS[name](*counts)
    return found


def _auroc_of(known: Counts, novel: Counts) -> float:
    below = np.cumsum(novel) - novel
    return float(known @ (2 * below + novel) / (2 * known.sum() * novel.sum()))


def _fpr95_of(known: Counts, novel: Counts) -> float:
    rank = round(0.05 * int(known.sum()))
    threshold = np.searchsorted(np.cumsum(known), rank, side="right")
    return float(novel[threshold + 1 :].sum() / novel.sum())


def _fpr95_ood_positive_of(known: Counts, novel: Counts) -> float:
    tp, fp = np.cumsum(novel), np.cumsum(known)
    if len(tp) > 2:  # scikit-learn drops the points in line with their neighbours, and so do we
        corner = (np.diff(tp, 2) != 0) | (np.diff(fp, 2) != 0)
        kept = np.concatenate([[True], corner, [True]])
        tp, fp = tp[kept], fp[kept]
    return float(fp[np.argmax(tp / tp[-1] >= 0.95)] / fp[-1])


def _average_precision_of(positive: Counts, negative: Counts) -> float:
    """Average precision where the positives are those of low values."""
    tp, fp = np.cumsum(positive), np.cumsum(negative)
    return float(np.sum(positive * tp / (tp + fp)) / tp[-1])


def _detection_error_of(known: Counts, novel: Counts) -> float:
    wrong = np.concatenate([[0], np.cumsum(known - novel)]) + novel.sum()
    return float(wrong.min() / (known.sum() + novel.sum()))


_FROM_COUNTS: dict[str, Callable[[Counts, Counts], float]] = {
    "auroc": _auroc_of,
    "fpr95": _fpr95_of,
    "fpr95_ood_positive": _fpr95_ood_positive_of,
    "aupr_in": lambda known, novel: _average_precision_of(known[::-1], novel[::-1]),
    "aupr_out": lambda known, novel: _average_precision_of(novel, known),
    "detection_error": _detection_error_of,
    "auin": lambda known, novel: _precision_area(np.cumsum(known[::-1]), np.cumsum(novel[::-1])),
    "auout": lambda known, novel: _precision_area(np.cumsum(novel), np.cumsum(known)),
}
"""Metric's name -> the metric of how many ID and OOD images have each value, in ascending order."""


def _check(name: str, scores: np.ndarray) -> Float[np.ndarray, "n"]:
    scores = np.asarray(scores)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(
            f"{name} (shape {scores.shape}) must be a one-dimensional array of at least one score"
        )
    if scores.dtype.kind not in "fiu":
        raise ValueError(f"{name} (dtype {scores.dtype}) must hold numbers")
    if bad := int(np.size(scores) - np.isfinite(scores).sum()):
        raise ValueError(f"{name} holds NaN or infinite values ({bad} of {len(scores)})")
    return scores.astype(np.float64)


def _precision_area(tp: np.ndarray, fp: np.ndarray) -> float:
    """Trapezoidal area under precision over recall, from precision 0 at recall 0."""
    some = tp + fp > 0
    precision = np.concatenate([[0.0], tp[some] / (tp + fp)[some]])
    recall = np.concatenate([[0.0], tp[some] / tp.max()])
    return float(np.trapezoid(precision, recall))
