"""What an evaluation runs on: one's own folder, and what it tells of the sets."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from si_jax.commands import evaluate as command
from si_jax.data import benchmarks, downloads
from si_jax.data.sequences import as_image_set
from si_jax.evaluation import sets
from si_jax.reporting import report
from si_jax.reporting.evaluate import evaluate_benchmark

RNG = np.random.default_rng(0)
OOD = RNG.integers(0, 256, (5, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five classes with numbers for names; two of the held-out images are training images."""
    root = tmp_path_factory.mktemp("data") / "pets"
    for split in ("train", "val"):
        for name in ("0", "1", "2", "3", "10"):
            (root / split / name).mkdir(parents=True)
            for k in range(2):
                pixels = RNG.integers(0, 256, (10, 12, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
    for name in ("0/0.png", "3/1.png"):
        (root / "val" / name).write_bytes((root / "train" / name).read_bytes())
    return root


def test_a_folder_of_ones_own(root, tiny):
    run = evaluate_benchmark(root, tiny, detectors=["msp", "knn"], options={"knn": {"k": 2}})
    found = run.results
    assert (found["benchmark"], found["protocol"]) == ("pets", "own")
    assert found["preprocessing"] == "shorter side to 8, centre crop 8x8"
    assert set(found["groups"].items()) == {(n, "made") for n in ("noise", "shuffled", "blurred")}
    assert found["accuracy"] is not None and found["incomplete"] == []
    overlap, order = found["notes"]
    assert overlap == (
        "pets: 2 of its 10 images are, byte for byte, among the 10 training images that detectors"
        " are fitted on"
    )
    assert order.startswith(
        "pets: its class folders are numbers and taken in their order, accuracy"
    )
    printed = str(run)
    assert overlap in printed and order in printed
    assert overlap in report.notes(found)
    labels = run.arrays["pets"]["prediction"]["label"]
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 4, 4, 2, 2, 3, 3])

    given = evaluate_benchmark(
        root,
        tiny,
        detectors=["msp"],
        id_set=(OOD, np.arange(5)),
        ood={"mine": [(image, 0) for image in OOD[::-1]]},
    )
    assert given.results["counts"] == {"pets": 5, "mine": 5}
    assert given.results["results"]["msp"]["mine"]["auroc"] == 0.5
    assert given.results["notes"] == []


def test_classes_of_the_card_decide_the_order(root, tiny):
    named = dataclasses.replace(tiny, card={"classes": ["10", "3", "2", "1", "0"]})
    found = sets.find_sets(root, named, "published")
    labels = [found.test.load(k)[1] for k in range(len(found.test))]
    assert labels == [4, 4, 3, 3, 0, 0, 2, 2, 1, 1]
    wrong = dataclasses.replace(tiny, card={"classes": ["a", "b", "c", "d", "e"]})
    with pytest.raises(ValueError, match="class folder '0'"):
        sets.find_sets(root, wrong, "published")


def test_the_other_orders_accuracy():
    images = as_image_set((OOD, np.arange(5)), "x")
    images = dataclasses.replace(images, other_labels=(0, 1, 3, 4, 2))
    predicted = {"score": np.array([0, 1, 3, 4, 2]), "label": np.arange(5)}
    (told,) = sets.order_note(images, predicted)
    assert "accuracy 40.00%" in told and told.endswith("it would be 100.00%")
    assert sets.order_note(dataclasses.replace(images, other_labels=()), predicted) == []


def test_nothing_is_downloaded_unless_asked_for(tiny, monkeypatch, capsys, unchecked):
    seen = []

    def resolve(*args, fetch, **options):
        seen.append(fetch)

    monkeypatch.setattr(benchmarks, "resolve", resolve)
    monkeypatch.setattr(
        downloads, "prepare", lambda *a: iter([downloads.Outcome("svhn", "fetched", 3, "there")])
    )
    sets.find_sets("cifar10", tiny, "published")
    sets.find_sets("cifar10", tiny, "published", download=True)
    assert seen == [False, True]
    assert capsys.readouterr().err == "svhn: fetched; there\n"


def test_the_in_distribution_set_on_the_command_line():
    parse = command.parser().parse_args
    named = ["--dataset", "imagenet", "--id", "imagenet=/a=b"]
    assert command.in_distribution(parse(named)) == "/a=b"
    assert command.in_distribution(parse(["--dataset", "imagenet", "--id", "/a"])) == "/a"
    assert command.in_distribution(parse([])) is None
    with pytest.raises(ValueError, match="imagenet's set is called imagenet"):
        command.in_distribution(parse(["--dataset", "imagenet", "--id", "val=/a"]))
