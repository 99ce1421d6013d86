"""Fits of a run: one forward pass for all, kept, and used for nothing else."""

import dataclasses

import numpy as np
import pytest

import si_jax
from si_jax.data import sources
from si_jax.data.benchmarks import Resolved
from si_jax.data.preprocessing import Preprocessing
from si_jax.evaluation import job, scoring

IMAGES = np.random.default_rng(1).integers(0, 256, (100, 8, 8, 3), np.uint8)
NAMES = ("knn", "vim", "energy")


@pytest.fixture
def fit(small, tmp_path):
    """Fits beside what else determines them; the detectors."""
    train = sources.from_arrays("train", IMAGES)
    preprocessing = Preprocessing(resize=8, crop=(8, 8))
    sets = Resolved("made", 4, "published", preprocessing, train, train, ood=())

    def run(protocol="published"):
        made = job.make_detectors(NAMES, small, options={"knn": {"k": 5}})
        given = job.Job(small, made, dataclasses.replace(sets, protocol=protocol))
        told, (note,) = scoring.fit_job(given, tmp_path)
        assert told == {"set": "train", "images": 100, "detectors": ["knn", "vim"]}
        assert note.startswith("train: 100 of its 100 images are, byte for byte, among the 100")
        return made

    return run


def test_all_fits_share_one_pass_and_are_kept(fit, small, tiny_images, tmp_path, monkeypatch):
    passes, original = [], scoring.batches
    monkeypatch.setattr(scoring, "batches", lambda *a, **k: passes.append(1) or original(*a, **k))
    first, again = fit(), fit()
    assert len(passes) == 1  # the second time from the files
    (tmp_path / "knn.npz").write_bytes(b"nonsense")
    scores = {name: first[name].score(tiny_images) for name in ("knn", "vim")}
    for name, expected in scores.items():
        np.testing.assert_array_equal(again[name].score(tiny_images), expected)
    direct = si_jax.make_detector("knn", small, k=5).fit(IMAGES).score(tiny_images)
    repaired = fit()["knn"]
    assert len(passes) == 2
    np.testing.assert_array_equal(repaired.score(tiny_images), scores["knn"])
    np.testing.assert_allclose(scores["knn"], direct, rtol=1e-4, atol=1e-4)
    fit("openood")
    assert len(passes) == 3
