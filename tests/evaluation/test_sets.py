"""What an evaluation runs on: custom data, and what is reported of the sets."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from si_jax.benchmarking import evaluate_benchmark, find_sets
from si_jax.commands import evaluate as command
from si_jax.data import benchmarks, downloads
from si_jax.data.opening import as_image_set
from si_jax.evaluation import job, metrics, results
from si_jax.reporting import report, runs

RNG = np.random.default_rng(0)
OOD = RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four classes with numbers for names; two of the held-out images are training images."""
    root = tmp_path_factory.mktemp("data") / "pets"
    for split in ("train", "val"):
        for name in ("0", "1", "2", "10"):
            (root / split / name).mkdir(parents=True)
            for k in range(2):
                pixels = RNG.integers(0, 256, (10, 12, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
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
    assert overlap == (
        "pets: 2 of its 8 images are, byte for byte, among the 8 training images that detectors"
        " are fitted on"
    )
    assert order.startswith(
        "pets: its class folders are numbers and taken in their order, accuracy"
    )
    printed = str(run)
    assert overlap in printed and order in printed
    assert overlap in report.notes(found)
    labels = run.arrays["pets"]["prediction"]["label"]
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 3, 3, 2, 2])

    given = evaluate_benchmark(
        root,
        small,
        detectors=["msp"],
        id_set=(OOD, np.arange(4)),
        ood={"mine": [(image, 0) for image in OOD[::-1]]},
    )
    assert given.results.counts == {"pets": 4, "mine": 4}
    assert given.results.results["msp"]["mine"]["auroc"] == 0.5
    assert given.results.notes == []


@pytest.mark.usefixtures("no_pictures")
def test_custom_classes_without_a_folder_of_all(root, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "load_model", lambda name: small)
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "cars.npz", images=OOD)
    train = ["--train", str(root / "train"), "--detectors", "msp", "knn", "--set", "knn.k=2"]
    ood = ["--ood", f"cars={tmp_path / 'cars.npz'}", "--checkpoint", "digits"]
    command.main(["--id", f"pets={root / 'val'}", *train, *ood])
    (directory,) = Path("results").iterdir()
    assert directory.name.startswith("pets-own-digits")
    found = json.loads((directory / "results.json").read_text())
    assert (found["benchmark"], found["protocol"]) == ("pets", "own")
    assert found["counts"] == {"pets": 8, "cars": 4}
    assert found["fit"] == {"set": "pets_train", "images": 8, "detectors": ["knn"]}
    assert "cars" in capsys.readouterr().out
    run = evaluate_benchmark(None, small, detectors=["msp"], id_set=root / "val", ood={"x": OOD})
    assert run.results.counts == {"val": 8, "x": 4}

    for given, message in (
        ({}, "the data set has no folder val or test"),
        (
            {"id_set": (OOD, np.arange(4) + 1)},
            "has the label 4, but small, plain has the classes 0 to",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_benchmark(None, small, detectors=["msp"], **given)
    with pytest.raises(ValueError, match="no checkpoint for custom data comes with"):
        command.main(["--id", str(root / "val")])


@pytest.mark.usefixtures("no_pictures")
def test_the_full_spectrum_beside_the_usual_result(root, small, tmp_path):
    dark = (OOD // 2, np.arange(4))
    run = evaluate_benchmark(
        root,
        small,
        detectors=["msp", "energy"],
        ood={"cars": OOD, "noise": 255 - OOD},
        shifted={"dark": dark, "photos": root / "train"},
        out=tmp_path,
    )
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
    with pytest.raises(
        ValueError, match="shifted=True is for benchmarks: give custom sets by name"
    ):
        evaluate_benchmark(root, small, shifted=True)


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
    assert options == {
        "normalisation": None,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5],
        "part": "ema",
    }


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
    monkeypatch.setattr(
        downloads,
        "prepare",
        lambda *a, **o: iter([downloads.Outcome("svhn", "fetched", 3, "there")]),
    )
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


def test_a_guess_is_told_from_a_classifier():
    """By the binomial: two classes can be right on all images, and a thousand hardly on 2 %."""

    def warned(correct, count, classes):
        score = np.zeros(count)
        label = np.where(np.arange(count) < correct, 0, 1)
        return results.chance_warning({"score": score, "label": label}, classes) is not None

    assert not warned(60, 60, 2) and not warned(90, 90, 3)
    assert warned(35, 60, 2) and warned(30, 90, 3)
    assert warned(10, 10_000, 1000) and not warned(200, 10_000, 1000)
    assert not warned(3, 3, 2) and not warned(0, 0, 2)  # too few to say
    few = {"score": np.zeros(60), "label": np.full(60, -1)}
    assert results.chance_warning(few, 10) is None
    assert "accuracy is 58.33%, near chance for 2 classes" in results.chance_warning(
        {"score": np.zeros(60), "label": np.arange(60) >= 35}, 2
    )
