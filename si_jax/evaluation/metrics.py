"""How well scores separate in-distribution (ID) images from out-of-distribution (OOD) ones.

Scores are higher for images that look more in-distribution; every value is a fraction. A metric is
one record in `METRICS`, a function of how many images have each score. To add one, add its record:
tables, CSV, reports, comparisons and bootstrap intervals read it from there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from si_jax.checks import check_least

IdScores = Float[np.ndarray, "id"]
OodScores = Float[np.ndarray, "ood"]
Correct = Bool[np.ndarray, "id"]
Draws = Float[np.ndarray, "resamples"]

PROBABILITIES = ("msp", "temperature-scaling")  # their score is that of the predicted class
BINS = 15  # of the calibration error


@dataclass(frozen=True)
class Counts:
    """How many images have each value of a score, in ascending order; some of either kind."""

    id: Int[np.ndarray, "values"]
    ood: Int[np.ndarray, "values"]
    correct: Int[np.ndarray, "values"] | None = None  # ID of a correctly predicted class, if known


@dataclass(frozen=True)
class Metric:
    """A metric of how well scores separate two sets; `of` gives a fraction."""

    title: str  # in figures and lists
    of: Callable[[Counts], float]
    higher_is_better: bool
    report: str = ""  # title of its table in reports; without one, it has no interval either
    needs_correct: bool = False  # it is left out where `Counts.correct` is not known


def _auroc(counts: Counts, won: np.ndarray | None = None) -> float:
    """Share of pairs that the ID image wins, of those that can at all where these are given."""
    below = np.cumsum(counts.ood) - counts.ood
    pairs = (counts.id if won is None else won) @ (2 * below + counts.ood)
    return float(pairs / (2 * counts.id.sum() * counts.ood.sum()))


def _fpr(counts: Counts) -> float:
    return float(counts.ood[_threshold(counts) + 1 :].sum() / counts.ood.sum())


def _fpr95_ood_positive(counts: Counts) -> float:
    caught, rejected = np.cumsum(counts.ood), np.cumsum(counts.id)
    return float(rejected[np.argmax(caught / caught[-1] >= 0.95)] / rejected[-1])


def _aupr(positive: np.ndarray, negative: np.ndarray) -> float:
    """Average precision as scikit-learn sums it; values in the order of being taken as positive."""
    tp, fp = np.cumsum(positive), np.cumsum(negative)
    precision = (tp / (tp + fp))[::-1]
    recall = np.append((tp / tp[-1])[::-1], 0.0)
    return min(1.0, float(-np.sum(np.diff(recall) * precision)))


def _detection_error(counts: Counts) -> float:
    wrong = np.concatenate([[0], np.cumsum(counts.id - counts.ood)]) + counts.ood.sum()
    return float(wrong.min() / (counts.id.sum() + counts.ood.sum()))


def _precision_area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Trapezoidal area under precision over recall, from precision 0 at recall 0."""
    tp, fp = np.cumsum(positive), np.cumsum(negative)
    precision = np.append(0.0, tp / (tp + fp))
    return float(np.trapezoid(precision, np.append(0.0, tp / tp[-1])))


METRICS: dict[str, Metric] = {
    "auroc": Metric("AUROC", _auroc, True, "AUROC"),
    "fpr95": Metric(
        "FPR95 (ID positive)", _fpr, False, "FPR95, published convention (in-distribution positive)"
    ),
    "fpr95_ood_positive": Metric(
        "FPR95 (OOD positive)",
        _fpr95_ood_positive,
        False,
        "FPR95, OpenOOD convention (out-of-distribution positive)",
    ),
    "aupr_in": Metric(
        "AUPR-in", lambda c: _aupr(c.id[::-1], c.ood[::-1]), True, "AUPR, in-distribution positive"
    ),
    "aupr_out": Metric(
        "AUPR-out", lambda c: _aupr(c.ood, c.id), True, "AUPR, out-of-distribution positive"
    ),
    "detection_error": Metric("detection error", _detection_error, False, "Detection error"),
    "auin": Metric("AUIN", lambda c: _precision_area(c.id[::-1], c.ood[::-1]), True),
    "auout": Metric("AUOUT", lambda c: _precision_area(c.ood, c.id), True),
    "oscr": Metric(
        "OSCR",
        lambda c: _auroc(c, c.correct),
        True,
        "OSCR, share accepted and classified correctly against OOD accepted",
        needs_correct=True,
    ),
}
"""Name -> metric; the definitions are in `evaluate`."""


