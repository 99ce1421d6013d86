"""A detector as batch systems call it: a table of columns in, the same table with verdicts out."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from si_jax.data.image_set import ImageStream
from si_jax.data.opening import load_entry
from si_jax.detectors.loading import load_detector
from si_jax.detectors.predictions import check_preprocessing, predicted

COLUMNS = ("class", "probability", "score", "is_ood", "p_value", "error")


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
        self._arguments = (os.fspath(directory), column, model)
        self.column = column
        self.detector = load_detector(directory, model=model)
        check_preprocessing(self.detector)

    def __reduce__(self):
        return _again, self._arguments

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
            raise ValueError(
                f"the batch has no column {self.column!r}; it has {', '.join(map(repr, batch))}"
            )
        items = list(batch[self.column])
        table: dict[str, np.ndarray] = {
            "class": np.full(len(items), -1, np.int32),
            "probability": np.full(len(items), np.nan, np.float32),
            "score": np.full(len(items), np.nan, np.float32),
            "is_ood": np.ones(len(items), bool),
            "p_value": np.full(len(items), np.nan),
            "error": np.full(len(items), "", object),
        }
        channels = self.detector.model.image_shape[-1]
        stream = ImageStream(
            "image", lambda: items, lambda item: load_entry((item, None), "the image", channels)
        )
        options = {"skip_unreadable": True, "may_be_empty": True}
        for part, columns in predicted(self.detector, stream, **options):
            for name, values in columns.items():
                table["class" if name == "label" else name][part.indices[part.mask]] = values
            for row, error in part.errors.items():
                table["error"][part.indices[row]] = error
        return {**batch, **table}


def _again(directory: str, column: str, model: Any) -> Predictor:
    return Predictor(directory, column=column, model=model)
