"""Metrics against the published code's values, scikit-learn, and by hand."""

import json
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
def test_published_values(name):
    golden = SETS[name]
    found = metrics.evaluate(np.array(golden["known"]), np.array(golden["novel"]))
    for theirs, ours in NAMES.items():
        assert found[ours] == pytest.approx(golden[theirs], abs=1e-12), theirs


@pytest.mark.parametrize("name", SETS)
def test_average_precision_is_scikit_learns(name):
    known, novel = np.array(SETS[name]["known"]), np.array(SETS[name]["novel"])
    labels = np.r_[np.ones(len(known)), np.zeros(len(novel))]
    scores = np.r_[known, novel]
    found = metrics.evaluate(known, novel)
    assert found["aupr_in"] == skm.average_precision_score(labels, scores)
    assert found["aupr_out"] == skm.average_precision_score(1 - labels, -scores)
    correct = np.arange(len(known)) % 2 > 0
    found = metrics.evaluate(known, novel, correct)
    assert set(found) == set(metrics.METRICS)
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


def test_ties_at_the_threshold():
    # all alike: none lies strictly above, and all lie at it
    same = np.zeros(20), np.zeros(10)
    assert metrics.fpr95(*same) == 0
    assert metrics.tied_at_threshold(*same) == 10
    assert metrics.fpr95_ood_positive(*same) == 1
    known = np.arange(100.0)  # the threshold is 5
    assert metrics.tied_at_threshold(known, np.array([5.0, 5.0, 4.0, 6.0])) == 2


def test_the_least_threshold_that_catches_95_percent_of_ood():
    # at 1, 95 of 100 OOD images are caught and 20 of 40 ID images rejected; the point lies in line
    # with its neighbours, and is a threshold all the same
    known = np.repeat([0.0, 1.0, 2.0], [0, 20, 20])
    novel = np.repeat([0.0, 1.0, 2.0], [90, 5, 5])
    assert metrics.fpr95_ood_positive(known, novel) == 0.5


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


def test_auroc_counts_ties_half():
    known, novel = np.array([1.0, 2.0]), np.array([1.0, 0.0])
    # pairs: 1-1 tie, 1-0 won, 2-1 won, 2-0 won
    assert metrics.evaluate(known, novel)["auroc"] == pytest.approx(3.5 / 4)


def test_the_two_conventions_of_fpr95_differ():
    known = np.arange(100.0)
    novel = np.r_[np.full(90, -1.0), np.full(10, 1000.0)]
    # the threshold at 95 % of ID is 5: the ten outliers lie above it
    assert metrics.fpr95(known, novel) == pytest.approx(0.10)
    # catching 95 % of OOD takes a threshold of 1000: every ID image is rejected
    assert metrics.fpr95_ood_positive(known, novel) == 1.0


def test_threshold_rounds_as_python_does():
    known = np.arange(50.0)  # round(2.5) is 2
    assert metrics.fpr95(known, np.array([2.0, 2.5, 3.0])) == pytest.approx(2 / 3)


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
