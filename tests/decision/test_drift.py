"""Drift is detected, and false alarms are as rare as stated."""

import itertools

import numpy as np
import pytest
from pictures import noise, write
from scipy.stats import binom

import si_jax
from si_jax.decision.drift import BETS, DriftTest, rejection_bound, step
from si_jax.detectors.threshold import Threshold


def calibrated_streams(rng, streams, count, tpr):
    """Share of in-distribution images that each of many calibrations rejects, exactly."""
    scores = np.sort(rng.uniform(size=(streams, count)), axis=-1)
    rank = Threshold(scores[0].astype(np.float32), tpr).rank
    return scores[:, rank - 1]


@pytest.mark.parametrize(("count", "tpr"), [(100, 0.95), (500, 0.9)])
def test_false_alarms_are_as_rare_as_stated(count, tpr):
    """Over calibration sets and streams at once, for a large alpha, where they can be counted."""
    rng = np.random.default_rng(0)
    alpha, streams, length = 0.2, 2000, 1500
    rejected = calibrated_streams(rng, streams, count, tpr)
    threshold = Threshold(np.arange(count, dtype=np.float32), tpr)
    bound = rejection_bound(threshold, alpha / 2)
    assert abs(np.mean(rejected > bound) - alpha / 2) < 0.03  # which the bound allows for
    stakes, alarmed = np.zeros((streams, BETS)), np.zeros(streams, bool)
    for number in range(1, length + 1):
        ood = rng.uniform(size=streams) < rejected
        stakes, wealth = step(stakes, ood, number, bound)
        alarmed |= wealth >= 2 / alpha
    assert alarmed.sum() <= binom.ppf(0.999, streams, alpha)


def test_at_the_bound_itself_wealth_is_a_martingale():
    """The expectation of the next wealth, from any stakes, is the wealth now."""
    rng = np.random.default_rng(1)
    stakes, bound = rng.uniform(size=BETS), 0.07
    now = stakes.sum() + 1 / 5  # after four images
    after = [step(stakes, verdict, 5, bound)[1] for verdict in (True, False)]
    np.testing.assert_allclose(bound * after[0] + (1 - bound) * after[1], now, rtol=1e-12)
    fewer = 0.03
    assert fewer * after[0] + (1 - fewer) * after[1] < now


@pytest.mark.parametrize(("before", "share", "within"), [(0, 0.5, 40), (2000, 0.3, 150)])
def test_drift_is_detected_early_and_late(before, share, within):
    threshold = Threshold(np.arange(500, dtype=np.float32), 0.95)
    rng = np.random.default_rng(2)
    late = 0
    for _ in range(10):
        test = DriftTest(threshold, alpha=0.01)
        for ood in rng.uniform(size=before) < 0.05:
            test.update(bool(ood))
        if test.drift:  # a false alarm, one in a hundred
            continue
        for ood in rng.uniform(size=within) < share:
            test.update(bool(ood))
        late += not test.drift
    assert late <= 1
    test.reset()
    assert (test.count, test.drift, test.wealth) == (0, False, 1.0)


def test_wealth_remains_a_number():
    test = DriftTest(Threshold(np.arange(100, dtype=np.float32), 0.95))
    for _ in range(5000):
        assert np.isfinite(test.update(True))
    assert test.drift
    for _ in range(5000):
        assert np.isfinite(test.update(False))
    assert test.drift  # an alarm stands until it is reset


def test_an_endless_stream_is_scored_in_order(energy, tmp_path):
    detector, images = si_jax.load_detector(energy), noise(30, seed=4)
    asked = []

    def endless():
        for image in itertools.cycle(images):
            asked.append(1)
            yield image

    observations = si_jax.monitor(detector, endless(), window=10, batch_size=4)
    seen = [next(observations) for _ in range(30)]
    assert len(asked) <= 33  # no more than a batch ahead
    for place in (5, 29):
        recent = [o.is_ood for o in seen[max(0, place - 9) : place + 1]]
        assert seen[place].window_share == pytest.approx(np.mean(recent))
    path = write(tmp_path / "2.png", images[2])
    mixed = [*images[:2], path, *images[3:7], images[7:20], list(images[20:])]
    again = list(si_jax.monitor(detector, mixed, window=10, batch_size=4))
    scores = detector.score(images)
    for observed in (seen, again):
        np.testing.assert_allclose([o.score for o in observed], scores, rtol=1e-5)
        assert [o.index for o in observed] == list(range(30))


@pytest.mark.usefixtures("unchecked")
def test_mistakes(tiny, energy):
    detector = si_jax.load_detector(energy)
    with pytest.raises(ValueError, match="no threshold"):
        si_jax.monitor(si_jax.make_detector("energy", tiny), [])
    for option, value in (("alpha", 0), ("window", 0), ("batch_size", True)):
        with pytest.raises(ValueError, match=option):
            next(si_jax.monitor(detector, [], **{option: value}))
