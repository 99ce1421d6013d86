"""What every detector promises, checked on one of them."""

import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import jax
import numpy as np

from si_jax.detectors import Detector, make_detector
from si_jax.model import Model
from si_jax.testing.networks import small_model

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
    for what, wrong in _wrong_images(model, images):
        _refused(partial(detector.score, wrong), f"images are {what}")
        if detector.needs_fit:
            _refused(partial(other.fit, wrong), f"fitting images are {what}")

    scores = _score(detector, images)
    assert scores.dtype == np.float32, f"scores must be float32, not {scores.dtype}"
    assert scores.shape == (len(images),), f"one score an image, not {scores.shape}"
    assert np.ptp(scores) > 0, f"all images have the score {scores[0]}"
    tolerance = rtol * max(float(np.ptp(scores)), float(np.abs(scores).max()))
    _extremes(detector, images, tolerance)
    _state(detector, other)
    if invariance:
        order = np.random.default_rng(0).permutation(len(images))
        _same(_score(detector, images[order]), scores[order], tolerance, "in another order")
        first = jax.local_devices()[:1]
        with mock.patch.object(jax, "local_devices", lambda *args, **kwargs: first):
            _same(_score(other, images), scores, tolerance, "one by one, on one device")
            if other.needs_fit:
                other.fit(fit_images, labels, progress=False)
                _same(_score(other, images), scores, 10 * tolerance, "after a fit one by one")


def random_images(model: Model, count: int, seed: int) -> np.ndarray:
    """Images of coloured squares and noise, which differ more than noise alone."""
    rng = np.random.default_rng(seed)
    height, width, channels = model.image_shape
    squares = rng.integers(0, 256, (count, 2, 2, channels))
    squares = squares.repeat(-(-height // 2), axis=1).repeat(-(-width // 2), axis=2)
    noise = rng.integers(-40, 40, (count, height, width, channels))
    return np.clip(squares[:, :height, :width] + noise, 0, 255).astype(np.uint8)


def _wrong_images(model: Model, images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "NaN", np.full((2, *model.image_shape), np.nan, np.float32)
    yield "none at all", images[:0]
    yield "of another size", np.zeros((2, model.image_shape[0] + 1, *model.image_shape[1:]), "f4")
    yield "int64", images[:2].astype(np.int64)
    yield "float64", images[:2] / 255.0
    yield "float32 from 0 to 255", (images[:2] | 128).astype(np.float32)
    yield "float32 from 0 to 1", images[:4].astype(np.float32) / 255


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


def _score(detector: Detector, images: np.ndarray) -> np.ndarray:
    scores = detector.score(images, progress=False)
    assert np.isfinite(scores).all(), "scores must be finite"
    return scores


def _extremes(detector: Detector, images: np.ndarray, tolerance: float) -> None:
    """Black, white and identical images."""
    same = images[:1].repeat(3, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = _score(
            detector, np.concatenate([same, np.zeros_like(same[:2]), np.full_like(same[:2], 255)])
        )
    assert np.ptp(scores[:3]) <= tolerance, "identical images must have the same score"


def _state(detector: Detector, other: Detector) -> None:
    """What was fitted is saved and loaded by another; a state of another kind is refused."""
    foreign = {"nothing_of_the_kind": np.zeros(3, np.float32)}
    _refused(lambda: other.load_state(foreign), "the state of another detector is loaded")
    if not detector.needs_fit:
        return
    state = detector.check_fitted()
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    with np.load(file, allow_pickle=False) as saved:
        other.load_state({name: saved[name] for name in saved.files})
    for name, array in other.check_fitted().items():
        assert np.array_equal(array, state[name]), f"{name} must be saved as it is"


def _same(scores: np.ndarray, expected: np.ndarray, tolerance: float, how: str) -> None:
    worst = float(np.abs(scores - expected).max())
    assert worst <= tolerance, f"scores {how} must be the same: they differ by {worst:.3g}"
