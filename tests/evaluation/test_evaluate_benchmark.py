"""Evaluations: of arrays, of folders of custom data, and what is reported of them."""

import csv
import dataclasses
import importlib.util
import json
import sys

import numpy as np
import pytest
from pictures import noise, put

import si_jax
from si_jax import evaluate, evaluate_benchmark, find_sets
from si_jax.batching import Batched
from si_jax.commands import evaluate as command
from si_jax.commands.options import labelled_detectors
from si_jax.data import benchmarks, downloads
from si_jax.data.opening import as_image_set
from si_jax.detectors import Method, Plan, register_detector
from si_jax.evaluation import job, metrics, results
from si_jax.reporting import report, runs

KNOWN, LETTERS, NOISE = noise(3, 40, 8, 8, 3)
OOD = NOISE[:4]
TEMPERATURE = {"energy": {"temperature": 2}}
OPTIONS = {"detectors": ["msp", "energy"], "limit": 30, "options": TEMPERATURE}


@pytest.fixture(scope="module")
def sets(small):
    ood = {"letters": LETTERS, "noise": NOISE}
    return find_sets(None, id_set={"known": KNOWN}, ood=ood, model=small)


@pytest.fixture(scope="module")
def kept(small, sets, tmp_path_factory):
    return evaluate(small, sets, **OPTIONS, out=tmp_path_factory.mktemp("evaluated") / "run")


def test_what_comes_back(kept):
    assert kept.detectors == ["msp", "energy"]
    assert kept.results.settings["energy"] == {"temperature": 2.0}
    assert kept.results.limit == 30 and kept.results.checkpoint == "small, plain, given as a model"
    assert "AUROC / FPR95, %" in str(kept) and "model: small, plain" in str(kept)
    page = kept._repr_html_()
    assert page.count("<table>") == 2 and '<th scope="row" class="name">energy</th>' in page
    names = ["results.json", "results.csv", "report.html"]
    assert [path.name for path in kept.saved] == names
    again = runs.load(kept.saved[0].parent)
    assert again.results == kept.results
    np.testing.assert_array_equal(again.scores("letters", "msp"), kept.scores("letters", "msp"))
    tied = dataclasses.replace(kept.results, ties={"msp": {"letters": 15}})
    text = str(dataclasses.replace(kept, results=tied))
    assert "msp: 50 % of letters have the very score" in text


def test_a_data_frame(kept, monkeypatch):
    if importlib.util.find_spec("pandas"):
        frame = kept.to_pandas()
        assert list(frame.columns) == ["detector", "set", "group", "images", *metrics.METRICS]
        assert len(frame) == 2 * 2
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "si-jax\[pandas\]"'):
        kept.to_pandas()


def test_another_run_in_the_same_place_is_reported(small, sets, kept, capsys, no_pictures):
    out = kept.saved[0].parent
    evaluate(small, sets, **OPTIONS, out=out)
    assert "will be replaced" not in capsys.readouterr().err
    evaluate(small, sets, detectors=["msp"], limit=30, out=out)
    told = capsys.readouterr().err
    assert "holds the results of a run that differs in settings; they will be replaced" in told


def test_a_constant_score_is_reported(small, sets, no_pictures):
    name = "constant-for-a-test"

    def compute(inputs, state):
        logits = inputs.forward.logits
        return {"score": 0 * logits[:, 0] - 1, "more": 2 * logits}

    register_detector(name, Method(lambda model: Plan(compute), "", "", 1))
    run = evaluate(small, sets, detectors=[name, "msp"], limit=20)
    (told,) = [note for note in report.notes(run.results) if "the same score" in note]
    assert told.startswith(f"{name} gives every image of every set the same score: it")
    assert told.endswith("and its FPR95 means nothing. Use another detector.")
    assert told in str(run)
    # what else the detector gave is there, although no files are kept
    assert run.arrays["letters"][name]["more"].shape == (20, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"benchmark": "cifar11"}, "unknown dataset 'cifar11'"),
        ({"detectors": ["msp", "msp"]}, "detector 'msp' is given twice"),
        ({"detectors": {"a": ("msp",)}}, r"detector 'a' \(=\('msp',\)\): give a name or"),
        ({"detectors": {"energy": "msp"}}, "'energy' means something else than msp"),
        ({"detectors": {"a\nb": "msp"}}, "the detector's name .* must be printable"),
        ({"detectors": {"A": "msp", "a": "msp"}}, "detectors' names 'A' and 'a' differ in case"),
        (
            {"detectors": {"a": ("lts", {"percentile": 8})}, "options": {"a": {"percentile": 9}}},
            "the option percentile of a is given twice",
        ),
        ({"limit": 0}, r"limit \(=0\)"),
        ({"ood": {"a\nb": "."}}, r"'a\\nb' must be printable"),
        ({"ood": {"total": "."}}, "'total' is reserved"),
    ],
)
def test_mistakes(arguments, message, unchecked, small, sets):
    with pytest.raises(ValueError, match=message):
        if {"benchmark", "ood"} & arguments.keys():
            evaluate_benchmark(**arguments)
        evaluate(small, sets, **arguments)


