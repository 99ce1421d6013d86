"""Metrics that ask whether images are classified right: OSCR and the calibration error."""

import numpy as np
from jaxtyping import Bool, Float

PROBABILITIES = ("msp", "temperature-scaling")
"""Detectors whose score is the probability of the predicted class."""

BINS = 15


def oscr(
    id_scores: Float[np.ndarray, "known"],
    ood_scores: Float[np.ndarray, "novel"],
    correct: Bool[np.ndarray, "known"],
) -> float:
    """Open-set classification rate: area under the share that is accepted and classified right.

    Over all thresholds, the share of in-distribution images that are accepted and classified right,
    against the share of out-of-distribution images accepted (Dhamija et al., NeurIPS 2018). That is
    the chance that an in-distribution image is classified right and has a higher score than an
    out-of-distribution image, ties counting half; at most the accuracy, and at most the AUROC.

    Args:
        id_scores: (n,) scores of in-distribution images.
        ood_scores: (m,) scores of out-of-distribution images.
        correct: (n,) whether each in-distribution image is classified right.

    Returns:
        A fraction; 1 is best.

    Raises:
        ValueError: if a set is empty, or a score is not finite.
    """
    if not len(ood_scores) or not len(id_scores):
        raise ValueError("id_scores and ood_scores must hold at least one score each")
    if not (np.isfinite(id_scores).all() and np.isfinite(ood_scores).all()):
        raise ValueError("id_scores and ood_scores must hold finite scores")
    ordered, right = np.sort(ood_scores), id_scores[correct]
    won = sum(np.searchsorted(ordered, right, side).sum() for side in ("left", "right"))
    return float(won / 2 / len(id_scores) / len(ood_scores))


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
