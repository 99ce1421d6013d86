import numpy as np
import pytest

from si_jax.evaluation.calibration import calibration_error


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
