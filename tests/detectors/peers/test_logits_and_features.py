"""Detectors that need no fit: logits and features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from peer_networks import CLASSES, FEATURES, Tiny, build, close
from scipy.special import logsumexp, softmax

import si_jax
import si_jax.models
from si_jax import splitting
from si_jax.detectors.base import head_logits
from si_jax.detectors.layers import without_rank_one


def test_features_are_worth_testing_on(h):
    assert (h >= 0).all()
    assert (h == 0).any()
    assert (h.std(axis=0) > 0).all()


def test_energy_is_logsumexp(score, model, images):
    logits = model.logits(images).astype(np.float64)
    close(score("energy"), logsumexp(logits, axis=1))
    close(score("energy", temperature=7.0), 7 * logsumexp(logits / 7, axis=1))
    close(score("msp"), softmax(logits, axis=1).max(axis=1))
    close(score("max-logit"), logits.max(axis=1))


def test_gen(score, model, images):
    p = np.sort(softmax(model.logits(images).astype(np.float64), axis=1))
    close(score("gen"), -((p * (1 - p)) ** 0.1).sum(axis=1))
    close(score("gen", gamma=0.5, top=2), -np.sqrt(p * (1 - p))[:, -2:].sum(axis=1))


def test_gen_by_hand():
    """p = (1/2, 1/4, 1/4), gamma = 1: 1/4 + 3/16 + 3/16."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))

    variables = {"params": {"head": {"kernel": np.eye(3), "bias": np.log([2.0, 1.0, 1.0])}}}
    net = si_jax.Model(Net(), variables, (2, 2), (0.0,) * 3, (1.0,) * 3, head="head")
    detector = si_jax.make_detector("gen", net, gamma=1)
    close(detector.score(np.zeros((1, 2, 2, 3), np.uint8)), [-10 / 16])


def numpy_kept(h, percentile):
    count = FEATURES - round(FEATURES * percentile / 100)
    kept = np.zeros(h.shape, bool)
    np.put_along_axis(kept, np.argsort(-h, axis=1, kind="stable")[:, :count], True, axis=1)
    return kept, count


@pytest.mark.parametrize("percentile", [0.0, 20.0, 65.0])
def test_ash_and_scale(score, h, head, percentile):
    weights, bias = head
    kept, count = numpy_kept(h, percentile)
    pruned = h * kept
    total = h.sum(axis=1, keepdims=True)
    factor = np.exp(total / pruned.sum(axis=1, keepdims=True))
    shaped = {
        "ash-p": pruned,
        "ash-b": kept * total / count,
        "ash-s": pruned * factor,
        "scale": h * factor,
    }
    for name, features in shaped.items():
        expected = logsumexp(features @ weights + bias, axis=1)
        close(score(name, percentile=percentile), expected, rtol=1e-4)


def test_shaping_an_image_without_any_activation_is_finite():
    silent = build(Tiny())
    silent.variables["params"]["conv2"]["bias"][:] = -1e3
    image = np.zeros((1, 8, 8, 3), np.uint8)
    assert not silent.features(image).any()
    for name in ("ash-p", "ash-b", "ash-s", "scale", "gradnorm"):
        assert np.isfinite(si_jax.make_detector(name, silent).score(image)).all(), name


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (3, 2, 2, 9), (2, 3, 4, 3)])
def test_without_rank_one_is_numpys_svd(shape):
    maps = np.random.default_rng(0).normal(1, 1, shape).astype(np.float32)
    for image, reduced in zip(maps, np.asarray(without_rank_one(jnp.asarray(maps))), strict=True):
        u, s, vt = np.linalg.svd(image.reshape(-1, shape[-1]).astype(np.float64))
        expected = image - (s[0] * np.outer(u[:, 0], vt[0])).reshape(image.shape)
        close(reduced, expected, atol=1e-5)
        values = np.linalg.svd(reduced.reshape(-1, shape[-1]), compute_uv=False)
        close(values[: len(s) - 1], s[1:], atol=1e-5)


def test_without_rank_one_of_nothing_is_nothing():
    assert not np.asarray(without_rank_one(jnp.zeros((2, 3, 3, 4)))).any()


def test_rankfeat_on_a_foreign_network_takes_its_last_map(make, model, images, head):
    weights, bias = head
    detector = make("rankfeat")
    assert detector.settings["taps"] == ["conv2"]
    record = splitting.forward(
        model, model.variables, model.normalise(jnp.asarray(images)), record=["conv2"]
    )
    maps = np.asarray(record.outputs["conv2"], np.float64).reshape(len(images), -1, FEATURES)
    u, s, vt = np.linalg.svd(maps, full_matrices=False)
    maps = maps - s[:, :1, None] * u[:, :, :1] * vt[:, :1]
    logits = np.maximum(maps, 0).mean(axis=1) @ weights + bias
    close(detector.score(images), logsumexp(logits, axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "options", "taps"),
    [
        ("resnet14", {}, ["layer2_1", "layer3_1"]),
        ("wrn_16_4", {}, ["block2_1", "block3_1"]),
        ("bit_r50x1", {"units": (1, 1, 2, 1)}, ["block3_unit02", "block4_unit01"]),
    ],
)
def test_rankfeat_takes_the_outputs_of_the_last_stages(network, options, taps):
    row = si_jax.models.ARCHITECTURES[network]
    module = row.build(num_classes=3, **row.options | options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, *row.input_size, 3)))
    net = si_jax.Model(module, shapes, row.input_size, (0.5,) * 3, (0.5,) * 3, row.head)
    assert si_jax.make_detector("rankfeat", net).settings["taps"] == taps
    assert si_jax.make_detector("rankfeat", net, stages=1).settings["taps"] == taps[1:]


def test_rankfeat_averages_the_logits_of_its_maps(make, images, model):
    both = make("rankfeat", taps=("conv1", "conv2")).score(images)
    args = (model, model.variables, model.normalise(jnp.asarray(images)))
    logits = [
        np.asarray(splitting.forward(*args, edit={tap: without_rank_one}).logits)
        for tap in ("conv1", "conv2")
    ]
    close(both, logsumexp(np.mean(logits, axis=0), axis=1), rtol=1e-4)


def test_entropy(score, model, images):
    p = softmax(model.logits(images).astype(np.float64), axis=1)
    close(score("entropy"), (p * np.log(p)).sum(axis=1))


def test_lts(score, model, images, h):
    for percentile in (60.0, 85.0):
        count = FEATURES - round(FEATURES * percentile / 100)
        top = np.sort(h, axis=1)[:, -count:]
        scale = (h.sum(axis=1) / top.sum(axis=1)) ** 2
        expected = logsumexp(model.logits(images).astype(np.float64) * scale[:, None], axis=1)
        close(score("lts", percentile=percentile), expected, rtol=1e-4)


def test_mcm(score, h, head):
    u = h / np.linalg.norm(h, axis=1, keepdims=True)
    classes = head[0] / np.linalg.norm(head[0], axis=0)
    for temperature in (1.0, 0.1):
        expected = softmax(u @ classes / temperature, axis=1).max(axis=1)
        close(score("mcm", temperature=temperature), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["ash-s", "dice", "vim", "gradnorm"])
def test_a_head_without_bias(name, images, train):
    net = build(Tiny(bias=False))
    close(net.head_bias(net.variables), np.zeros(CLASSES))
    logits = head_logits(net, net.variables, jnp.asarray(net.features(images)))
    close(logits, net.logits(images))
    detector = si_jax.make_detector(name, net).fit(*train)
    assert np.isfinite(detector.score(images)).all()
