"""From scores to decisions: a threshold that keeps a promised rate, and p-values.

Both are split-conformal: they compare an image's score with those of in-distribution images that
neither the network nor the detector has learnt from, and hold for any network and any detector.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from jaxtyping import Float
from scipy.stats import beta

Scores = Float[np.ndarray, "images"]
LAYER_QUANTILES = (5, 50, 95)
"""Per cent: what is kept of each layer's readings of the calibration images."""


@dataclass(frozen=True)
class Threshold:
    """What a detector knows of held-out in-distribution images.

    With n of them and `k = floor((n + 1) (1 - tpr))`, the threshold is the k-th smallest of their
    scores. A further in-distribution image, exchangeable with them, scores below it with
    probability at most `k / (n + 1) <= 1 - tpr`, over the draw of all n + 1 images: split-conformal
    prediction (Papadopoulos et al., ECML 2002; Lei et al., JASA 2018). For the calibration images
    at hand, the rate of accepted images is distributed as Beta(n + 1 - k, k) (Vovk, ACML 2012,
    proposition 2a), of which `interval` gives the quantiles.

    Attributes:
        scores: (n,) float32, the calibration images' scores, ascending.
        tpr: promised share of in-distribution images that are accepted.
        preprocessing: how files were brought to the network's input size, in words; empty where the
            images came in that size.
        layers: name of a per-layer detail, such as `"tap_density"` -> (3, layers), the
            `LAYER_QUANTILES` of the calibration images.
        examples: thumbnails of some calibration images, (m, height, width, channels) uint8.
        example_features: (m, features), what the network makes of them, scaled to length 1.
    """

    scores: Scores
    tpr: float = 0.95
    preprocessing: str = ""
    layers: Mapping[str, Float[np.ndarray, "quantiles layers"]] = field(default_factory=dict)
    examples: np.ndarray | None = None
    example_features: Float[np.ndarray, "examples features"] | None = None

    def __post_init__(self):
        if not (isinstance(self.tpr, int | float | np.floating) and 0 < self.tpr < 1):
            raise ValueError(f"tpr (={self.tpr}) must be a number between 0 and 1, such as 0.95")
        if np.isnan(self.scores).any():
            raise ValueError(
                "a calibration image's score is NaN: the network's weights or the images are broken"
            )
        if not self.rank:
            needed = math.ceil(1 / _exact(self.tpr)) - 1
            raise ValueError(
                f"{self.count} calibration images are too few to promise tpr={self.tpr}: the"
                f" threshold would be minus infinity; give at least {needed}"
            )

    @property
    def count(self) -> int:
        """Number of calibration images, n."""
        return len(self.scores)

    @property
    def rank(self) -> int:
        """k: which of the scores is the threshold, from 1."""
        return math.floor((self.count + 1) * _exact(self.tpr))

    @property
    def value(self) -> float:
        """The threshold; lower scores are out-of-distribution."""
        return float(self.scores[self.rank - 1])

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share of in-distribution images that this threshold accepts."""
        low, high = beta.ppf([0.025, 0.975], self.count + 1 - self.rank, self.rank)
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"threshold {self.value:.4g}, to accept {self.tpr:.4g} of in-distribution images"
            f" ({self.count} calibration images; 95 % interval {low:.3f} to {high:.3f})"
        )


def p_values(calibration: Scores, scores: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """`(1 + #{calibration scores at most this one}) / (1 + n)`; calibration scores are ascending.

    Of an in-distribution image it is at most a with probability at most a, for every a (Bates et
    al., Annals of Statistics 2023, eq. 1). It is at most `1 - tpr` just where the score is below
    the threshold.
    """
    below = np.searchsorted(calibration, scores, side="right")
    return (1 + below) / (1 + len(calibration))


def _exact(tpr: float) -> Fraction:
    """`1 - tpr` of the decimal number that was written, so that 10 * (1 - 0.9) is 1."""
    return 1 - Fraction(repr(float(tpr)))
