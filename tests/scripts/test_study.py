import dataclasses
import json

import numpy as np
import pytest

import study_calibrated
from si_jax.batching import Batched
from si_jax.data import benchmarks
from si_jax.detectors.si_c.method import FORWARD
from si_jax.detectors.si_c.readings import reader
from si_jax.evaluation import bootstrap, metrics
from si_jax.evaluation.store import Store
from si_jax.reporting.panels import encode
from study import ablations, measures, report, rivals
from study.ablations import ALL, Fit
from study.readings import by_tap, fewer_channels, read_case
from study.sets import load_networks, prepare

COUNTS = {"limit": 40, "calibration": 100, "seeds": 2, "seed": 2}
"""With this seed no image has a unit within rounding of zero, which one program might see on and
another off: readings and scores are of two programs."""
OPTIONS = [
    *("--network", "digits=digits", "--protocols", "published", "--resamples", "20"),
    *("--detectors", "si-c", "si-c-forward", "energy", "knn"),
    *(word for name, value in COUNTS.items() for word in (f"--{name}", str(value))),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study") / "results"
    study_calibrated.main([*OPTIONS, "--out", str(directory)])
    return directory


@pytest.fixture(scope="module")
def case():
    (network,) = load_networks(["digits=digits"])
    return prepare(network, benchmarks.resolve("digits"), **COUNTS)


@pytest.fixture(scope="module")
def directory(out):
    return out / "digits-digits" / "published"


@pytest.fixture(scope="module")
def readings(case, directory):
    return read_case(case, directory / "readings")


def load(out):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((out / "study.json").read_text(), parse_constant=refuse)


def test_the_json_holds_all(out):
    study = load(out)
    assert study["unfinished"] == [] and study["seeds"] == 2 and "jax" in study["versions"]
    (case,) = study["cases"]
    assert case["network"] == "digits-digits" and case["protocol"] == "published"
    assert case["checkpoint"] == "digits" and len(case["model"]["weights_sha256"]) == 64
    assert case["accuracy"] > 0.9 and case["counts"]["digits"] == 40
    assert case["calibration"] == {
        "set": "digits_train",
        "images": 100,
        "draws": 2,
        "disjoint_draws": 2,
        "note": "",
    }
    forms = {f"{d}-{f}" for d in rivals.CALIBRATED for f in rivals.FORMS}
    assert set(case["results"]) == {*forms, "energy", "knn", "msp"} and not case["failures"]
    for name, rows in case["intervals"].items():
        assert set(rows) == {*case["groups"], "far", "near"}
        low, high = rows["far"]["auroc"]
        assert low <= case["averages"][name]["far"]["auroc"] <= high
    assert case["over_msp"]["msp"] == {g: {m: [0, 0, 0] for m in measures.MEASURED}
                                       for g in ("far", "near")}  # fmt: skip


def test_every_ablation_is_there(out):
    (case,) = load(out)["cases"]
    rows = case["ablations"]
    assert {row["table"] for row in rows} == set(report.ABLATIONS)
    components = [row for row in rows if row["table"] == "components"]
    assert len(components) == 7 * 2 and len({(r["label"], r["form"]) for r in components}) == 14
    for row in rows:
        too_many = row["table"] == "images" and row["images"] > 100
        assert bool(row["failure"]) == too_many
        if too_many:
            assert row["failure"] == f"images (={row['images']}): there are 100 to calibrate on"
        else:
            assert set(row["mean"]) == {"far", "near"} and ("sd" in row) == (row["draws"] > 1)
    for name in report.ABLATIONS:
        table = report.ablation_table(case, name)
        assert len(table.rows) == sum(row["table"] == name for row in rows)
        assert {len(row) for row in table.rows} == {len(table.header)}
    channels = [row["channels"] for row in rows if row["table"] == "channels"]
    assert channels == [63, 126, 252, 336] * 4
    markdown = (out / "study.md").read_text()
    for text in (*report.ABLATIONS.values(), "there are 100 to calibrate on", "Summary"):
        assert text in markdown.replace("\\", "")
    for path in case["figures"].values():
        assert (out / path).read_bytes().startswith(b"\x89PNG")
        assert f"]({path})" in markdown


def test_a_rerun_computes_nothing(out, monkeypatch, capsys):
    before = load(out)

    def refuse(*args, **options):
        raise AssertionError("the network was run again")

    monkeypatch.setattr(Batched, "batch", refuse)
    monkeypatch.setattr(ablations.si_c_fit, "fit", refuse)
    monkeypatch.setattr(ablations, "layers", lambda _: before["cases"][0]["layers"])
    study_calibrated.main([*OPTIONS, "--out", str(out)])
    after = load(out)
    for case in (*before["cases"], *after["cases"]):
        del case["seconds"], case["computed"]
    assert after == before
    printed = capsys.readouterr().out
    for text in ("si-c-hinge", *report.ABLATIONS.values(), "saved"):
        assert text in printed


def test_an_ablation_is_the_detector(case, directory, readings):
    store = Store(directory / "scores")
    for name, components in zip(rivals.CALIBRATED, (ALL, FORWARD), strict=True):
        for form in rivals.FORMS:
            known, novel = ablations.scores(readings, Fit(components), form)
            for image_set, found in ({case.id_set.name: known} | novel).items():
                with np.load(store.path(f"{name}-{form}", image_set)) as file:
                    np.testing.assert_allclose(found, file["score"], rtol=1e-4, atol=1e-3)


def test_fewer_channels_are_those_of_the_detector(case, readings):
    for count in (30, 100, 5000):
        places, channels = fewer_channels(readings.channels, count)
        expected = reader(case.model, max_channels=count).channels
        assert channels.taps == expected.taps
        for name in ("index", "tap", "positions"):
            np.testing.assert_array_equal(getattr(channels, name), getattr(expected, name))
        np.testing.assert_array_equal(readings.channels.index[places], channels.index)
    with pytest.raises(ValueError, match=r"max_channels \(=3\) must be at least 9"):
        fewer_channels(readings.channels, 3)


def test_layers(readings):
    found = ablations.layers(readings)
    density = by_tap(readings.id["density"], readings.channels)
    assert density.shape == (40, 9) and density[:, 3].mean() == found["density"][
        "in-distribution"][3]  # fmt: skip
    assert np.shape(found["band"]) == (2, 9)
    assert set(found["rejected"]) == {"in-distribution", *readings.ood}
    assert np.mean(found["rejected"]["photos"]) > np.mean(found["rejected"]["in-distribution"])


def test_draws_share_no_image(case):
    shown = [{draw.ident(i) for i in range(len(draw))} for draw in case.draws]
    assert [len(names) for names in shown] == [100, 100] and not shown[0] & shown[1]


def test_half_of_the_test_set_stands_in(case):
    found = dataclasses.replace(case.resolved, train=None, train_absent="nowhere")
    halved = prepare(case.network, found, calibration=5000, seeds=3)
    assert len(found.test) == 597 and len(halved.draws) == 1
    first, second = halved.draws[0], halved.id_set
    names = [{s.ident(i) for i in range(len(s))} for s in (first, second)]
    assert [len(n) for n in names] == [298, 299] and not names[0] & names[1]
    assert second.name == "digits_test_half"
    assert halved.note.startswith("digits_train is absent: half of digits (298 images")


def test_it_is_told_which_draws_share_images(out):
    (case,) = load(out)["cases"]
    assert report.calibrated(case) == ("100 images of digits_train; 2 draws that share no image")
    fewer = case | {"calibration": case["calibration"] | {"disjoint_draws": 1, "note": "Half"}}
    assert report.calibrated(fewer) == (
        "100 images of digits_train; 2 draws, 1 of them on images of its own; the others split"
        " the first's anew; Half"
    )


def test_more_draws_than_sets(case, readings):
    one = dataclasses.replace(readings, draws=readings.draws[:1])
    states = [ablations.fitted(one, Fit(draw=k, images=50))[0] for k in (0, 1)]
    assert not np.array_equal(states[0]["mean"], states[1]["mean"])
    same = ablations.fitted(one, Fit(draw=0, images=50))[0]
    np.testing.assert_array_equal(states[0]["mean"], same["mean"])


def test_a_detector_that_fails_is_a_row(case, tmp_path, monkeypatch):
    made = rivals.make_detector

    def make(name, model, **options):
        if name == "energy":
            raise ValueError("this network has none")
        detector = made(name, model, **options)
        if name == "knn":
            monkeypatch.setattr(detector, "fit_batches", lambda _: raising("cannot be fitted"))
        if name == "gen":
            compute = detector.compute
            detector.compute = lambda i, s: {"score": compute(i, s)["score"] * np.nan}
        return detector

    def raising(reason):
        raise ValueError(reason)

    monkeypatch.setattr(rivals, "make_detector", make)
    names = ["energy", "knn", "gen", "max-logit"]
    outcome, scores = rivals.evaluate(case, names, tmp_path, resamples=5)
    assert outcome["failures"]["energy"] == "this network has none"
    assert outcome["failures"]["knn"] == "cannot be fitted"
    assert "not finite" in outcome["failures"]["gen"]
    assert list(outcome["results"]) == ["max-logit", "msp"] == list(scores["photos"])
    entry = {**outcome, "network": "digits", "ablations": []}
    (failed,) = report.failure_tables(entry)
    assert len(failed.rows) == 3
    shown = {row[0].text: row[1].text for row in report.summary([entry]).rows}
    assert shown["knn"] == "failed" and "/" in shown["msp"]


def test_every_variant_can_be_made(case):
    made, failures = rivals.make(tuple(rivals.VARIANTS), case.model)
    assert list(made) == [label for labels in rivals.VARIANTS.values() for label in labels]
    assert not failures and made["lts-85"].settings["percentile"] == 85
    assert made["lts"].settings["percentile"] == 95


def test_measures():
    rng = np.random.default_rng(0)
    known, novel = rng.normal(1, 1, 50), {n: rng.normal(0, 1, 40) for n in "abc"}
    groups = {"a": "far", "b": "far", "c": "near"}
    means = measures.group_means(known, novel, groups)
    pair = [metrics.auroc(known, novel[name]) for name in "ab"]
    assert means["far"]["auroc"] == pytest.approx(np.mean(pair))
    found = measures.drawn(known, novel, groups, resamples=30, seed=1)
    ends = bootstrap.intervals(found)
    draws = bootstrap.draws(known, novel["c"], resamples=30, seed=1)
    assert tuple(ends["c"]["fpr95"]) == bootstrap.interval(draws["fpr95"])
    assert ends["near"] == ends["c"]
    means_of_draws = (found["a"]["auroc"] + found["b"]["auroc"]) / 2
    np.testing.assert_allclose(found["far"]["auroc"], means_of_draws)
    other = {name: scores - 1 for name, scores in novel.items()}
    better = measures.drawn(known, other, groups, resamples=30, seed=1)
    better_means = measures.group_means(known, other, groups)
    gain, low, high = measures.differences(better, found, better_means, means)["near"][
        "auroc"]  # fmt: skip
    assert 0 < low <= gain <= high


def test_figures_without_a_near_set(out):
    from study import figures

    (case,) = load(out)["cases"]
    groups = {"photos": "far"}
    for figure in (
        figures.densities(case["layers"], groups),
        figures.abnormal_taps(case["layers"], groups),
        figures.by_images(case["ablations"], {"far": case["averages"]["msp"]["far"]}),
        figures.by_images([], {}),
    ):
        assert encode(figure, dpi=30)


def test_names_tell_networks_apart(tmp_path, digits_model, monkeypatch):
    monkeypatch.setattr("study.sets.load_model", lambda _: digits_model)
    networks = load_networks(["digits=a/best", "digits=b/best", "cifar10=b/best"])
    assert [n.name for n in networks] == ["digits-a-best", "digits-b-best", "cifar10-b-best"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "digits"], "network digits: write it as DATASET=CHECKPOINT"),
        (["--network", "cifar11=digits"], "network cifar11=digits: unknown dataset 'cifar11'"),
        (["--network", "digits=nowhere"], "unknown checkpoint 'nowhere'"),
        (["--network", "cifar100=digits"], "has 10 classes, but cifar100 has 100"),
        (["--network", "digits=digits"] * 2, "network digits=digits is given twice"),
        (["--network", "cifar10=digits", "--ood-root", "."], "lacks .* of its sets"),
        (["--network", "digits=digits", "--detectors", "nose"], "detectors: 'nose': choose"),
        (["--network", "digits=digits", "--protocols", "mine"], r"protocol \(='mine'\) must be"),
        (["--network", "digits=digits", "--limit", "0"], r"--limit \(=0\) must be at least 2"),
        (["--network", "digits=digits", "--calibration", "9"], r"--calibration \(=9\) must be"),
        (["--network", "digits=digits", "--out", __file__], "test_study.py is a file"),
    ],
)
def test_mistakes(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*options, "--data-dir", str(tmp_path)]
    with pytest.raises(ValueError, match=message):
        study_calibrated.main(options)
    assert not list(tmp_path.iterdir())
