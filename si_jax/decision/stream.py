"""Predict any number of image files in constant memory."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from si_jax.data.decoding import EXTENSIONS
from si_jax.data.folders import decode_file, walk
from si_jax.data.image_set import NO_LABEL, ImageStream, MissingSet
from si_jax.data.pipeline import WORKERS
from si_jax.data.sources import matching
from si_jax.detectors import Detector
from si_jax.detectors.predictions import check_preprocessing, predicted


@dataclass(frozen=True)
class FilePrediction:
    """What is predicted of one file.

    Attributes:
        file: its path, as given or found.
        label: predicted class; None if the file cannot be read, as all that follow.
        probability: its softmax probability.
        score: the detector's score; higher is more in-distribution.
        is_ood: whether the score is below the threshold.
        p_value: conformal p-value.
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
        values = {"file": self.file, "error": self.error} if self.error else vars(self)
        return {key: value for key, value in values.items() if self.error or key != "error"}


def find_images(
    paths: Iterable[str | os.PathLike], left_out: list[str] | None = None
) -> Iterator[str]:
    """The image files that paths stand for, one at a time.

    Files are taken whatever their ending, folders searched as by
    `si_jax.data.folders.from_folder`, globs (`"photos/**/*.jpg"`) followed.
    """
    for given in paths:
        path = os.path.expanduser(os.fspath(given))
        if os.path.isdir(path):
            empty = True
            for name, is_image in walk(Path(path)):
                if is_image:
                    empty = False
                    yield os.path.join(path, name)
                elif left_out is not None:
                    left_out.append(os.path.join(path, name))
            if empty:
                raise MissingSet(
                    f"{path} holds no images: put files that end in {', '.join(EXTENSIONS)} there"
                )
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
    stream = ImageStream(
        "files",
        lambda: map(os.fspath, files),
        lambda file: (decode_file(Path(file).expanduser()), NO_LABEL),
    )
    return _predict_files(detector, stream, workers)


def _predict_files(detector, stream, workers) -> Iterator[FilePrediction]:
    options = {"workers": workers, "skip_unreadable": True, "may_be_empty": True}
    for batch, rows in predicted(detector, stream, **options):
        columns = {name: iter(values.tolist()) for name, values in rows.items()}
        for row, file in enumerate(batch.entries):
            if row in batch.errors:
                yield FilePrediction(file, error=batch.errors[row])
            else:
                yield FilePrediction(file, **{k: next(column) for k, column in columns.items()})
