"""A detector that was saved is the same once loaded, or loading says why not."""

import dataclasses
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from flax import linen as nn
from pictures import noise

import si_jax
from si_jax.data.preprocessing import Preprocessing
from si_jax.testing import small_model

IMAGES = noise(60, seed=7)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A saved detector, and the detector."""
    detector = si_jax.make_detector("knn", tiny, k=2, batch_size=8).fit(IMAGES[:20])
    detector.preprocessing = Preprocessing((8, 8), 9)
    detector.calibrate(IMAGES[20:], tpr=0.9, keep_images=3)
    detector.card["data"] = "noise"
    return detector.save(tmp_path_factory.mktemp("saved") / "knn"), detector


def test_a_round_trip(saved):
    directory, detector = saved
    loaded = si_jax.load_detector(directory)
    for key in ("name", "settings", "options", "batch_size", "preprocessing", "card"):
        assert getattr(loaded, key) == getattr(detector, key), key
    np.testing.assert_array_equal(loaded.state["bank"], detector.state["bank"])
    for key in ("scores", "examples", "example_features"):
        values = getattr(loaded.threshold, key), getattr(detector.threshold, key)
        np.testing.assert_array_equal(*values)
    assert (loaded.threshold.tpr, loaded.threshold.value) == (0.9, detector.threshold.value)
    for key, values in detector.predict(IMAGES).as_dict().items():
        np.testing.assert_array_equal(loaded.predict(IMAGES).as_dict()[key], values)
    files = [p.name for p in directory.rglob("*")]
    assert not any(name.endswith((".pkl", ".pickle", "commit_success.txt")) for name in files)


def test_a_fit_of_booleans_comes_back(tiny, tmp_path):
    detector = si_jax.make_detector("dice", tiny).fit(IMAGES)
    loaded = si_jax.load_detector(detector.save(tmp_path / "dice"))
    assert loaded.state["kept"].dtype == bool and loaded.threshold is None
    np.testing.assert_array_equal(loaded.state["kept"], detector.state["kept"])


def test_a_predicate_is_saved_as_the_paths_it_chose(tiny, tmp_path):
    detector = si_jax.make_detector("si-z", tiny, taps=lambda x: isinstance(x, nn.Conv))
    loaded = si_jax.load_detector(detector.save(tmp_path / "d"))
    assert loaded.settings == detector.settings
    assert loaded.options["taps"] == detector.settings["taps"]


def edit(directory, **changes):
    """Change the card, and its line in the list of sums."""
    path = directory / "detector.json"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    sums = directory / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(before, after))


DAMAGE = {
    "newer": (lambda d: edit(d, format=99), r"format \(=99\): .*update the older"),
    "edited": (lambda d: (d / "detector.json").write_text("{}"), "detector.json was changed"),
    "no card": (lambda d: (d / "detector.json").unlink(), r"holds no detector\.json"),
    "no sums": (lambda d: (d / "SHA256SUMS").unlink(), "has no file SHA256SUMS"),
    "no arrays": (lambda d: shutil.rmtree(d / "arrays"), "arrays/.* is missing"),
    "lost file": (lambda d: (d / "arrays" / "manifest.ocdbt").unlink(), "manifest.* is missing"),
    "no network": (lambda d: shutil.rmtree(d / "checkpoint"), "checkpoint/SHA256SUMS is missing"),
    "network": (lambda d: (d / "checkpoint/card.json").write_text("{"), "card.json was changed"),
    "other threshold": (lambda d: edit(d, threshold={"tpr": 2.0}), r"threshold.tpr \(=2.0\)"),
    "other score": (lambda d: edit(d, version=-1), "score of 'knn' has changed"),
    "other name": (lambda d: edit(d, detector="new"), "'new', which this version"),
    "other defaults": (lambda d: edit(d, settings={"k": 3}), "other defaults of 'knn'"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_sentence(case, saved, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(saved[0], directory)
    damage, message = DAMAGE[case]
    damage(directory)
    with pytest.raises(ValueError, match=message) as info:
        si_jax.load_detector(directory)
    assert len(str(info.value).splitlines()) == 1


def test_the_network_inside_is_a_checkpoint(saved, tiny, tmp_path, tiny_images):
    model = si_jax.load_model(saved[0])
    np.testing.assert_array_equal(model.logits(tiny_images), tiny.logits(tiny_images))
    np.testing.assert_array_equal(
        si_jax.load_model("digits").variables["params"]["linear"]["kernel"],
        si_jax.load_detector("digits").model.variables["params"]["linear"]["kernel"],
    )
    other = jax.tree.map(lambda x: x + 1, dict(tiny.variables))
    copy = shutil.copytree(saved[0], tmp_path / "copy")
    changed = dataclasses.replace(tiny, variables=other)
    si_jax.save_checkpoint(copy / "checkpoint", changed, overwrite=True)
    with pytest.raises(ValueError, match="checkpoint/SHA256SUMS was changed"):
        si_jax.load_detector(copy)


def test_a_directory_is_not_replaced_unless_asked(saved, tiny, tmp_path, monkeypatch):
    directory, detector = saved
    with pytest.raises(ValueError, match="exists already"):
        detector.save(directory)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        detector.save(tmp_path, overwrite=True)  # no detector: not ours to remove
    copy = detector.save(tmp_path / "copy")
    si_jax.make_detector("energy", tiny).save(copy, overwrite=True)
    assert si_jax.load_detector(copy).name == "energy"
    with pytest.raises(ValueError, match="must be fitted first"):
        si_jax.make_detector("knn", tiny).save(tmp_path / "unfitted")
    with pytest.raises(ValueError, match=r"no detector 'nothing'.*one of the bundled"):
        si_jax.load_detector("nothing")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", fail)
    with pytest.raises(OSError, match="disk full"):
        detector.save(tmp_path / "half")
    with pytest.raises(OSError, match="disk full"):
        si_jax.make_detector("energy", tiny).save(copy, overwrite=True)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "note.txt"]
    assert si_jax.load_detector(copy).name == "energy"


def test_a_network_of_the_user_is_given_again(small, tmp_path):
    detector = si_jax.make_detector("energy", small).calibrate(IMAGES)
    directory = detector.save(tmp_path / "mine")
    loaded = si_jax.load_detector(directory, model=small_model(seed=1))  # fresh weights
    np.testing.assert_array_equal(loaded.predict(IMAGES).score, detector.predict(IMAGES).score)
    for other, message in (
        (None, r"code is not saved.*load_detector.*model="),
        (small_model("two classes"), r"wrong shape: params/head/bias .*\(4,?\), where"),
        (small_model("no ReLU"), "of the same weights it makes other logits"),
        (dataclasses.replace(small, mean=(0.4,) * 3), r"model's mean .*0\.4.* is not the one"),
    ):
        with pytest.raises(ValueError, match=message):
            si_jax.load_detector(directory, model=other)