def evaluate(
    id_scores: IdScores, ood_scores: OodScores, correct: Correct | None = None
) -> dict[str, float]:
    """All metrics of a pair of score sets.

    Args:
        id_scores: (n,) scores of in-distribution images.
        ood_scores: (m,) scores of out-of-distribution images.
        correct: (n,) whether each in-distribution image's class is predicted correctly; None where
            that is not known, and then metrics that need it are left out.

    Returns:
        A fraction for each key of `METRICS`: AUROC (ID positive, ties count half); `fpr95`, see
        `fpr95`; `fpr95_ood_positive`, see there; `aupr_in` and `aupr_out`, average precision with
        ID and with OOD positive; `detection_error`, the least share of all images on the wrong
        side of one threshold; `auin` and `auout`, the trapezoidal areas under precision and recall
        of the published code; `oscr`, the chance that an ID image is classified correctly and has
        a higher score than an OOD image, ties counting half (Dhamija et al., NeurIPS 2018).

    Raises:
        ValueError: if a set is empty, not one-dimensional, or holds NaN or infinite values.
    """
    counts = count(id_scores, ood_scores, correct)
    return {name: METRICS[name].of(counts) for name in measurable(correct)}


def measurable(correct: Correct | None) -> list[str]:
    """The metrics that need no more than is known."""
    return [name for name, m in METRICS.items() if correct is not None or not m.needs_correct]


def auroc(id_scores: IdScores, ood_scores: OodScores) -> float:
    """Chance that an ID image has a higher score than an OOD image, ties counting half.

    Raises:
        ValueError: as for `evaluate`.
    """
    return _auroc(count(id_scores, ood_scores))


def fpr95(id_scores: IdScores, ood_scores: OodScores) -> float:
    """Share of OOD strictly above the threshold that keeps 95 % of ID (published convention).

    The threshold is element round(0.05 n), by Python's rounding, of the n sorted ID scores. OOD
    scores equal to it count as rejected; see `tied_at_threshold`.

    Raises:
        ValueError: as for `evaluate`.
    """
    return _fpr(count(id_scores, ood_scores))


def fpr95_ood_positive(id_scores: IdScores, ood_scores: OodScores) -> float:
    """Share of ID rejected at the threshold that catches 95 % of OOD (OpenOOD's convention).

    Every value of a score is a possible threshold, and the first that catches at least 95 % is
    taken.

    Raises:
        ValueError: as for `evaluate`.
    """
    return _fpr95_ood_positive(count(id_scores, ood_scores))


def tied_at_threshold(id_scores: IdScores, ood_scores: OodScores) -> int:
    """How many OOD scores equal the threshold of `fpr95`, which counts all of them as rejected.

    Raises:
        ValueError: as for `evaluate`.
    """
    counts = count(id_scores, ood_scores)
    return int(counts.ood[_threshold(counts)])


def calibration_error(
    probability: Float[np.ndarray, "images"], correct: Bool[np.ndarray, "images"]
) -> float:
    """Expected calibration error: mean difference of probability and accuracy, bin by bin.

    `sum_b (n_b / n) |accuracy_b - mean probability_b|` over 15 bins of equal width, each with its
    upper end (Guo et al., ICML 2017, eq. 3).

    Args:
        probability: of the predicted class, in [0, 1], of in-distribution images.
        correct: whether that class is the image's.

    Returns:
        A fraction; 0 is best.

    Raises:
        ValueError: if there is no image, or a probability is not in [0, 1].
    """
    if not len(probability) or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probability must hold at least one value, and all of them in [0, 1]")
    places = np.clip(np.ceil(probability.astype(np.float64) * BINS) - 1, 0, BINS - 1).astype(int)
    gaps = np.bincount(places, probability.astype(np.float64) - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(probability))


def count(id_scores: IdScores, ood_scores: OodScores, correct: Correct | None = None) -> Counts:
    """How many images have each score; arguments and errors as for `evaluate`."""
    return _counts_at(*_places(id_scores, ood_scores), correct)


