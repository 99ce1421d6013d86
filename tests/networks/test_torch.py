"""PyTorch networks give PyTorch's numbers, on whole arrays, in many styles."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_styles as styles

import si_jax
from si_jax import splitting
from si_jax.integration import AscentPath, first_gradients, integrate, max_logit
from si_jax.taps import select

torch = pytest.importorskip("torch")
pytest.importorskip("torchax")
pytestmark = pytest.mark.usefixtures("one_device")

IMAGE = {"input_size": styles.SIZE, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
IMAGES = np.random.default_rng(0).integers(0, 256, (5, styles.SIZE, styles.SIZE, 3), np.uint8)
NEVER_OFF = ("convnext", "vit", "swin")


@cache
def network_and_model(style):
    network = styles.make(style)
    return network, si_jax.Model(network, **IMAGE)


@cache
def normalised():
    _, model = network_and_model("vgg")
    return np.asarray(model.normalise(jnp.asarray(IMAGES)))


def reference(style, taps=()):
    network, model = network_and_model(style)
    x = normalised().transpose(0, 3, 1, 2).copy()
    return styles.Reference(styles.copied(network), x, model.head, taps), model


def close(found, expected, tolerance=1e-5):
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("style", styles.STYLES)
def test_logits_and_features_are_pytorchs(style):
    torchs, model = reference(style)
    logits, features, _ = torchs.run()
    close(model.logits(IMAGES), logits.detach().numpy())
    close(model.features(IMAGES), features.detach().flatten(1).numpy())
    weights, bias = model.head_weights(model.variables), model.head_bias(model.variables)
    close(model.features(IMAGES) @ np.asarray(weights) + np.asarray(bias), model.logits(IMAGES))


def total(logits, features):
    return logits.max(1).values


@pytest.mark.parametrize("style", styles.STYLES)
def test_gradients_at_the_default_taps_are_autograds(style):
    _, model = network_and_model(style)
    taps = select(model)
    torchs, _ = reference(style, taps)
    path = AscentPath(steps=2, step_size=0.01)

    @jax.jit
    def computed(*args):
        args = (model, *args)
        outputs = splitting.forward(*args, record=taps).outputs
        plain = first_gradients(*args, taps, target=max_logit)
        return outputs, plain, integrate(*args, taps, target=max_logit, path=path)

    outputs, plain, integrated = computed(model.variables, normalised())
    expected, added = torchs.gradients(total), torchs.integrated(total, step_size=0.01)
    for tap in taps:
        assert outputs[tap].shape == plain[tap].shape
        close(plain[tap], torchs.channels_last(tap, expected[tap]))
        close(integrated[tap], torchs.channels_last(tap, added[tap]))


def scores(torchs, model, name, settings):
    """GAIA's and S&I's scores, as their papers have them, of PyTorch's gradients."""
    gradients = torchs.integrated if name.startswith("si") else torchs.gradients
    taps = settings["taps"]
    if name.endswith("z"):
        found = gradients(total)
        on = [torchs.channels_last(tap, found[tap]) != 0 for tap in taps]
        flat = [x.reshape(len(x), -1, x.shape[-1]).mean(1) for x in on]
        return -np.mean(np.concatenate(flat, -1) ** 2, -1)
    weights = np.asarray(model.head_weights(model.variables)).sum(1)
    chosen = torch.zeros(len(weights))
    chosen[np.argsort(-weights)[: int(settings["select"] * len(weights))].copy()] = 1
    found = gradients(lambda logits, features: (features.flatten(1) * chosen).sum(1))
    means = [torchs.channels_last(tap, found[tap]) for tap in taps]
    means = [x.reshape(len(x), -1, x.shape[-1]).mean(1) for x in means]
    outer = torchs.outer(name.startswith("si"))
    return -np.mean(np.concatenate(means, -1) ** 2, -1) / np.abs(outer).mean(-1)


@pytest.mark.parametrize("style", NEVER_OFF)
def test_zero_deflation_is_refused_without_relu(style):
    with pytest.raises(ValueError, match="no ReLU lies behind"):
        si_jax.make_detector("gaia-z", network_and_model(style)[1])


@pytest.mark.parametrize("name", ["gaia-a", "gaia-z", "si-a", "si-z"])
@pytest.mark.parametrize("style", ["resnet", "densenet", "mobilenet"])
def test_scores_are_those_of_autograd(style, name):
    _, model = network_and_model(style)
    detector = si_jax.make_detector(name, model)
    torchs, _ = reference(style, detector.settings["taps"])
    expected = scores(torchs, model, name, detector.settings)
    np.testing.assert_allclose(detector.score(IMAGES), expected, rtol=1e-4)
