"""Checkpoints and their cards: written whole, read back equal, refused in one sentence."""

import dataclasses
import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from pictures import noise

import si_jax
from si_jax.data import digits
from si_jax.training.training import accuracy
from si_jax.weights.checkpoint import Card
from si_jax.weights.saved import read_card

CARD = {
    "model": "resnet8",
    "options": {"blocks": [1, 1, 1], "widths": [16, 32, 64]},
    "num_classes": 10,
    "input_size": [32, 32],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 1],
    "sha256": "0" * 64,
}


def test_the_bundled_digits_network_is_as_good_as_its_card_says(digits_model):
    images, labels = digits.load("test")
    found = accuracy(digits_model, images, labels)
    assert found >= 0.98 and found == pytest.approx(digits_model.card["accuracy"], abs=0.002)
    for fact in ("data", "split", "seed", "command", "date", "versions"):
        assert digits_model.card[fact] is not None


def test_saved_and_loaded_is_equal(tiny, tiny_images, tmp_path):
    path = si_jax.save_checkpoint(tmp_path / "a" / "b", tiny)
    loaded = si_jax.load_model(path)
    np.testing.assert_array_equal(loaded.logits(tiny_images), tiny.logits(tiny_images))
    assert (loaded.input_size, loaded.mean, loaded.head) == ((8, 8), tiny.mean, "linear")
    assert [p.name for p in path.parent.iterdir()] == ["b"]  # nothing temporary left
    with pytest.raises(ValueError, match="exists already"):
        si_jax.save_checkpoint(path, tiny)
    half = si_jax.load_model(si_jax.save_checkpoint(tmp_path / "c", tiny, dtype=jnp.bfloat16))
    assert half.variables["params"]["conv1"]["kernel"].dtype == np.float32
    np.testing.assert_allclose(
        half.logits(tiny_images), tiny.logits(tiny_images), rtol=0.1, atol=0.1
    )


class Custom(nn.Module):
    width: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def custom_model(seed, width=2):
    variables = Custom(width).init(jax.random.key(seed), jnp.zeros((1, 8, 8, 3)))
    return si_jax.Model(Custom(width), variables, input_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_custom_network_is_saved_and_loaded_into_a_model_of_it(tmp_path, tiny_images):
    path = si_jax.save_checkpoint(tmp_path / "custom", custom_model(0))
    expected = custom_model(0).logits(tiny_images)
    assert np.ptp(expected - custom_model(1).logits(tiny_images)) > 0.001
    loaded = si_jax.load_model(path, like=custom_model(1))
    np.testing.assert_array_equal(loaded.logits(tiny_images), expected)
    with pytest.raises(ValueError, match="a custom network: pass like="):
        si_jax.load_model(path)
    with pytest.raises(ValueError, match="weights of another network, with"):
        si_jax.load_model(path, like=si_jax.load_model("digits"))


def test_what_older_versions_wrote_is_loaded(tmp_path):
    with zipfile.ZipFile(Path(__file__).with_name("former.zip")) as archive:
        archive.extractall(tmp_path)
    expected = np.load(tmp_path / "expected.npz")
    images = noise(30)
    logits = si_jax.load_model(tmp_path / "checkpoint").logits(images)
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-4, atol=1e-5)
    detector = si_jax.load_detector(tmp_path / "detector")
    np.testing.assert_allclose(detector.score(images), expected["knn"], rtol=1e-4, atol=1e-5)
    assert detector.threshold.value == expected["threshold"]
    custom = si_jax.load_detector(tmp_path / "own", model=custom_model(1))
    np.testing.assert_allclose(custom.score(images), expected["energy"], rtol=1e-4, atol=1e-5)
    again = si_jax.load_detector(custom.save(tmp_path / "again"), model=custom_model(1))
    np.testing.assert_array_equal(again.score(images), custom.score(images))

    with pytest.raises(ValueError, match="code is not saved"):
        si_jax.load_detector(tmp_path / "own")
    with pytest.raises(ValueError, match=r"not the one .* which has .*Conv_0"):
        si_jax.load_detector(tmp_path / "own", model=custom_model(1, width=5))
    for directory, load in (("checkpoint", si_jax.load_model), ("detector", si_jax.load_detector)):
        (path,) = (tmp_path / directory).glob("*.json")
        content = json.loads(path.read_text())
        content["sha256"] = "0" * 64 if directory == "checkpoint" else {"json": "0" * 64}
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"do not have the hash|does not have its own hash"):
            load(tmp_path / directory)