def _places(id_scores: IdScores, ood_scores: OodScores) -> tuple[np.ndarray, np.ndarray, int]:
    """Place of each score among the values that occur, ascending, and how many values do."""
    id_scores, ood_scores = _checked("id_scores", id_scores), _checked("ood_scores", ood_scores)
    both = np.concatenate([id_scores, ood_scores])
    values, where = np.unique(both, return_inverse=True)
    return where[: len(id_scores)], where[len(id_scores) :], len(values)


def _counts_at(known, other, values: int, correct: Correct | None) -> Counts:
    """Counts of images whose scores are the values at these places; without values of none."""
    places = [known, other] if correct is None else [known, other, known[correct]]
    by_value = [np.bincount(x, minlength=values) for x in places]
    some = (by_value[0] + by_value[1]) > 0
    return Counts(*(one[some] for one in by_value))


def _threshold(counts: Counts) -> int:
    """Place of the value that keeps 95 % of the in-distribution images."""
    rank = round(0.05 * int(counts.id.sum()))
    return int(np.searchsorted(np.cumsum(counts.id), rank, side="right"))


def _checked(name: str, scores: np.ndarray) -> Float[np.ndarray, "n"]:
    """Scores as float64, if they are what `evaluate` takes."""
    scores = np.asarray(scores)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(
            f"{name} (shape {scores.shape}) must be one-dimensional: at least one score"
        )
    if scores.dtype.kind not in "fiu":
        raise ValueError(f"{name} (dtype {scores.dtype}) must hold numbers")
    if bad := int(np.size(scores) - np.isfinite(scores).sum()):
        raise ValueError(f"{name} holds NaN or infinite values ({bad} of {len(scores)})")
    return scores.astype(np.float64)


def averages(rows: Mapping[str, Mapping], groups: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Group -> metric -> mean over the group's sets, of values or, draw by draw, of draws."""
    means = {}
    for group in dict.fromkeys(groups[name] for name in rows):
        members = [row for name, row in rows.items() if groups[name] == group]
        values = {m: np.mean([row[m] for row in members], axis=0) for m in members[0]}
        means[group] = {m: value if value.ndim else float(value) for m, value in values.items()}
    return means


def draws(
    id_scores: IdScores,
    ood_scores: OodScores,
    *,
    metrics: Sequence[str] = ("auroc", "fpr95"),
    resamples: int = 200,
    seed: int = 0,
    correct: Correct | None = None,
) -> dict[str, Draws]:
    """(resamples,) fractions of each metric, of images drawn with replacement: the bootstrap.

    In-distribution and out-of-distribution images are drawn each from their own set. The draws
    depend on the seed and the sets' sizes alone, so detectors are compared on the same draws.
    """
    known, other, values = _places(id_scores, ood_scores)
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"metrics: {unknown[0]!r} is not one of {', '.join(METRICS)}")
    if correct is None and (lacking := [name for name in metrics if METRICS[name].needs_correct]):
        raise ValueError(f"metrics: {lacking[0]!r} needs `correct`, which images are classified so")
    check_least(2, resamples=resamples)
    rngs = [np.random.default_rng([seed, which]) for which in (0, 1)]
    drawn = {name: np.empty(resamples) for name in metrics}
    for draw in range(resamples):
        chosen = rngs[0].integers(len(known), size=len(known))
        others = rngs[1].integers(len(other), size=len(other))
        right = None if correct is None else correct[chosen]
        counts = _counts_at(known[chosen], other[others], values, right)
        for name in metrics:
            drawn[name][draw] = METRICS[name].of(counts)
    return drawn


def interval(drawn: Draws) -> list[float]:
    """The 95 % confidence interval of the percentile bootstrap: the middle 95 % of the draws.

    It says how much depends on the choice of the images, not of the weights.
    """
    return np.percentile(drawn, (2.5, 97.5)).tolist()


def intervals(drawn: Mapping[str, Mapping[str, Draws]]) -> dict[str, dict[str, list[float]]]:
    """Set or group -> metric -> its `interval`."""
    return {name: {m: interval(values) for m, values in row.items()} for name, row in drawn.items()}
