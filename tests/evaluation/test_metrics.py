"""Metrics against the published code's values, scikit-learn, and by hand; their intervals."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as skm

from si_jax.evaluation import metrics

GOLDEN = Path(__file__).parents[1] / "golden"
SETS = json.loads((GOLDEN / "metrics.json").read_text())
NAMES = {
    "FPR": "fpr95",
    "AUROC": "auroc",
    "DTERR": "detection_error",
    "AUIN": "auin",
    "AUOUT": "auout",
}


@pytest.mark.parametrize("name", SETS)
def test_published_values_and_scikit_learns_average_precision(name):
    golden = SETS[name]
    known, novel = np.array(golden["known"]), np.array(golden["novel"])
    correct = np.arange(len(known)) % 2 > 0
    found = metrics.evaluate(known, novel, correct)
    assert set(found) == set(metrics.METRICS)
    for theirs, ours in NAMES.items():
        assert found[ours] == pytest.approx(golden[theirs], abs=1e-12), theirs
    labels = np.r_[np.ones(len(known)), np.zeros(len(novel))]
    scores = np.r_[known, novel]
    assert found["aupr_in"] == skm.average_precision_score(labels, scores)
    assert found["aupr_out"] == skm.average_precision_score(1 - labels, -scores)
    above = (known[:, None] > novel) + 0.5 * (known[:, None] == novel)
    assert found["oscr"] == pytest.approx((above * correct[:, None]).mean(), abs=1e-12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_areas_and_errors_are_scikit_learns(seed, tied):
    rng = np.random.default_rng(seed)
    known, novel = rng.normal(0.8, 1, 40 + seed), rng.normal(0, 1, 50 - seed)
    if tied:
        known, novel = np.round(known), np.round(novel)
    labels, scores = np.r_[np.ones(len(known)), np.zeros(len(novel))], np.r_[known, novel]
    found = metrics.evaluate(known, novel)
    assert found["auroc"] == pytest.approx(skm.roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.auroc(known, novel) == found["auroc"]
    fpr, tpr, _ = skm.roc_curve(1 - labels, -scores, drop_intermediate=False)
    assert found["fpr95_ood_positive"] == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)
    fpr, tpr, _ = skm.roc_curve(labels, scores, drop_intermediate=False)
    wrong = (1 - tpr) * len(known) + fpr * len(novel)
    assert found["detection_error"] == pytest.approx(wrong.min() / len(scores), abs=1e-12)


FPR95 = {
    "all alike: none lies strictly above, all lie at it": (np.zeros(20), np.zeros(10), 0, 1, 10),
    "the threshold is 5": (np.arange(100.0), np.array([5.0, 5.0, 4.0, 6.0]), 1 / 4, 7 / 100, 2),
    "round(2.5) is 2": (np.arange(50.0), np.array([2.0, 2.5, 3.0]), 2 / 3, 4 / 50, 1),
    # ten outliers lie above the threshold; to catch 95 % of OOD, every ID image is rejected
    "outliers": (np.arange(100.0), np.r_[np.full(90, -1.0), np.full(10, 1000.0)], 0.1, 1, 0),
    # at 1, 95 of 100 OOD images are caught and 20 of 40 ID images rejected; the point lies in line
    # with its neighbours, and is a threshold all the same
    "in line": (np.repeat([1.0, 2.0], 20), np.repeat([0.0, 1.0, 2.0], [90, 5, 5]), 0.05, 0.5, 5),
}
"""Case -> ID and OOD scores, FPR95 by both conventions, and ties at the published threshold."""


@pytest.mark.parametrize("case", FPR95)
def test_fpr95_by_hand(case):
    known, novel, published, openood, ties = FPR95[case]
    assert metrics.fpr95(known, novel) == pytest.approx(published)
    assert metrics.fpr95_ood_positive(known, novel) == pytest.approx(openood)
    assert metrics.tied_at_threshold(known, novel) == ties


def test_a_metric_that_needs_to_know_which_are_correct(monkeypatch):
    def share(counts):
        return float(counts.correct.sum() / counts.id.sum())

    added = metrics.Metric("accuracy", share, True, needs_correct=True)
    monkeypatch.setitem(metrics.METRICS, "accuracy", added)
    known, novel, correct = np.arange(4.0), np.arange(3.0), np.array([True, True, True, False])
    assert metrics.evaluate(known, novel, correct)["accuracy"] == 0.75
    assert "accuracy" not in metrics.evaluate(known, novel)
    options = {"metrics": ("accuracy",), "resamples": 50}
    drawn = metrics.draws(known, novel, correct=correct, **options)
    low, high = metrics.interval(drawn["accuracy"])
    assert 0 <= low < 0.75 <= high <= 1
    with pytest.raises(ValueError, match="'accuracy' needs `correct`"):
        metrics.draws(known, novel, **options)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.array([]), "at least one score"),
        (np.zeros((2, 2)), "one-dimensional"),
        (np.array([0.0, np.nan]), "NaN or infinite"),
        (np.array([0.0, np.inf]), "NaN or infinite"),
        (np.array(["a"]), "numbers"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_scores_are_refused_by_name(scores, message):
    good = np.array([0.0, 1.0])
    with pytest.raises(ValueError, match=rf"ood_scores.*{message}"):
        metrics.evaluate(good, scores)
    with pytest.raises(ValueError, match=rf"id_scores.*{message}"):
        metrics.fpr95(scores, good)


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
    found = metrics.calibration_error(probability, correct)
    assert found == pytest.approx(by_hand(probability, correct), abs=1e-12)
    assert found > 0.1


def test_its_ends():
    sure = np.ones(4, np.float32)
    assert metrics.calibration_error(sure, np.ones(4, bool)) == 0
    assert metrics.calibration_error(sure, np.zeros(4, bool)) == 1
    for probability in (np.array([0.5, 1.1]), np.array([np.nan, 0.5]), np.zeros(0)):
        with pytest.raises(ValueError, match="in \\[0, 1\\]"):
            metrics.calibration_error(probability, np.ones(len(probability), bool))


def scores(seed, n, m, *, tied):
    rng = np.random.default_rng(seed)
    known, novel = rng.normal(0.8, 1, n), rng.normal(0, 1, m)
    return (np.round(known), np.round(novel)) if tied else (known, novel)


def intervals(*pair, **options):
    return {m: metrics.interval(x) for m, x in metrics.draws(*pair, **options).items()}


def slow(known, novel, correct, resamples, seed):
    """The same draws, each measured as a pair of score sets is."""
    draws = [np.random.default_rng([seed, which]) for which in (0, 1)]
    rows = []
    for _ in range(resamples):
        chosen, others = (
            rng.integers(len(s), size=len(s)) for s, rng in zip((known, novel), draws, strict=True)
        )
        rows.append(metrics.evaluate(known[chosen], novel[others], correct[chosen]))
    return {m: np.percentile([row[m] for row in rows], (2.5, 97.5)) for m in metrics.METRICS}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("n", "m"), [(60, 35), (23, 90), (1, 3)])
def test_equals_a_loop_over_resampled_scores(n, m, tied):
    known, novel = scores(n, n, m, tied=tied)
    correct = np.arange(n) % 3 > 0
    expected = slow(known, novel, correct, 40, seed=5)
    options = {"metrics": tuple(metrics.METRICS), "resamples": 40, "seed": 5, "correct": correct}
    found = intervals(known, novel, **options)
    assert list(found) == list(metrics.METRICS)
    for name, interval in found.items():
        np.testing.assert_allclose(interval, expected[name], atol=1e-12, err_msg=name)


def test_interval_covers_the_true_auroc_about_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        known, novel = scores(seed, 80, 80, tied=False)
        low, high = intervals(known, novel, metrics=("auroc",), resamples=100)["auroc"]
        covered += low <= 0.71420 <= high  # Phi(0.8 / sqrt 2)
    assert 87 <= covered <= 100


def test_separated_and_constant_scores_and_seeds():
    known, novel = np.arange(10.0) + 100, np.arange(5.0)
    found = intervals(known, novel, metrics=("auroc", "fpr95", "detection_error"))
    assert found == {"auroc": [1, 1], "fpr95": [0, 0], "detection_error": [0, 0]}
    same = intervals(np.ones(7), np.ones(9))
    assert same == {"auroc": [0.5, 0.5], "fpr95": [0, 0]}
    pair = scores(0, 50, 50, tied=False)
    assert intervals(*pair, seed=1) == intervals(*pair, seed=1) != intervals(*pair, seed=2)


def test_ten_thousand_images_take_seconds():
    known, novel = scores(0, 10_000, 10_000, tied=False)
    began = time.process_time()
    low, high = intervals(known, novel)["auroc"]
    assert time.process_time() - began < 5
    assert 0.01 < high - low < 0.02


def test_wrong_arguments_are_named():
    for arguments, message in (
        ({"metrics": ("auroc", "roc")}, "'roc'"),
        ({"resamples": 1}, "resa"),
    ):
        with pytest.raises(ValueError, match=message):
            intervals(np.arange(3.0), np.arange(3.0), **arguments)