def test_damage_is_noticed(tiny, tmp_path):
    path = si_jax.save_checkpoint(tmp_path / "c", tiny)
    (path / "notes.txt").write_text("may be added")
    (path / "weights" / ".DS_Store").write_text("likewise")
    si_jax.load_model(path)
    card = (path / "card.json").read_text()
    (path / "card.json").write_text(card.replace("4,", "5,"))
    with pytest.raises(ValueError, match=r"is damaged or was edited: card\.json was changed"):
        si_jax.load_model(path)
    (path / "card.json").write_text(card)
    (path / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="its file SHA256SUMS is missing"):
        si_jax.load_model(path)


NO_CARD = [
    ("{", "Expecting property name"),
    ("[" * 100_000, "nested deeper than"),
    ("[]", "valid dictionary"),
    ({"model": 3}, r"model \(=3\): .*string"),
    ({"mean": [float("nan")] * 3}, "NaN"),
    (json.dumps(CARD).replace("0.2", "1e999"), "1e999"),
    ({"accuracy": float("inf")}, "Infinity"),
    ({"std": [0.2, 0, 0.2]}, r"std.1 \(=0\): "),
    ({"std": [0.2]}, "one number a channel each"),
    ({"num_classes": True}, r"num_classes \(=True\)"),
    ({"num_classes": 10**8}, "num_classes"),
    ({"classes": ["a", "b"]}, "classes names 2 of 10 classes"),
    ({"classes": "ten"}, r"classes \(='ten'\)"),
    ({"input_size": [32]}, "input_size"),
    ({"input_size": [0, 32]}, "input_size"),
    ({"input_size": 10**9}, "input_size"),
    ({"options": {"blocks": [[1]]}}, "options"),
    ({"options": {"blocks": [10**9, 1, 1]}}, "options"),
    ({"sha256": "text"}, "sha256"),
    (json.dumps(CARD).replace("mean", "more"), "mean .*Field required"),
]
NO_NETWORK = [
    ({"blocks": [1_000_000, 1, 1]}, r"blocks \(=\(1000000, 1, 1\)\) must be"),
    ({"blocks": [0, 1, 1]}, "must be"),
    ({"blocks": 3}, "must be"),
    ({"widths": ["a", "b", "c"]}, "must be"),
    ({"widths": [-4, 4, 4]}, "must be"),
    ({"shortcut": 3}, "must be"),
    ({"colour": "red"}, "does not take these options"),
    ({"dtype": "text"}, "options"),
]


@pytest.mark.usefixtures("unchecked")
def test_cards_and_what_is_none(tmp_path):
    path = tmp_path / "card.json"

    def refused(card, message):
        path.write_text(card if isinstance(card, str) else json.dumps(CARD | card))
        with pytest.raises(ValueError, match=message) as info:
            si_jax.load_model(tmp_path)
        assert len(str(info.value).splitlines()) == 1 and len(str(info.value)) < 500

    for card, message in NO_CARD:
        refused(card, rf"card\.json is no checkpoint card.*{message}")
    for options, message in NO_NETWORK:
        refused({"options": CARD["options"] | options}, message)
    card = {**CARD, "accuracy": 0.9, "note": [1, None], "classes": list("0123456789")}
    path.write_text(json.dumps(card))
    assert read_card(path, Card).model_dump(exclude_unset=True) == card


def test_options_that_make_no_sense(tiny, tiny_images):
    for call, message in (
        (lambda: si_jax.build_model("resnet33"), r"unknown model 'resnet33'.*resnet34"),
        (lambda: si_jax.build_model("wrn_40_2", depth=41), "6n"),
        (lambda: dataclasses.replace(tiny, precision="low"), "precision"),
        (lambda: si_jax.load_model("nowhere"), r"unknown checkpoint.*nowhere.*digits"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    fast = dataclasses.replace(tiny, precision="default")
    np.testing.assert_allclose(fast.logits(tiny_images), tiny.logits(tiny_images), atol=0.1)
