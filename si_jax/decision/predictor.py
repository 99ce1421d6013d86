"""Predict any number of images in constant memory: files in order, or columns of a table."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.decoding import EXTENSIONS
from si_jax.data.files import AnyPath
from si_jax.data.folders import decode_file, walk
from si_jax.data.image_set import NO_LABEL, ImageStream, MissingSet
from si_jax.data.opening import load_entry
from si_jax.data.pipeline import WORKERS
from si_jax.data.sources import matching
from si_jax.detectors import Detector
from si_jax.detectors.loading import load_detector
from si_jax.detectors.predictions import check_preprocessing, predicted

UNREAD: dict[str, tuple] = {
    "class": (-1, np.int32),
    "probability": (np.nan, np.float32),
    "score": (np.nan, np.float32),
    "is_ood": (True, bool),
    "p_value": (np.nan, np.float64),
    "error": ("", object),
}
"""Column -> what stands there where an image cannot be read, and its dtype."""
COLUMNS = tuple(UNREAD)
ANY_IMAGES: dict[str, Any] = {"skip_unreadable": True, "may_be_empty": True}
"""Options of `predicted` for images that come from anywhere."""


class Predictor:
    """A saved detector as a callable on dictionaries of columns, constructed once per worker.

    The shape that Ray Data's `map_batches` and Hugging Face datasets' `map(batched=True)` take;
    for Spark's `mapInPandas` and Beam call it on the columns of each part:

        dataset.map_batches(si_jax.Predictor, fn_constructor_args=("my_detector",), ...)
        dataset.map(si_jax.Predictor("my_detector"), batched=True)
        predictor = si_jax.Predictor("my_detector")   # once per worker
        frame.assign(**predictor({"image": frame["image"]}))

    It is pickled as its directory alone, and loads the detector again where it arrives.

    Args:
        directory: of a saved, calibrated detector, or a bundled one's name.
        column: name of the column that holds the images.
        model: the network, where its code is not this library's; see `load_detector`.

    Raises:
        ValueError: if the detector cannot be loaded or is not calibrated.
    """

    def __init__(self, directory: str | os.PathLike, *, column: str = "image", model: Any = None):
        self._directory, self._options = os.fspath(directory), {"column": column, "model": model}
        self.column = column
        self.detector = load_detector(directory, model=model)
        check_preprocessing(self.detector)

    def __reduce__(self):
        return partial(Predictor, **self._options), (self._directory,)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Predict one batch.

        Args:
            batch: columns of equal length; that of the images holds arrays (height, width,
                channels) in the model's input size, or encoded images as bytes, paths, Pillow
                images or Hugging Face's `{"bytes": ..., "path": ...}`.

        Returns:
            The same columns, and `COLUMNS`: an image that cannot be read is out-of-distribution, of
            class -1, with NaN for the numbers and the reason in `"error"`, which is else empty.

        Raises:
            ValueError: if the column of the images is missing, or arrays do not fit the model.
        """
        if self.column not in batch:
            known = ", ".join(map(repr, batch))
            raise ValueError(f"the batch has no column {self.column!r}; it has {known}")
        items = list(batch[self.column])
        table = {name: np.full(len(items), *unread) for name, unread in UNREAD.items()}
        channels = self.detector.model.image_shape[-1]
        stream = ImageStream(
            "image", lambda: items, lambda item: load_entry((item, None), "the image", channels)
        )
        for part, columns in predicted(self.detector, stream, **ANY_IMAGES):
            for name, values in columns.items():
                table["class" if name == "label" else name][part.indices[part.mask]] = values
            for row, error in part.errors.items():
                table["error"][part.indices[row]] = error
        return {**batch, **table}


@dataclass(frozen=True)
class FilePrediction:
    """What is predicted of one file.

    Attributes:
        file: its path, as given or found.
        label, probability, score, is_ood, p_value: as of `Predictions`; None if the file cannot be
            read.
        error: why the file cannot be read; empty if it can.
    """

    file: str
    label: int | None = None
    probability: float | None = None
    score: float | None = None
    is_ood: bool | None = None
    p_value: float | None = None
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """What is known of it, as JSON."""
        known = {key: value for key, value in vars(self).items() if value is not None}
        return {key: value for key, value in known.items() if self.error or key != "error"}


def find_images(paths: Iterable[AnyPath], left_out: list[str] | None = None) -> Iterator[str]:
    """The images that paths stand for, one at a time: any files, folders' images, globs."""
    for given in paths:
        path = os.path.expanduser(os.fspath(given))
        if os.path.isdir(path):
            images = 0
            for name, is_image in walk(Path(path)):
                if is_image:
                    images += 1
                    yield os.path.join(path, name)
                elif left_out is not None:
                    left_out.append(os.path.join(path, name))
            if not images:
                endings = ", ".join(EXTENSIONS)
                raise MissingSet(f"{path} holds no images: put files that end in {endings} there")
        elif os.path.exists(path):
            yield path
        elif glob.has_magic(path):
            yield from matching(path)
        else:
            raise MissingSet(f"{path} does not exist: give files or folders of images")


def predict_files(
    detector: Detector, files: Iterable[str | os.PathLike], *, workers: int = WORKERS
) -> Iterator[FilePrediction]:
    """Predict files one after the other, in order; memory does not grow with their number.

    Files are decoded in threads, one batch ahead. One that cannot be read is given back with its
    error, and the others go on.

    Args:
        detector: calibrated.
        files: paths of images.
        workers: threads that decode.

    Raises:
        ValueError: if the detector is not calibrated, or was for another preprocessing.
    """
    check_preprocessing(detector)

    def load(file: str) -> tuple[np.ndarray, int]:
        return decode_file(Path(file).expanduser()), NO_LABEL

    def generated() -> Iterator[FilePrediction]:
        stream = ImageStream("files", lambda: map(os.fspath, files), load)
        for batch, rows in predicted(detector, stream, workers=workers, **ANY_IMAGES):
            columns = {name: iter(values.tolist()) for name, values in rows.items()}
            for row, file in enumerate(batch.entries):
                if row in batch.errors:
                    yield FilePrediction(file, error=batch.errors[row])
                else:
                    yield FilePrediction(file, **{k: next(column) for k, column in columns.items()})

    return generated()