@pytest.mark.usefixtures("no_pictures")
def test_one_detector_under_several_labels(small, sets, tmp_path, monkeypatch):
    """Labels are what results, tables, files and a resumed run use; scores are those of each."""
    texts = ["lts", "lts-85=lts:percentile=80", "odd=si-c:components=energy,channel-average,form=x"]
    detectors = labelled_detectors(texts, "--detectors")
    odd = {"components": "energy,channel-average", "form": "x"}
    assert detectors.pop("odd") == ("si-c", odd)
    detectors["lts"] = ("lts", {"percentile": 60})
    run = evaluate(small, sets, detectors=detectors, out=tmp_path)
    assert list(run.results.results) == ["lts", "lts-85"]
    settings = run.results.settings
    assert settings["lts-85"] == {**settings["lts"], "percentile": 80, "detector": "lts"}
    for label, percentile in (("lts", 60), ("lts-85", 80)):
        expected = si_jax.make_detector("lts", small, percentile=percentile).score(LETTERS)
        np.testing.assert_allclose(run.scores("letters", label), expected, rtol=1e-5)
        assert f"\n{label} " in str(run)
    assert "detector=lts, percentile=80" in dict(report.settings(run.results))["lts-85"]
    monkeypatch.setattr(Batched, "start", None)  # nothing is computed again
    again = evaluate(small, sets, detectors=detectors, out=tmp_path)
    assert again.results.results == run.results.results


def test_an_out_that_cannot_be(tmp_path, small, sets):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"link to .*nowhere, which is not there"):
        evaluate(small, sets, detectors=["msp"], out=tmp_path / "link")


