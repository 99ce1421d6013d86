"""One picture of why a detector trusts an image, or does not.

The image, where the network's evidence for its class lies, how abnormal each layer is among the
calibration images, where the score lies among theirs, and the nearest of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from si_jax.detectors import reading
from si_jax.detectors.predictions import (
    Predictions,
    as_uint8,
    check_calibrated,
    check_preprocessing,
)
from si_jax.integration import first_gradients, max_logit
from si_jax.model import Model
from si_jax.splitting import FEATURES
from si_jax.taps import default_taps

NEAREST = 3
RARE = 0.05  # p-value below which a layer is called abnormal


@dataclass(frozen=True)
class Explanation:
    """What is known of one image, to be drawn by `si_jax.detectors.explanation_figure.draw`.

    Attributes:
        image: as the network sees it, uint8.
        prediction: of this image alone.
        maps: tap -> attribution map, see `attribution_maps`.
        layers: names of the layers that the detector reads, in order; empty if it reads none.
        positions: (layers,), where each lies among the calibration images, see `layer_positions`.
        by_p_value: whether `positions` are p-values.
        nearest: the nearest calibration images, uint8; empty where none are kept.
        similarity: their cosine similarity to this image's features.
        classes: names of the classes, if they are known.
        top: (class, softmax probability) of the most probable classes.
    """

    image: UInt8[np.ndarray, "height width channels"]
    prediction: Predictions
    maps: Mapping[str, Float[np.ndarray, "tap_height tap_width"]]
    layers: Sequence[str]
    positions: Float[np.ndarray, "layers"]
    by_p_value: bool
    nearest: Sequence[np.ndarray]
    similarity: Sequence[float]
    classes: Sequence[str]
    top: Sequence[tuple[int, float]]


def explanation(detector: Any, image: Any, scale: str | None = None) -> Explanation:
    """What the figure of one image shows."""
    threshold = check_calibrated(detector)
    model = detector.model
    batch = next(reading.batches_of(detector, image, 2))
    images = model.prepare_images(batch.readable[0], scale)
    if len(images) != 1:
        raise ValueError("images are several, where one picture explains one image: give one")
    if batch.transformed:
        check_preprocessing(detector)
    rows = detector.prediction_rows(images, batch_size=1)
    logits = model.logits(images, batch_size=1, scale="normalised")[0]
    probabilities = np.asarray(jax.nn.softmax(logits))
    top = np.argsort(-probabilities, kind="stable")[:5]
    layers, positions, by_p_value = layer_positions(detector, rows)
    nearest, similarity = [], []
    if threshold.examples is not None:
        cosine = threshold.example_features @ rows["features"][0]
        order = np.argsort(-cosine, kind="stable")[:NEAREST]
        nearest, similarity = list(threshold.examples[order]), [float(cosine[i]) for i in order]
    return Explanation(
        as_uint8(detector, images[0]),
        detector.predict(images, scale="normalised"),
        attribution_maps(model, images),
        layers,
        positions,
        by_p_value,
        nearest,
        similarity,
        list(model.card.get("classes", ())),
        [(int(c), float(probabilities[c])) for c in top],
    )


def attribution_maps(
    model: Model, images: np.ndarray
) -> dict[str, Float[np.ndarray, "tap_height tap_width"]]:
    """Where the evidence for the predicted class lies, at each tap of S&I that has positions.

    The mean over the channels of the absolute gradient of the largest logit at the tap (S&I's
    attribution gradient of the first step), each map divided by its maximum.
    """
    shapes = {call.path: call.shape or () for call in model.calls}
    taps = [
        tap
        for tap in default_taps(model, "si-z")
        if tap != FEATURES and len(shapes[tap]) == 3 and min(shapes[tap][:2]) > 1
    ]
    if not taps:
        return {}

    @jax.jit
    def gradients(variables, images):
        return first_gradients(model, variables, model.normalise(images), taps, target=max_logit)

    slopes = gradients(model.variables, images)
    maps = {tap: np.abs(np.asarray(slopes[tap][0], np.float32)).mean(axis=-1) for tap in taps}
    return {tap: values / max(float(values.max()), 1e-30) for tap, values in maps.items()}


def layer_positions(
    detector: Any, rows: Mapping[str, np.ndarray]
) -> tuple[list[str], Float[np.ndarray, "layers"], bool]:
    """Where each layer that the detector reads lies among the calibration images.

    Names of the layers; their p-values, where the detector gives them, else their distance from the
    calibration images' median, in halves of the range from their 5 % to their 95 % quantile; and
    which of the two it is.
    """
    threshold = check_calibrated(detector)
    for name in threshold.layers:
        values = rows[name][0]
        key = "inner" if name == "tap_average" else "taps"
        layers = list(detector.settings.get(key, range(len(values))))
        if name == "tap_pvalue":
            return [str(layer) for layer in layers], values, True
        low, median, high = threshold.layers[name]
        half = np.maximum((high - low) / 2, 1e-12)
        return [str(layer) for layer in layers], (values - median) / half, False
    return [], np.zeros(0, np.float32), False


def upsampled(values: Float[np.ndarray, "h w"], size: tuple[int, int]) -> np.ndarray:
    """A map resized to (height, width), bilinear."""
    picture = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
