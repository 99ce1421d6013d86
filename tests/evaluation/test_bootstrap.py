import time

import numpy as np
import pytest

from si_jax.evaluation import metrics


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


@pytest.mark.parametrize("seed", range(20))
def test_metrics_of_counts_are_the_metrics(seed):
    known, novel = scores(seed, 40 + seed, 50 - seed, tied=seed % 2)
    values, places = np.unique(np.concatenate([known, novel]), return_inverse=True)
    counts = [np.bincount(p, minlength=len(values)) for p in np.split(places, [len(known)])]
    for name, value in metrics.evaluate(known, novel).items():
        found = metrics.METRICS[name].of(metrics.Counts(*counts))
        assert found == pytest.approx(value, abs=1e-12), name


def test_interval_covers_the_true_auroc_about_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        known, novel = scores(seed, 80, 80, tied=False)
        low, high = intervals(known, novel, metrics=("auroc",), resamples=100)["auroc"]
        covered += low <= 0.71420 <= high  # Phi(0.8 / sqrt 2)
    assert 87 <= covered <= 100


def test_separated_and_constant_scores():
    known, novel = np.arange(10.0) + 100, np.arange(5.0)
    found = intervals(known, novel, metrics=("auroc", "fpr95", "detection_error"))
    assert found == {"auroc": [1, 1], "fpr95": [0, 0], "detection_error": [0, 0]}
    same = intervals(np.ones(7), np.ones(9))
    assert same == {"auroc": [0.5, 0.5], "fpr95": [0, 0]}


def test_seed_decides():
    pair = scores(0, 50, 50, tied=False)
    assert intervals(*pair, seed=1) == intervals(*pair, seed=1)
    assert intervals(*pair, seed=1) != intervals(*pair, seed=2)


def test_ten_thousand_images_take_seconds():
    known, novel = scores(0, 10_000, 10_000, tied=False)
    began = time.process_time()
    low, high = intervals(known, novel)["auroc"]
    assert time.process_time() - began < 5
    assert 0.01 < high - low < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ("auroc", "roc")}, "'roc'"),
        ({"resamples": 1}, "resamples"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        intervals(np.arange(3.0), np.arange(3.0), **arguments)


def test_wrong_scores_are_named():
    with pytest.raises(ValueError, match="ood_scores"):
        intervals(np.arange(3.0), np.array([1.0, np.nan]))