def test_the_default_directory_differs_with_what_decides_the_results(monkeypatch):
    def directory(*argv):
        with pytest.raises(ValueError) as found:
            command.main(list(argv))
        return str(found.value)

    def refused(directory):
        raise ValueError(directory)

    monkeypatch.setattr(command, "checked_directory", refused)
    assert directory() == "results/digits-published"
    assert directory("--batch-size", "3", "--data-dir", "x") == directory()
    options = "limit 100", "detectors msp", "set knn.k=3", "seed 1", "protocol openood"
    others = [directory(*f"--{o}".split()) for o in (*options, "checkpoint a/b", "checkpoint c/b")]
    assert len({directory(), *others}) == len(others) + 1
    assert others[0].startswith("results/digits-published-limit100-")
    assert directory("--id", "pets=x", "--checkpoint", "a/b").startswith("results/pets-own-b-")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four classes with numbers for names; two of the held-out images are training images."""
    root = tmp_path_factory.mktemp("data") / "pets"
    for number, name in enumerate(("0", "1", "2", "10")):
        put(root / "train" / name, noise(2, 10, 12, 3, seed=number))
        put(root / "val" / name, noise(2, 10, 12, 3, seed=10 + number))
    for name in ("0/0.png", "2/1.png"):
        (root / "val" / name).write_bytes((root / "train" / name).read_bytes())
    return root


@pytest.mark.usefixtures("no_pictures")
def test_a_folder_of_custom_data(root, small):
    run = evaluate_benchmark(root, small, detectors=["msp", "knn"], options={"knn": {"k": 2}})
    found = run.results
    assert (found.benchmark, found.protocol) == ("pets", "own")
    assert found.preprocessing == "shorter side to 8, centre crop 8x8"
    assert set(found.groups.items()) == {(n, "made") for n in ("noise", "shuffled", "blurred")}
    assert found.accuracy is not None and found.incomplete == []
    overlap, order = found.notes
    assert overlap.startswith("pets: 2 of its 8 images are, byte for byte, among the 8 training")
    assert order.startswith("pets: its class folders are numbers and taken in their order, acc")
    assert overlap in str(run) and order in str(run) and overlap in report.notes(found)
    labels = run.arrays["pets"]["prediction"]["label"]
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 3, 3, 2, 2])

    sets = {"id_set": (OOD, np.arange(4)), "ood": {"mine": [(image, 0) for image in OOD[::-1]]}}
    given = evaluate_benchmark(root, small, detectors=["msp"], **sets)
    assert given.results.counts == {"pets": 4, "mine": 4}
    assert given.results.results["msp"]["mine"]["auroc"] == 0.5
    assert given.results.notes == []


@pytest.mark.usefixtures("no_pictures")
def test_custom_classes_without_a_folder_of_all(root, small):
    given = {"detectors": ["msp"], "id_set": root / "val", "ood": {"x": OOD}}
    run = evaluate_benchmark(None, small, **given)
    assert run.results.counts == {"val": 8, "x": 4}
    for changes, message in (
        ({"id_set": None}, "the data set has no folder val or test"),
        ({"id_set": (OOD, np.arange(4) + 1)}, "has the label 4, but small, plain has the classes"),
        ({"shifted": True}, "shifted=True is for benchmarks: give custom sets by name"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_benchmark(None, small, **given | changes)


@pytest.mark.usefixtures("no_pictures")
def test_the_full_spectrum_beside_the_usual_result(root, small, tmp_path):
    dark = (OOD // 2, np.arange(4))
    given = {"detectors": ["msp", "energy"], "ood": {"cars": OOD, "noise": 255 - OOD}}
    shifted = {"dark": dark, "photos": root / "train"}
    run = evaluate_benchmark(root, small, **given, shifted=shifted, out=tmp_path)
    found = run.results
    assert list(found.groups) == ["cars", "noise"]
    assert found.counts == {"pets": 8, "cars": 4, "noise": 4, "dark": 4, "photos": 8}
    assert found.shifted["photos"] is None and 0 <= found.shifted["dark"] <= 1
    known = [run.scores(name, "energy") for name in ("pets", "dark", "photos")]
    for name in ("cars", "noise"):
        scores = run.scores(name, "energy")
        usual, full = found.results, found.full_spectrum["results"]
        assert usual["energy"][name]["auroc"] == metrics.auroc(known[0], scores)
        assert full["energy"][name]["auroc"] == metrics.auroc(np.concatenate(known), scores)
        assert "oscr" in usual["energy"][name] and "oscr" not in full["energy"][name]
    means = found.full_spectrum["averages"]["energy"]["ood"]["auroc"]
    assert means == pytest.approx(np.mean([full["energy"][n]["auroc"] for n in found.groups]))
    printed = str(run)
    assert "full spectrum: in-distribution pets, dark, photos" in printed
    assert "shifted photos: 8 images, accuracy unknown (no labels)" in printed
    assert printed.count("published convention") == 2
    with (tmp_path / "results.csv").open(newline="") as file:
        line = next(csv.DictReader(file))
    assert float(line["full_spectrum_auroc"]) == pytest.approx(full["msp"]["cars"]["auroc"])
    again = runs.load(tmp_path)
    assert again.results == run.results and str(again) == printed
    titles = [table.title for table in report.metric_tables(found)]
    assert sum(title.startswith("Full spectrum: AUROC") for title in titles) == 1
    broken = json.loads((tmp_path / "results.json").read_text())
    del broken["full_spectrum"]["results"]["msp"]["cars"]
    (tmp_path / "results.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="in 'full_spectrum', the sets of detector 'msp'"):
        runs.load(tmp_path)


def test_data_is_looked_for_before_weights_are_loaded(tmp_path, monkeypatch, small):
    def load(*args, **options):
        pytest.fail("the weights were loaded")

    monkeypatch.setattr(job, "load_model", load)
    monkeypatch.setattr(job, "convert_torch", load)
    (tmp_path / "resnet50.pth").touch()
    places = ["--dataset", "imagenet", "--data-dir", str(tmp_path / "data")]
    file = ["--checkpoint", str(tmp_path / "resnet50.pth"), "--model", "imagenet_resnet50"]
    for given, message in (
        ([*places, *file], "imagenet: download the validation images"),
        ([*places, "--checkpoint", "digits"], "imagenet: download the validation images"),
        ([*places, *file, "--id", f"imagenet={tmp_path}"], "holds no images but 1 other files"),
        ([*places, *file[:2]], "is a file, so it needs an architecture"),
        ([*places, "--checkpoint", "nowhere"], "unknown checkpoint 'nowhere'"),
        ([*places, *file, "--detectors", "enrgy"], "unknown detector 'enrgy'"),
    ):
        with pytest.raises(ValueError, match=message):
            command.main([*given, "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="plain has 4 classes, but digits has 10"):
        evaluate_benchmark("digits", small)


def test_mean_and_deviation_by_number(monkeypatch, small):
    converted = []
    monkeypatch.setattr(job, "convert_torch", lambda *a, **o: converted.append(o) or small)
    given = ["--mean", "0.1", "0.2", "0.3", "--std", "0.5", "--part", "ema", "--list-taps"]
    with pytest.raises(ValueError, match=r"mean, std, part: only a file .*; digits says itself"):
        command.main(["--checkpoint", "digits", *given])
    with pytest.raises(ValueError, match="has 4 classes, but digits has 10"):
        command.main(["--checkpoint", __file__, "--model", "resnet8", *given])
    (options,) = converted
    expected = {"mean": [0.1, 0.2, 0.3], "std": [0.5], "part": "ema", "normalisation": None}
    assert options == expected


def test_classes_of_the_card_decide_the_order(root, small):
    named = dataclasses.replace(small, card={"classes": ["10", "2", "1", "0"]})
    found = find_sets(root, model=named)
    labels = [found.test.load(k)[1] for k in range(len(found.test))]
    assert labels == [3, 3, 2, 2, 0, 0, 1, 1]
    wrong = dataclasses.replace(small, card={"classes": ["a", "b", "c", "d"]})
    with pytest.raises(ValueError, match="class folder '0'"):
        find_sets(root, model=wrong)


def test_the_other_orders_accuracy():
    images = as_image_set((OOD, np.arange(4)), "x")
    images = dataclasses.replace(images, other_labels=(0, 2, 3, 1))
    predicted = {"score": np.array([0, 2, 3, 1]), "label": np.arange(4)}
    (told,) = results.order_note(images, predicted)
    assert "accuracy 25.00%" in told and told.endswith("it would be 100.00%")
    assert results.order_note(dataclasses.replace(images, other_labels=()), predicted) == []


def test_nothing_is_downloaded_unless_asked_for(monkeypatch, capsys):
    seen, found = [], find_sets("digits")

    def resolve(*args, fetch, **options):
        seen.append(fetch)
        return found

    monkeypatch.setattr(benchmarks, "resolve", resolve)
    outcome = downloads.Outcome("svhn", "fetched", 3, "there")
    monkeypatch.setattr(downloads, "prepare", lambda *a, **o: iter([outcome]))
    find_sets("cifar10")
    find_sets("cifar10", download=True)
    assert seen == [False, True]
    assert capsys.readouterr().err == "svhn: fetched; there\n"


def test_the_in_distribution_set_on_the_command_line():
    assert command.in_distribution("imagenet", "imagenet=/a=b") == "/a=b"
    assert command.in_distribution("imagenet", "/a") == "/a"
    assert command.in_distribution(None, "pets=/a") == {"pets": "/a"}
    assert command.in_distribution("digits", None) is None
    with pytest.raises(ValueError, match="imagenet's set is called imagenet"):
        command.in_distribution("imagenet", "val=/a")


def test_what_was_found_prints_itself(root, small):
    lines = str(find_sets("digits")).splitlines()
    assert lines[0] == "digits, published: no resize, centre crop 32x32"
    assert lines[1:3] == ["    597 digits (in-distribution)", "    500 photos (far)"]
    assert lines[-1] == "  1,200 digits_train (training)"
    printed = str(find_sets(None, id_set={"pets": OOD}, shifted={"dark": OOD}, model=small))
    assert "      4 pets (in-distribution)" in printed and "4 dark (covariate-shifted)" in printed
    assert "no training images: give a folder train" in printed


@pytest.mark.parametrize(
    ("correct", "count", "classes", "is_a_guess"),
    [
        (60, 60, 2, False),
        (90, 90, 3, False),
        (35, 60, 2, True),
        (30, 90, 3, True),
        (10, 10_000, 1000, True),
        (200, 10_000, 1000, False),
        (3, 3, 2, False),  # too few to say
        (0, 0, 2, False),
    ],
)
def test_a_guess_is_told_from_a_classifier(correct, count, classes, is_a_guess):
    """By the binomial: two classes can be right on all images, and a thousand hardly on 2 %."""
    score, label = np.zeros(count), np.arange(count) >= correct
    told = results.chance_warning({"score": score, "label": label}, classes)
    expected = f"accuracy is {100 * correct / max(count, 1):.2f}%, near chance for {classes} cl"
    assert (expected in told) if is_a_guess else told is None
    assert results.chance_warning({"score": score, "label": np.full(count, -1)}, classes) is None
