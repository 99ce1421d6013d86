"""Predict any number of image files in constant memory."""

import glob
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.decoding import EXTENSIONS
from si_jax.data.image_set import MissingSet, UnreadableImage
from si_jax.data.opening import WORKERS, chunks, open_image
from si_jax.detectors import Detector
from si_jax.detectors.predictions import Predictions, check_preprocessing


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


def find_images(paths: Iterable[str | os.PathLike]) -> Iterator[str]:
    """The image files that paths stand for, one at a time.

    Args:
        paths: files, taken whatever their ending; folders, searched at any depth for files that end
            as images do, hidden ones left out, in the order of their names; and globs, such as
            `"photos/**/*.jpg"`.

    Raises:
        ValueError: (as MissingSet) if a path does not exist, a glob matches nothing, or a folder
            holds no image.
    """
    for given in paths:
        path = os.path.expanduser(os.fspath(given))
        if os.path.isdir(path):
            yield from _in_folder(path)
        elif os.path.exists(path) or not glob.has_magic(path):
            if not os.path.exists(path):
                raise MissingSet(f"{path} does not exist: give files or folders of images")
            yield path
        else:
            matched = iter(sorted(glob.iglob(path, recursive=True)))
            files = itertools.filterfalse(os.path.isdir, matched)
            if (first := next(files, None)) is None:
                raise MissingSet(f"no file matches {path}")
            yield first
            yield from files


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
    return _predict_files(detector, files, workers)


def predict_padded(detector: Detector, images: np.ndarray, padded: int) -> Predictions:
    """Predictions of images that are padded to a number, so that no new shape is compiled.

    Args:
        detector: calibrated.
        images: at most `padded` of them, at least one.
        padded: number of images that are computed.
    """
    count = len(images)
    if count < padded:
        images = np.concatenate([images, images[-1:].repeat(padded - count, axis=0)])
    result = detector.predict(images)
    return Predictions(
        **{name: values[:count] for name, values in result.as_dict().items()},
        preprocessing=str(detector.preprocessing),
    )


def _predict_files(detector, files, workers) -> Iterator[FilePrediction]:
    size, channels = detector.batch_size, detector.model.image_shape[-1]
    parts = chunks(map(os.fspath, files), size)

    def load(path: str) -> np.ndarray | str:
        try:
            return open_image(path, detector.preprocessing, channels)
        except UnreadableImage as error:
            return str(error)

    def submit() -> tuple[list[str], list[Future]] | None:
        part = next(parts, None)
        return None if part is None else (part, [pool.submit(load, path) for path in part])

    pool = ThreadPoolExecutor(workers, thread_name_prefix="si_jax-open")
    try:
        ahead, padded = submit(), 0
        while ahead:
            (part, futures), ahead = ahead, submit()
            # the first batch may be the only one, and is then padded to a power of two alone
            padded = size if padded or ahead else min(size, 1 << (len(part) - 1).bit_length())
            yield from _results(detector, part, [f.result() for f in futures], padded)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _results(detector, files, loaded, padded) -> Iterator[FilePrediction]:
    images = [item for item in loaded if not isinstance(item, str)]
    rows = predict_padded(detector, np.stack(images), padded).as_dict() if images else {}
    table = {name: iter(values.tolist()) for name, values in rows.items()}
    for file, item in zip(files, loaded, strict=True):
        if isinstance(item, str):
            yield FilePrediction(file, error=item)
        else:
            yield FilePrediction(file, **{name: next(values) for name, values in table.items()})


def _in_folder(root: str) -> Iterator[str]:
    empty = True
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(sub for sub in subfolders if not sub.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") and file.lower().endswith(EXTENSIONS):
                empty = False
                yield str(Path(folder, file))
    if empty:
        raise MissingSet(
            f"{root} holds no images: put files that end in {', '.join(EXTENSIONS)} there"
        )
