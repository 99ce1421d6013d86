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
def test_values_are_the_published_codes_and_scikit_learns(name):
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
    fpr, tpr, _ = skm.roc_curve(1 - labels, -scores, drop_intermediate=False)
    assert found["fpr95_ood_positive"] == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)
    above = (known[:, None] > novel) + 0.5 * (known[:, None] == novel)
    assert found["oscr"] == pytest.approx((above * correct[:, None]).mean(), abs=1e-12)
    assert metrics.auroc(known, novel) == found["auroc"] == pytest.approx(above.mean(), abs=1e-12)


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
    drawn = metrics.draws(known, novel, correct=correct, metrics=("accuracy",), resamples=50)
    low, high = metrics.interval(drawn["accuracy"])
    assert 0 <= low < 0.75 <= high <= 1


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


def test_calibration_error_against_its_definition():
    rng = np.random.default_rng(0)
    probability = rng.uniform(0, 1, 500)
    probability[:3] = 0, 1, 0.2
    correct = rng.uniform(0, 1, 500) < probability**2
    bins = np.maximum(np.ceil(probability * 15), 1)
    gaps = [(correct[bins == b] - probability[bins == b]).sum() for b in range(1, 16)]
    found = metrics.calibration_error(probability, correct)
    assert found == pytest.approx(np.abs(gaps).sum() / 500, abs=1e-12)
    assert found > 0.1
    sure = np.ones(4, np.float32)
    assert metrics.calibration_error(sure, np.ones(4, bool)) == 0
    assert metrics.calibration_error(sure, np.zeros(4, bool)) == 1
    for wrong in (np.array([0.5, 1.1]), np.array([np.nan, 0.5]), np.zeros(0)):
        with pytest.raises(ValueError, match="in \\[0, 1\\]"):
            metrics.calibration_error(wrong, np.ones(len(wrong), bool))


@pytest.mark.parametrize(("n", "m", "tied"), [(60, 35, False), (23, 90, True), (1, 3, True)])
def test_intervals_are_those_of_a_loop_over_resampled_scores(n, m, tied):
    rng = np.random.default_rng(n)
    known, novel, correct = rng.normal(0.8, 1, n), rng.normal(0, 1, m), np.arange(n) % 3 > 0
    if tied:
        known, novel = np.round(known), np.round(novel)
    first, second = (np.random.default_rng([5, which]) for which in (0, 1))
    rows = []
    for _ in range(40):
        chosen, others = first.integers(n, size=n), second.integers(m, size=m)
        rows.append(metrics.evaluate(known[chosen], novel[others], correct[chosen]))
    names = tuple(metrics.METRICS)
    options = {"metrics": names, "resamples": 40, "seed": 5, "correct": correct}
    drawn = metrics.draws(known, novel, **options)
    assert tuple(drawn) == names
    for name, values in drawn.items():
        expected = np.percentile([row[name] for row in rows], (2.5, 97.5))
        np.testing.assert_allclose(metrics.interval(values), expected, atol=1e-12, err_msg=name)


def test_ten_thousand_images_take_seconds():
    rng = np.random.default_rng(0)
    known, novel = rng.normal(0.8, 1, 10_000), rng.normal(0, 1, 10_000)
    began = time.process_time()
    low, high = metrics.interval(metrics.draws(known, novel)["auroc"])
    assert time.process_time() - began < 5
    assert 0.01 < high - low < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ("auroc", "roc")}, "'roc'"),
        ({"resamples": 1}, "resamples"),
        ({"metrics": ("oscr",)}, "'oscr' needs `correct`"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.draws(np.arange(3.0), np.arange(3.0), **arguments)
