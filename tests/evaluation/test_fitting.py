"""Fits of a run: one forward pass for all, kept, and used for nothing else."""

import numpy as np
import pytest

import si_jax
from si_jax.data import digits, sources
from si_jax.evaluation import fitting, keys


@pytest.fixture
def fit(digits_model, tmp_path):
    images, labels = digits.load("train")
    image_set = sources.from_arrays("digits_train", images[:200], labels[:200])

    def run(facts, names=("knn", "vim", "energy")):
        detectors = {name: si_jax.make_detector(name, digits_model) for name in names}
        fitting.fit_detectors(
            detectors, image_set, lambda image: image, facts=facts, directory=tmp_path
        )
        return detectors

    return run


def test_all_fits_share_one_pass_and_are_kept(fit, monkeypatch):
    passes = []
    original = fitting.image_batches
    monkeypatch.setattr(
        fitting, "image_batches", lambda *a, **k: passes.append(1) or original(*a, **k)
    )
    first = fit({"weights": "a"})
    assert len(passes) == 1
    again = fit({"weights": "a"})
    assert len(passes) == 1  # from the files
    images = digits.load("test")[0][:9]
    for name in ("knn", "vim"):
        np.testing.assert_array_equal(again[name].score(images), first[name].score(images))
        direct = si_jax.make_detector(name, first[name].model)
        direct.fit(digits.load("train")[0][:200])
        np.testing.assert_allclose(
            direct.score(images), first[name].score(images), rtol=1e-4, atol=1e-4
        )
    assert keys.fit_hash(first["knn"]) == keys.fit_hash(again["knn"]) != ""
    assert keys.fit_hash(first["energy"]) == ""
    fit({"weights": "b"})
    assert len(passes) == 2


def test_a_broken_fit_is_made_again(fit, tmp_path):
    state = fit({}, names=("knn",))["knn"].state
    (tmp_path / "knn.npz").write_bytes(b"nonsense")
    again = fit({}, names=("knn",))["knn"].state
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array)


def test_an_unfitted_detector_says_so(digits_model):
    with pytest.raises(ValueError, match="'knn' must be fitted first"):
        si_jax.make_detector("knn", digits_model).score(digits.noise(2))
