import numpy as np
import pytest

from si_jax.evaluation import metrics
from si_jax.evaluation.metrics import calibration_error


def by_hand(probability, correct, bins=15):
    total = 0.0
    for low in range(bins):
        inside = (probability > low / bins) & (probability <= (low + 1) / bins)
        if low == 0:
            inside |= probability == 0
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - probability[inside].mean())
    return total


def test_calibration_error_against_its_definition():
    rng = np.random.default_rng(0)
    probability = rng.uniform(0, 1, 500)
    probability[:3] = 0, 1, 0.2
    correct = rng.uniform(0, 1, 500) < probability**2
    found = calibration_error(probability, correct)
    assert found == pytest.approx(by_hand(probability, correct), abs=1e-12)
    assert found > 0.1


def test_its_ends():
    sure = np.ones(4, np.float32)
    assert calibration_error(sure, np.ones(4, bool)) == 0
    assert calibration_error(sure, np.zeros(4, bool)) == 1
    for probability in (np.array([0.5, 1.1]), np.array([np.nan, 0.5]), np.zeros(0)):
        with pytest.raises(ValueError, match="in \\[0, 1\\]"):
            calibration_error(probability, np.ones(len(probability), bool))


def test_oscr_is_the_area_under_its_curve():
    rng = np.random.default_rng(0)
    known, novel = rng.normal(1, 1, 200), rng.normal(0, 1, 150)
    correct = rng.uniform(size=200) < 0.7
    thresholds = np.concatenate([[np.inf], np.sort(np.concatenate([known, novel]))[::-1]])
    right = np.array([(correct & (known >= t)).mean() for t in thresholds])
    accepted = np.array([(novel >= t).mean() for t in thresholds])
    found = metrics.evaluate(known, novel, correct)["oscr"]
    assert found == pytest.approx(np.trapezoid(right, accepted), abs=1e-12)
    assert found < min(correct.mean(), metrics.auroc(known, novel))


def test_oscr_by_hand():
    known, novel = np.array([3.0, 2, 1]), np.array([2.0, 0])
    found = metrics.evaluate(known, novel, np.array([True, True, False]))
    assert found["oscr"] == pytest.approx(3.5 / 6)
