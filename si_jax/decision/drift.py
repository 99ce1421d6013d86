"""Watch an endless stream, and say when more of it is rejected than the threshold allows."""

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import beta

from si_jax.detectors import Detector
from si_jax.detectors.options import Count, convert
from si_jax.detectors.predictions import check_calibrated, check_preprocessing, predicted
from si_jax.detectors.threshold import Threshold

BETS = 16
"""Shares that are bet on, even in the log-odds from just above the calibrated share to 99 %."""

MAX_STAKE = 1e200
"""Where a stake stops to grow, so that it remains a number."""

Stakes = Float[np.ndarray, "*streams bets"]


@dataclass(frozen=True)
class Observation:
    """One image of a stream.

    Attributes:
        index: its place in the stream, from 0.
        label, probability, score, is_ood, p_value: as of `Predictions`.
        window_share: share of out-of-distribution images among the last `window`.
        wealth: of the test martingale, which begins with 1.
        drift: whether an alarm has been raised, at this image or before.
    """

    index: int
    label: int
    probability: float
    score: float
    is_ood: bool
    p_value: float
    window_share: float
    wealth: float
    drift: bool


class DriftTest:
    """A sequential test of "no more is rejected than the threshold rejects in-distribution".

    Let r be a bound on the share of in-distribution images that are rejected. For the threshold at
    hand that share is distributed as Beta(k, n + 1 - k) over calibration sets (see `Threshold`),
    and r is its upper `alpha / 2` quantile. A bet on the share q > r multiplies its stake by `q /
    r` for a rejected image and by `(1 - q) / (1 - r)` for an accepted one: a test martingale, or a
    supermartingale if fewer are rejected (Waudby-Smith & Ramdas, JRSS B 2024; Vovk et al., "Testing
    exchangeability on-line", ICML 2003). One part of the capital is staked on each of `BETS` shares
    q, and of each part `1 / (s (s + 1))` enters the game at image s = 1, 2, ..., so that a drift
    that begins late is detected too (a mixture over change points; Shin, Ramdas & Rinaldo,
    "E-detectors", NEJSDS 2024, in their form with a false-alarm probability). All that is one
    supermartingale that begins with 1, so by Ville's inequality it exceeds `2 / alpha` at any time
    with probability at most `alpha / 2`.

    Together: **with probability at least 1 - alpha no alarm is ever raised on a stream of
    independent images as in the calibration**, over the draw of both. Frames of a video, which are
    much alike, are not independent: sample them.

    Args:
        threshold: of the calibrated detector.
        alpha: most probability of a false alarm, ever.

    Attributes:
        bound: r.
        wealth: of the test martingale now.
        drift: whether it has ever reached `2 / alpha`.
    """

    def __init__(self, threshold: Threshold, alpha: float = 0.01):
        if isinstance(alpha, bool) or not 0 < alpha < 1:
            raise ValueError(f"alpha (={alpha!r}) must be between 0 and 1, such as 0.01")
        self.alpha = float(alpha)
        self.bound = rejection_bound(threshold, alpha / 2)
        self.reset()

    def reset(self) -> None:
        """Begin anew, as after an alarm that has been dealt with."""
        self.count, self.drift, self.wealth = 0, False, 1.0
        self._stakes = np.zeros(BETS)

    def update(self, is_ood: bool) -> float:
        """Take in one image's verdict; returns the wealth."""
        self.count += 1
        self._stakes, wealth = step(self._stakes, np.bool_(is_ood), self.count, self.bound)
        self.wealth = float(wealth)
        self.drift |= self.wealth >= 2 / self.alpha
        return self.wealth


def rejection_bound(threshold: Threshold, delta: float) -> float:
    """Share that in-distribution images are rejected at most, with probability 1 - delta."""
    return float(beta.ppf(1 - delta, threshold.rank, threshold.count + 1 - threshold.rank))


def step(stakes: Stakes, rejected: Any, number: int, bound: float) -> tuple[Stakes, Any]:
    """After image `number` (from 1), the stakes; and these with what has not entered the game."""
    won, lost = _factors(bound)
    entering = 1 / (number * (number + 1)) / BETS
    stakes = (stakes + entering) * np.where(np.asarray(rejected)[..., None], won, lost)
    stakes = np.minimum(stakes, MAX_STAKE)
    return stakes, stakes.sum(axis=-1) + 1 / (number + 1)


@functools.cache
def _factors(bound: float) -> tuple[np.ndarray, np.ndarray]:
    """What each bet multiplies its stake by, for a rejected image and for an accepted one."""
    odds = np.linspace(np.log(bound / (1 - bound)), np.log(99), BETS + 1)[1:]
    share = 1 / (1 + np.exp(-odds))
    return share / bound, (1 - share) / (1 - bound)


def monitor(
    detector: Detector,
    images: Iterable[Any],
    *,
    alpha: float = 0.01,
    window: int = 500,
    batch_size: int | None = None,
) -> Iterator[Observation]:
    """Score an endless stream in order and in bounded memory, and say when it drifts.

    Args:
        detector: calibrated.
        images: single images or batches of them, in any form that `Detector.score` takes.
        alpha: most probability of a false alarm, ever; see `DriftTest`.
        window: images that `window_share` is of.
        batch_size: images that are gathered before they are scored; None for the detector's. 1
            gives every verdict at once.

    Yields:
        An `Observation` of each image.

    Raises:
        ValueError: if the detector is not calibrated or an argument makes no sense, at once; or an
            image cannot be read or does not fit the model.
    """
    threshold = check_calibrated(detector)
    check_preprocessing(detector)
    window = convert(Count, "window", window)
    size = detector.batch_size if batch_size is None else convert(Count, "batch_size", batch_size)
    test = DriftTest(threshold, alpha)

    def observations() -> Iterator[Observation]:
        recent: deque[bool] = deque(maxlen=window)
        rejected = 0
        # one batch is asked for, scored and given back before the next: no verdict waits
        for _, rows in predicted(detector, images, batch_size=size, ahead=0, may_be_empty=True):
            for values in zip(*(column.tolist() for column in rows.values()), strict=True):
                row = dict(zip(rows, values, strict=True))
                rejected += row["is_ood"] - (recent[0] if len(recent) == window else 0)
                recent.append(row["is_ood"])
                wealth, share = test.update(row["is_ood"]), rejected / len(recent)
                yield Observation(
                    test.count - 1, **row, window_share=share, wealth=wealth, drift=test.drift
                )

    return observations()
