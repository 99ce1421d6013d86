import dataclasses
import json

import numpy as np
import pytest

import study_calibrated
from si_jax.data import benchmarks
from si_jax.detectors import DETECTORS
from si_jax.detectors.si_c.readings import reader
from si_jax.evaluation import metrics, results
from si_jax.reporting import html, runs
from study import ablations, cases, comparison, report
from study.ablations import ALL, Fit
from study.readings import fewer_channels, read_case

DRAWS = {"calibration": 100, "seeds": 2, "seed": 2}
"""With this seed no image has a unit within rounding of zero, which one program might see on and
another off: readings and scores are of two programs."""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study") / "results"
    counts = [f"--{name}={value}" for name, value in DRAWS.items()]
    names = ["--detectors", "si-c", "lts"]
    options = ["--network", "digits=digits", "--protocols", "published", "--resamples=20"]
    with pytest.MonkeyPatch.context() as patch:  # the study has its own intervals and figures
        patch.setattr(results, "intervals", lambda job, arrays: {})
        patch.setattr(html, "write", lambda run, directory: directory / "report.html")
        study_calibrated.main([*options, *names, *counts, "--limit=40", "--out", str(directory)])
    return directory


@pytest.fixture(scope="module")
def found(out):
    """The one case of the JSON."""
    (case,) = json.loads((out / "study.json").read_text())["cases"]
    return case


@pytest.fixture(scope="module")
def case():
    (network,) = cases.load_networks(["digits=digits"]).items()
    return cases.prepare(network[0], *network[1], benchmarks.resolve("digits"), **DRAWS)


@pytest.fixture(scope="module")
def readings(case):
    return read_case(case, cases.test_sets(case, 40, DRAWS["seed"]))


def test_one_run(out, found):
    result = found["results"]
    forms = {f"si-c-{form}" for form in comparison.FORMS}
    assert set(result["results"]) == {*forms, "lts", "lts-85", "msp"}
    assert result["settings"]["lts-85"]["percentile"] == 85 and not found["failures"]
    calibration = {"set": "digits_train", "images": 100, "draws": 2, "disjoint_draws": 2}
    assert found["calibration"] == calibration | {"note": ""}
    for name, rows in result["intervals"].items():
        low, high = rows["far"]["auroc"]
        assert low <= result["averages"][name]["far"]["auroc"] <= high
    assert found["over_msp"]["msp"]["far"] == {m: [0, 0, 0] for m in comparison.MEASURED}
    for row in found["ablations"]:
        assert bool(row["failure"]) == (row["table"] == "images" and row["images"] > 100)
        assert row["failure"] or ("sd" in row) == (row["draws"] > 1)
    shown = [row["channels"] for row in found["ablations"] if row["table"] == "channels"]
    assert shown == [63, 126, 252, 336] * 4
    means = {n: np.mean(x) for n, x in found["layers"]["rejected"].items()}
    assert np.shape(found["layers"]["band"]) == (2, 9)
    assert means["photos"] > means["in-distribution"]
    text = (out / "study.txt").read_text()
    for words in (*report.ABLATIONS.values(), "there are 100 to calibrate on", "Summary", "lts-85"):
        assert words in text
    pictures = list((out / "digits-digits" / "published").glob("*.png"))
    assert len(pictures) == 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_an_ablation_is_the_detector(case, out, readings):
    arrays = runs.load(out / case.name / "evaluation").arrays
    _, by_form = ablations.scores(readings, Fit(ALL), comparison.FORMS)
    for form, sets in by_form.items():
        for image_set, scores in sets.items():
            expected = arrays[image_set][f"si-c-{form}"]["score"]
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)


def test_fewer_channels_are_those_of_the_detector(case, readings):
    for count in (30, 100, 5000):
        places, channels = fewer_channels(readings.channels, count)
        expected = reader(case.model, max_channels=count).channels
        for name in ("index", "tap", "positions"):
            np.testing.assert_array_equal(getattr(channels, name), getattr(expected, name))
        np.testing.assert_array_equal(readings.channels.index[places], channels.index)


def test_draws_share_no_image(case):
    halved = dataclasses.replace(case.resolved, train=None, train_absent="nowhere")
    network = (case.network, case.dataset, case.checkpoint, case.model)
    half = cases.prepare(*network, halved, calibration=5000, seeds=3, seed=0)
    assert half.note.startswith("digits_train is absent: half of digits (298 images")
    for pair, sizes in ((case.draws, [100, 100]), ((*half.draws, half.test), [298, 299])):
        names = [{images.ident(i) for i in range(len(images))} for images in pair]
        assert list(map(len, names)) == sizes and not names[0] & names[1]


def test_more_draws_than_sets(readings):
    one = dataclasses.replace(readings, draws=readings.draws[:1])
    means = [ablations.fitted(one, Fit(draw=k, images=50))[0]["mean"] for k in (0, 0, 1)]
    np.testing.assert_array_equal(means[0], means[1])
    assert not np.array_equal(means[0], means[2])


def test_every_variant_is_made_and_a_failure_named(case, monkeypatch):
    def refuse(model):
        raise ValueError("this network has none")

    monkeypatch.setitem(DETECTORS, "energy", dataclasses.replace(DETECTORS["energy"], build=refuse))
    chosen, failures = comparison.detectors([*comparison.VARIANTS, "energy"], case.model)
    labels = [label for labels in comparison.VARIANTS.values() for label in labels]
    assert list(chosen) == [*labels, "msp"] and failures == {"energy": "this network has none"}


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    sets = {"id": rng.normal(1, 1, 50), **{name: rng.normal(0, 1, 40) for name in "abc"}}
    groups = {"a": "far", "b": "far", "c": "near"}
    better = {name: scores - (name != "id") for name, scores in sets.items()}
    scores = {"msp": sets, "better": better}
    intervals, differences = comparison.compare(scores, groups, resamples=30, seed=1)
    drawn = metrics.draws(sets["id"], sets["c"], resamples=30, seed=1)
    assert intervals["msp"]["c"]["fpr95"] == metrics.interval(drawn["fpr95"])
    pair = [metrics.auroc(sets["id"], sets[name]) for name in "ab"]
    far = comparison.group_means(sets, groups)["far"]["auroc"]
    assert far == pytest.approx(np.mean(pair))
    gain, low, high = differences["better"]["near"]["auroc"]
    assert 0 < low <= gain <= high


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "digits"], "network digits: write it as DATASET=CHECKPOINT"),
        (["--network", "cifar11=digits"], "network cifar11=digits: unknown dataset 'cifar11'"),
        (["--network", "cifar100=digits"], "has 10 classes, but cifar100 has 100"),
        (["--network", "digits=digits"] * 2, "network digits=digits is given twice"),
        (["--network", "digits=digits", "--detectors", "nose"], "unknown detector 'nose': choose"),
        (["--network", "digits=digits", "--limit", "0"], r"limit \(=0\) must be at least 2"),
        (["--network", "digits=digits", "--out", __file__], "test_study.py is a file"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        study_calibrated.main(options)
