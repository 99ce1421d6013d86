"""What all peers promise: no dependence on batches, saved fits, published defaults."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from peer_networks import CLASSES, FITTED, PEERS, SEVERAL, SMALLER, Tiny, build, close

import si_jax
from si_jax import splitting
from si_jax.detectors import default_options
from si_jax.detectors.features import kept_count
from si_jax.detectors.fitting import Batches
from si_jax.detectors.head import head_logits
from si_jax.evaluation.scoring import Scorer


@pytest.fixture(scope="module")
def by_batch_size(make, images):
    """Batch size -> detector -> its arrays, all detectors side by side."""
    found = {}
    for size in (1, 7):
        detectors = {name: make(name, batch_size=size) for name in PEERS}
        found[size] = Scorer(detectors)(images)
    return found


@pytest.mark.parametrize("name", PEERS)
def test_scores_do_not_depend_on_batch_size_or_order(make, by_batch_size, name, images):
    expected = make(name).score(images)
    assert expected.shape == (70,)
    assert expected.dtype == np.float32
    assert np.isfinite(expected).all()
    assert np.ptp(expected) > 0
    for size in (1, 7):  # beside the default, 64
        close(by_batch_size[size][name]["score"], expected, rtol=1e-4, atol=1e-4)
    order = np.random.default_rng(0).permutation(70)
    close(make(name).score(images[order]), expected[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FITTED)
def test_unfitted_says_so(model, images, name):
    detector = si_jax.make_detector(name, model)
    assert detector.needs_fit
    with pytest.raises(ValueError, match=f"{name}.*must be fitted first"):
        detector.score(images)


@pytest.mark.parametrize("name", FITTED)
def test_a_saved_fit_gives_the_same_scores(make, model, images, train, name, tmp_path):
    fitted = make(name)
    np.savez(tmp_path / "fit.npz", **fitted.state)
    loaded = si_jax.make_detector(name, model, **SMALLER.get(name, {}))
    with np.load(tmp_path / "fit.npz") as file:
        loaded.load_state(dict(file))
    np.testing.assert_array_equal(loaded.score(images), fitted.score(images))


@pytest.mark.parametrize("name", FITTED)
def test_the_fit_does_not_depend_on_the_batches(make, model, images, train, name):
    detector = si_jax.make_detector(name, model, **SMALLER.get(name, {}))
    edges = [0, 3, 33, 80]
    pieces = [slice(a, b) for a, b in itertools.pairwise(edges)]
    detector.fit_batches(Batches(lambda: ((train[0][p], train[1][p]) for p in pieces), model))
    close(detector.score(images), make(name).score(images), rtol=1e-3, atol=1e-3)


def test_what_a_forward_pass_does_not_do(make):
    assert {n for n in PEERS if not make(n).shared_forward} == SEVERAL


def test_one_forward_pass_serves_all_forward_only_detectors(make, model, images, monkeypatch):
    count = []
    forward = splitting.forward
    monkeypatch.setattr(splitting, "forward", lambda *a, **k: count.append(1) or forward(*a, **k))
    detectors = {n: make(n) for n in ("energy", *PEERS) if n not in SEVERAL}
    scorer = Scorer(detectors)
    count.clear()
    scorer(images)
    assert len(count) == 1


@pytest.mark.parametrize("name", ["ash-s", "dice", "vim", "gradnorm"])
def test_a_head_without_bias(name, images, train):
    net = build(Tiny(bias=False))
    close(net.head_bias(net.variables), np.zeros(CLASSES))
    logits = head_logits(net, net.variables, jnp.asarray(net.features(images)))
    close(logits, net.logits(images))
    detector = si_jax.make_detector(name, net).fit(*train)
    assert np.isfinite(detector.score(images)).all()


def test_whole_numbers_are_floats_where_floats_are_meant(make):
    assert repr(make("ash-s", percentile=65).settings) == "{'percentile': 65.0}"


def test_published_defaults():
    published = {
        "odin": {"temperature": 1000.0, "step": 0.0014},
        "gen": {"gamma": 0.1, "top": 100},
        "ash-p": {"percentile": 65.0},
        "ash-b": {"percentile": 65.0},
        "ash-s": {"percentile": 65.0},
        "scale": {"percentile": 85.0},
        "dice": {"percentile": 90.0},
        "gradnorm": {"temperature": 1.0, "parameters": "head"},
        "i-odin": {"temperature": 1000.0, "step": 0.0014},
        "lts": {"percentile": 95.0},
        "nci": {"alpha": 0.0001},
        "mahalanobis": {"normalise": False},
        "vim": {"dim": None},
        "gmm": {"reg": 1e-6},
        "openmax": {"tail": 20, "alpha": 10},
        "mcm": {"temperature": 1.0},
        "grad-uncertainty": {"parameters": "head"},
        "cfood": {"share": 0.01, "max_images": 5000},
        "grood": {"max_images": 50_000},
        "gram": {"orders": 10, "taps": None},
        "nac": {"alpha": 100, "bins": 50, "least": 50, "max_images": 1000, "taps": None},
        "relation": {"power": 1, "least": 0.03, "max_images": 50_000},
    }
    assert {name: default_options(name) for name in published} == published
    assert default_options("react")["percentile"] == 90
    assert default_options("knn")["k"] == 50
    assert default_options("nnguide")["k"] == 10
    assert (default_options("vra")["low"], default_options("vra")["high"]) == (60, 95)
    adascale = {"low": 75, "high": 85, "k1": 5, "k2": 1, "weight": 10, "pixels": 0.05, "step": 0.5}
    for name in ("adascale-a", "adascale-l"):
        assert {k: default_options(name)[k] for k in adascale} == adascale
    assert default_options("rankfeat")["stages"] == 2
    assert kept_count(512, 65.0) == 512 - 333
