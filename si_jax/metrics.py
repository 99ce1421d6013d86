"""How well scores separate in-distribution (ID) images from out-of-distribution (OOD) ones.

Scores are higher for images that look more in-distribution; every value is a fraction.
"""

import numpy as np
from jaxtyping import Float
from sklearn import metrics as skm

IdScores = Float[np.ndarray, "known"]
OodScores = Float[np.ndarray, "novel"]

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
        "auroc": float(skm.roc_auc_score(is_known, scores)),
        "fpr95": fpr95(known, novel),
        "fpr95_ood_positive": fpr95_ood_positive(known, novel),
        "aupr_in": float(skm.average_precision_score(is_known, scores)),
        "aupr_out": float(skm.average_precision_score(~is_known, -scores)),
        "detection_error": float(np.min(len(known) - tp + fp) / len(scores)),
        "auin": _precision_area(tp, fp),
        "auout": _precision_area((len(novel) - fp)[::-1], (len(known) - tp)[::-1]),
    }


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
