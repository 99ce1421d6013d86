"""How well probabilities are calibrated: whether what is 80 % sure is right 80 times of 100."""

import numpy as np
from jaxtyping import Bool, Float

PROBABILITIES = ("msp", "temperature-scaling")
"""Detectors whose score is the probability of the predicted class."""

BINS = 15


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
