"""What every detector promises, checked on one of them, also on your own.

`check_detector` takes the function that builds a detector and raises an AssertionError that says
which promise it breaks; `NETWORKS` are the small networks that it is run on, of several kinds, with
random weights, on images of 8x8 pixels.
"""

import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from si_jax.detectors import Detector, make_detector
from si_jax.model import Model

LONGEST = 600  # characters of a message that is still one sentence
IMAGES, FIT_IMAGES = 13, 60


def check_detector(
    make: str | Callable[..., Detector],
    model: Model | None = None,
    images: np.ndarray | None = None,
    fit_images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    *,
    invariance: bool = True,
    rtol: float = 1e-4,
) -> None:
    """Check that a detector keeps what all detectors promise.

    Scores are float32, finite, one an image, and not all the same; the same for one image, in
    another order, in batches of another size, of the fit too, and on one device (where there are
    several); black, white and identical images are scored; NaN, no images, another size, dtype or
    scale are refused in one sentence, and so is scoring before the fit; what was fitted can be
    saved and loaded, and another detector's state is refused.

    Args:
        make: a detector's name, or a function (model, batch_size=...) -> `Detector`.
        model: the network; None for a small one.
        images: uint8 images in the network's input size, at least five; None for random ones.
        fit_images: what it is fitted on; None for random ones.
        labels: their classes; None for random ones.
        invariance: whether to check batches, order and devices, which compiles it once more.
        rtol: how much scores of the same image may differ, relative to the spread of all scores;
            ten times as much after a fit in other batches.

    Raises:
        AssertionError: if it does not; the message says which promise is broken.

    Example:
        A detector of your own::

            si_jax.testing.check_detector(
                lambda model, batch_size=64: Detector("margin", model, margin(model), batch_size)
            )
    """
    if isinstance(make, str):
        name = make
        make = lambda model, **options: make_detector(name, model, **options)  # noqa: E731
    model = small_model() if model is None else model
    images = random_images(model, IMAGES, seed=1) if images is None else images
    if fit_images is None:
        fit_images = random_images(model, FIT_IMAGES, seed=2)
        labels = np.arange(FIT_IMAGES) % model.num_classes

    detector, other = make(model, batch_size=8), make(model, batch_size=1)
    if detector.needs_fit:
        _refused(lambda: detector.score(images), "it is scored before it is fitted")
    assert detector.fit(fit_images, labels, progress=False) is detector, "fit must return itself"
    height, *others = model.image_shape
    refused = {
        "NaN": np.full((2, height, *others), np.nan, np.float32),
        "none at all": images[:0],
        "of another size": np.zeros((2, height + 1, *others), np.float32),
        "int64": images[:2].astype(np.int64),
        "float64": images[:2] / 255.0,
        "float32 from 0 to 255": (images[:2] | 128).astype(np.float32),
        "float32 from 0 to 1": images[:4].astype(np.float32) / 255,
    }
    for what, wrong in refused.items():
        _refused(partial(detector.score, wrong), f"images are {what}")
        if detector.needs_fit:
            _refused(partial(other.fit, wrong), f"fitting images are {what}")

    scores = detector.score(images, progress=False)
    assert scores.dtype == np.float32, f"scores must be float32, not {scores.dtype}"
    assert scores.shape == (len(images),), f"one score an image, not {scores.shape}"
    assert np.ptp(scores) > 0, f"all images have the score {scores[0]}"
    tolerance = rtol * max(float(np.ptp(scores)), float(np.abs(scores).max()))
    same = images[:1].repeat(3, axis=0)
    extremes = [same, np.zeros_like(same[:2]), np.full_like(same[:2], 255)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alike = detector.score(np.concatenate(extremes), progress=False)[:3]
    assert np.ptp(alike) <= tolerance, "identical images must have the same score"

    foreign = {"nothing_of_the_kind": np.zeros(3, np.float32)}
    _refused(lambda: other.load_state(foreign), "the state of another detector is loaded")
    if detector.needs_fit:
        state, file = detector.check_fitted(), io.BytesIO()
        np.savez(file, **state)
        file.seek(0)
        other.load_state(dict(np.load(file, allow_pickle=False)))
        for name, array in other.check_fitted().items():
            assert np.array_equal(array, state[name]), f"{name} must be saved as it is"
    if invariance:
        order = np.random.default_rng(0).permutation(len(images))
        _same(detector, images[order], scores[order], tolerance, "in another order")
        first = jax.local_devices()[:1]
        with mock.patch.object(jax, "local_devices", lambda *args, **kwargs: first):
            _same(other, images, scores, tolerance, "one by one, on one device")
            if other.needs_fit:
                other.fit(fit_images, labels, progress=False)
                _same(other, images, scores, 10 * tolerance, "after a fit one by one")


def random_images(model: Model, count: int, seed: int) -> np.ndarray:
    """Images of coloured squares and noise, which differ more than noise alone."""
    rng = np.random.default_rng(seed)
    height, width, channels = model.image_shape
    squares = rng.integers(0, 256, (count, 2, 2, channels))
    squares = squares.repeat(-(-height // 2), axis=1).repeat(-(-width // 2), axis=2)
    noise = rng.integers(-40, 40, (count, height, width, channels))
    return np.clip(squares[:, :height, :width] + noise, 0, 255).astype(np.uint8)


def _refused(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except ValueError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < LONGEST, (
            f"where {what}, the message must be one sentence: {message!r}"
        )
        return
    except Exception as error:
        raise AssertionError(f"where {what}: {type(error).__name__}, not a ValueError") from error
    raise AssertionError(f"where {what}, it must raise a ValueError")


def _same(detector: Detector, images, expected: np.ndarray, tolerance: float, how: str) -> None:
    worst = float(np.abs(detector.score(images, progress=False) - expected).max())
    assert worst <= tolerance, f"scores {how} must be the same: they differ by {worst:.3g}"


SIZE, CLASSES = 8, 4


class Small(nn.Module):
    """Two convolutions, a norm and an activation behind each, a pool and a linear head."""

    classes: int = CLASSES
    width: int = 8
    activation: Callable = nn.relu
    dtype: Any = jnp.float32
    bias: bool = True
    block: Callable = lambda block: block

    @nn.compact
    def __call__(self, x):
        """Logits of images."""
        block = self.block(Block)
        x = block(6, 2, self.activation, self.dtype, name="block1")(x)
        x = block(self.width, 1, self.activation, self.dtype, name="block2")(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes, use_bias=self.bias, dtype=self.dtype, name="head")(x)


class Block(nn.Module):
    """A convolution, a norm and an activation."""

    width: int
    stride: int
    activation: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """The block's feature map."""
        x = nn.Conv(self.width, (3, 3), self.stride, dtype=self.dtype, name="conv")(x)
        x = nn.GroupNorm(2, dtype=self.dtype, name="norm")(x)
        return self.activation(x)


NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"dtype": jnp.bfloat16},
    "remat": {"block": nn.remat},
    "no ReLU": {"activation": nn.gelu},
    "no bias": {"bias": False},
    "two classes": {"classes": 2},
}
"""Kind of network -> what distinguishes it from the plain one."""


def small_model(kind: str = "plain", *, seed: int = 0) -> Model:
    """A network of a kind in `NETWORKS`, with random weights."""
    module = Small(**NETWORKS[kind])
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        spread = 2 / np.sqrt(np.prod(leaf.shape[:-1]))
        moments = (0.3, 0.3) if leaf.ndim == 1 else (0, spread)
        return rng.normal(*moments, leaf.shape).astype(np.float32)

    args = jax.tree.map(draw, shapes), SIZE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    return Model(module, *args, head="head", name=f"small, {kind}")
