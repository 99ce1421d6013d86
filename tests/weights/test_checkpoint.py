"""Checkpoints: written whole, read back equal, refused in one sentence."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import si_jax
from si_jax.data import digits
from si_jax.training.training import accuracy


def test_the_bundled_digits_network_is_as_good_as_its_card_says(digits_model):
    images, labels = digits.load("test")
    found = accuracy(digits_model, images, labels)
    assert found >= 0.98
    assert found == pytest.approx(digits_model.card["accuracy"], abs=0.002)
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


def test_stored_in_half_the_bytes(tiny, tiny_images, tmp_path):
    loaded = si_jax.load_model(si_jax.save_checkpoint(tmp_path / "c", tiny, dtype=jnp.bfloat16))
    assert loaded.variables["params"]["conv1"]["kernel"].dtype == np.float32
    np.testing.assert_allclose(
        loaded.logits(tiny_images), tiny.logits(tiny_images), rtol=0.1, atol=0.1
    )


def test_damage_is_noticed(tiny, tmp_path):
    path = si_jax.save_checkpoint(tmp_path / "c", tiny)
    with pytest.raises(ValueError, match=r"unknown checkpoint.*nowhere.*digits"):
        si_jax.load_model(tmp_path / "nowhere")
    card = json.loads((path / "card.json").read_text())
    (path / "card.json").write_text(json.dumps({**card, "sha256": "0"}))
    with pytest.raises(ValueError, match="damaged"):
        si_jax.load_model(path)
    options = {**card["options"], "widths": [4, 6, 10]}
    (path / "card.json").write_text(json.dumps({**card, "options": options}))
    with pytest.raises(ValueError, match=r"shape|orbax"):
        si_jax.load_model(path)
    for text in ("{", "[]", '{"model": "resnet8"}', '{"model": 3}'):
        (path / "card.json").write_text(text)
        with pytest.raises(ValueError, match=r"card.json|unknown model"):
            si_jax.load_model(path)
    (path / "card.json").write_text(json.dumps(card))
    for file in (path / "weights").rglob("*"):
        if file.is_file():
            file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        si_jax.load_model(path)


def test_unknown_architectures_and_options():
    with pytest.raises(ValueError, match=r"unknown model 'resnet33'.*resnet34"):
        si_jax.build_model("resnet33")
    with pytest.raises(ValueError, match="colour"):
        si_jax.build_model("resnet8", colour="red")
    with pytest.raises(ValueError, match="6n"):
        si_jax.build_model("wrn_40_2", depth=41)


def test_precision_is_an_option(tiny, tiny_images):
    fast = dataclasses.replace(tiny, precision="default")
    np.testing.assert_allclose(fast.logits(tiny_images), tiny.logits(tiny_images), atol=0.1)
    with pytest.raises(ValueError, match="precision"):
        dataclasses.replace(tiny, precision="low")
