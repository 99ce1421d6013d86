"""`si-jax train` and the data sets that it takes."""

import csv
import json
import re

import numpy as np
import pytest
from pictures import noise, put, write

import si_jax
from si_jax import cli
from si_jax.commands import train as script
from si_jax.data import training_sets
from si_jax.data.preprocessing import Preprocessing

SMALL = ["--epochs", "2", "--batch-size", "8", "--input-size", "16", "--learning-rate", "0.02"]


def write_images(root, classes=("apple", "bell", "cat"), count=8, seed=0):
    """A folder for each class, whose channel is the brightest."""
    for index, name in enumerate(classes):
        images = noise(count, 20, 24, 3, seed=(seed, index)) // 3
        images[..., index] += 120
        put(root / name, images)
    return root


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "things"
    write_images(root / "train")
    write_images(root / "val", count=3, seed=1)
    return root


@pytest.fixture
def tiny_checkpoint(tiny, tmp_path):
    return si_jax.save_checkpoint(tmp_path / "tiny", tiny)


def test_the_splits_of_the_digits_and_of_a_folder(split_folder, tmp_path):
    for dataset, expected in (("digits", (1200, 597, 10)), (split_folder, (24, 9, 3))):
        sets = training_sets.find(str(dataset))
        assert (len(sets.train), len(sets.held_out), sets.num_classes) == expected
    assert sets.name == "things"
    whole = write_images(tmp_path / "whole", count=10)
    sets = training_sets.find(str(whole), seed=1)
    assert (len(sets.train), len(sets.held_out)) == (27, 3)
    names = [s.ident(i) for s in (sets.train, sets.held_out) for i in range(len(s))]
    assert len(set(names)) == 30
    assert sets.held_out.fingerprint == training_sets.find(str(whole), seed=1).held_out.fingerprint
    assert sets.held_out.fingerprint != training_sets.find(str(whole), seed=2).held_out.fingerprint
    images, labels = training_sets.load(sets.held_out, Preprocessing((16, 16), 16), (16, 16, 3))
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
    for image, label in zip(images, labels, strict=True):
        assert image.mean(axis=(0, 1)).argmax() == label


@pytest.mark.slow
def test_training_on_a_folder_makes_a_checkpoint(split_folder, tmp_path, capsys):
    out = tmp_path / "out" / "things"
    command = ["--dataset", str(split_folder), "--model", "resnet8", "--out", str(out), *SMALL]
    script.main([*command, "--store", "bfloat16", "--ema", "0.5"])
    printed = capsys.readouterr().out
    card = json.loads((out / "card.json").read_text())
    model = si_jax.load_model(out)
    sets = training_sets.find(str(split_folder))
    held_out = training_sets.load(sets.held_out, Preprocessing((16, 16), 16), (16, 16, 3))
    accuracy = np.mean(model.logits(held_out[0]).argmax(-1) == held_out[1])
    assert card["accuracy"] == accuracy and f"{accuracy:.2%}" in printed
    assert card["recipe"]["ema"] == 0.5 and card["recipe"]["epochs"] == 2
    assert card["recipe"]["crop_padding"] == 2 and card["stored_as"] == "bfloat16"
    assert card["split"] == "24 images in train and 9 in val"
    for key in ("command", "seed", "versions", "hardware", "seconds", "licence"):
        assert key in card
    with (out / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert not out.with_name("things.run").exists()
    with pytest.raises(ValueError, match="exists already"):
        script.main(command)


def test_fine_tuning_a_network_without_statistics_with_a_new_head(split_folder, tmp_path):
    options = {"patch": 8, "layers": 1, "width": 64, "hidden": 32, "heads": 1}
    vit = si_jax.build_model("imagenet_vit_b16", 7, input_size=(16, 16), **options)
    start = si_jax.save_checkpoint(tmp_path / "vit", vit)
    command = ["--dataset", str(split_folder), "--init", str(start), *SMALL]
    with pytest.raises(
        ValueError, match="7 classes, but things has 3: replace its head by new_head=True"
    ):
        script.main([*command, "--out", str(tmp_path / "a")])
    script.main([*command, "--new-head", "--out", str(tmp_path / "b")])
    model = si_jax.load_model(tmp_path / "b")
    assert model.num_classes == 3 and model.input_size == (16, 16)
    assert model.card["starts_from"] == str(start)
    assert np.any(model.head_weights(model.variables) != 0)


def test_a_new_head_leaves_the_rest_alone(tiny, tiny_images, tiny_checkpoint):
    model = si_jax.with_new_head(si_jax.load_model(tiny_checkpoint), 3)
    np.testing.assert_array_equal(model.logits(tiny_images), np.zeros((13, 3)))
    np.testing.assert_array_equal(model.features(tiny_images), tiny.features(tiny_images))


MISTAKES = [
    ("--dataset {things}", "needs --model NAME or --init"),
    ("--model vgg", "unknown model 'vgg'"),
    ("--model resnet8 --init {tiny}", "--model and --init exclude each other"),
    ("--init nowhere", "unknown checkpoint 'nowhere'"),
    ("--init {tiny}", "has 5 classes, but digits has 10: .*--new-head"),
    ("--epochs 0", r"epochs \(=0\) must be at least 1"),
    ("--dataset {tmp}/nowhere", "neither a folder nor one of digits"),
    ("--dataset cifar10 --data-dir {tmp}", "has no training split here: run si-jax prepare-data"),
    ("--dataset {tmp}/flat", "0 class folders"),
    ("--dataset {tmp}/lone", "none called val or test"),
    ("--dataset {tmp}/other", "different class folders"),
    ("--max-gib 1e-6", r"more than --max-gib \(=1e-06\)"),
    ("--dataset {tmp}/mixed --model resnet8", "stray.png of .* has no label"),
]


def test_mistakes(split_folder, tiny_checkpoint, tmp_path):
    (tmp_path / "flat").mkdir()
    for name in ("lone/train", "other/train", "mixed"):
        write_images(tmp_path / name, count=1)
    write_images(tmp_path / "other/test", classes=("apple", "bell", "dog"), count=1)
    write(tmp_path / "mixed/stray.png")
    places = {"things": split_folder, "tiny": tiny_checkpoint, "tmp": tmp_path}
    for line, message in MISTAKES:
        with pytest.raises(ValueError) as info:
            script.main(["--out", str(tmp_path / "new"), *line.format(**places).split()])
        assert re.search(message, cli.in_flags(str(info.value))), line
        assert not (tmp_path / "new").exists()
