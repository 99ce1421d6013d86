"""What a detector makes of images: its threshold by held-out ones, predictions of all others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from si_jax.data.pipeline import Batch
from si_jax.detectors.fitting import Sample
from si_jax.detectors.threshold import LAYER_QUANTILES, Threshold, p_values

THUMBNAIL = 96  # longest side of a kept calibration image, pixels


@dataclass(frozen=True)
class Predictions:
    """What is predicted of N images, and whether to believe it.

    Attributes:
        label: (N,) predicted class.
        probability: (N,) its softmax probability.
        score: (N,) the detector's score; higher is more in-distribution.
        is_ood: (N,) whether the score is below the threshold.
        p_value: (N,) conformal p-value, see `p_values`.
        preprocessing: how files were brought to the network's input size, in words; empty for
            images that came in that size.
    """

    label: Int[np.ndarray, "images"]
    probability: Float[np.ndarray, "images"]
    score: Float[np.ndarray, "images"]
    is_ood: Bool[np.ndarray, "images"]
    p_value: Float[np.ndarray, "images"]
    preprocessing: str = ""

    def __len__(self) -> int:
        return len(self.score)

    def __repr__(self) -> str:
        return f"Predictions({len(self)} images, {int(self.is_ood.sum())} out-of-distribution)"

    def as_dict(self) -> dict[str, np.ndarray]:
        """The arrays by name: a table's columns."""
        return {name: array for name, array in vars(self).items() if name != "preprocessing"}


def calibrated(
    detector: Any, images: Any, *, tpr: float = 0.95, keep_images: int = 0, **options: Any
) -> Threshold:
    """The threshold of a detector by held-out in-distribution images; see `Detector.calibrate`."""
    parts: list[dict[str, np.ndarray]] = []
    examples, features = Sample(keep_images), Sample(keep_images)  # the same draw of both
    transformed = False
    for batch, found, rows in detector.results(images, predictions=True, **options):
        transformed |= batch.transformed
        parts.append({k: v for k, v in rows.items() if k == "score" or k.startswith("tap_")})
        examples.add(found)
        features.add(rows["features"])
    kept = {}
    if examples.rows:
        thumbnails = [_thumbnail(detector, image) for image in examples.rows]
        kept = {"examples": np.stack(thumbnails), "example_features": np.stack(features.rows)}
    read = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    scores = np.sort(read.pop("score"))
    layers = {k: np.percentile(v, LAYER_QUANTILES, 0).astype(np.float32) for k, v in read.items()}
    prepared = str(detector.preprocessing) if transformed else ""
    return Threshold(scores, tpr, prepared, layers, **kept)


def predicted(detector: Any, images: Any, **options: Any) -> Iterator[tuple[Batch, dict]]:
    """(batch, columns of `Predictions` of its readable images), one batch after the other."""
    threshold = check_calibrated(detector)
    for batch, _, rows in detector.results(images, predictions=True, **options):
        if batch.transformed:
            check_preprocessing(detector)
        if rows is None:  # not one image can be read
            yield batch, {}
            continue
        scores = rows["score"]
        if (bad := np.flatnonzero(np.isnan(scores))).size:
            raise ValueError(
                f"the score of image {batch.indices[batch.mask][bad[0]]} is NaN: the network's"
                " weights are broken, or the image holds values that are too large"
            )
        columns = {name: rows[name] for name in ("label", "probability", "score")}
        columns["is_ood"] = scores < np.float32(threshold.value)
        yield batch, columns | {"p_value": p_values(threshold.scores, scores)}


def check_calibrated(detector: Any) -> Threshold:
    """The detector's threshold."""
    detector.check_fitted()
    if detector.threshold is None:
        raise ValueError(
            f"detector {detector.name!r} has no threshold: call calibrate(images) with"
            " in-distribution images that neither the network nor the detector has learnt from"
        )
    return detector.threshold


def check_preprocessing(detector: Any) -> None:
    """Refuse files that are not prepared as those of the calibration, if it was of files."""
    calibrated_on = check_calibrated(detector).preprocessing
    if calibrated_on not in ("", str(detector.preprocessing)):
        raise ValueError(
            f"the threshold was calibrated on images prepared by {calibrated_on!r}, but these are"
            f" prepared by {str(detector.preprocessing)!r}: calibrate again"
        )


def prediction_rows(inputs: Any, details: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The details of a batch that are kept, and label, probability, features of length 1."""
    logits = inputs.forward.logits
    features = inputs.forward.features.reshape(logits.shape[0], -1)
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    kept = {k: v for k, v in details.items() if k in ("score", "settled") or k.startswith("tap_")}
    return kept | {
        "label": jnp.argmax(logits, axis=-1),
        "probability": jnp.max(jax.nn.softmax(logits), axis=-1),
        "features": features / jnp.maximum(norm, 1e-10),
    }


def _thumbnail(detector, image) -> np.ndarray:
    """An image as uint8, at most `THUMBNAIL` pixels wide and high."""
    pixels = as_uint8(detector, image)
    height, width, channels = pixels.shape
    scale = THUMBNAIL / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    planes = [
        Image.fromarray(pixels[..., c]).resize(size, Image.Resampling.BOX) for c in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def as_uint8(detector: Any, image: Any) -> np.ndarray:
    """One image as it looks: a normalised one brought back to 0 to 255."""
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image
    pixels = image * np.float32(detector.model.std) + np.float32(detector.model.mean)
    return np.clip(np.round(255 * pixels), 0, 255).astype(np.uint8)
