"""Images that are held in memory: arrays, `.npz` files, SVHN's own `.mat` files."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from si_jax.data import files, fingerprints
from si_jax.data.image_set import (
    NO_LABEL,
    ImageSet,
    MissingSet,
    Prepared,
    check_any,
    fingerprint_of,
    prepared,
)

_READ_MAT = """
import math, sys
import numpy
from scipy.io import loadmat, whosmat

size = {name: math.prod(shape) for name, shape, _ in whosmat(sys.argv[1])}
if size["X"] + size["y"] > 2**31:
    raise ValueError("it claims more than 2 GiB")
content = loadmat(sys.argv[1], variable_names=("X", "y"))
numpy.savez(sys.stdout.buffer, X=content["X"], y=content["y"])
"""  # in a process of its own, as scipy's parser crashes on some damaged files


def from_arrays(
    name: str,
    images: Shaped[np.ndarray, "n height width *channels"],
    labels: Shaped[np.ndarray, " labels"] | None = None,
) -> ImageSet:
    """A set of images in memory: uint8, RGB or grey, or numbers as the network takes them."""
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.dtype.kind not in "buifV":  # bfloat16 is of kind V
        raise ValueError(
            f"images of {name} must be numbers of shape (n, height, width, channels), not"
            f" {images.dtype} of shape {images.shape}"
        )
    check_any(len(images), name)
    labels = np.full(len(images), NO_LABEL) if labels is None else np.asarray(labels)
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels of {name} must be integers of shape ({len(images)},), not {labels.dtype} of"
            f" shape {labels.shape}"
        )
    labels = labels.astype(np.int64)

    def load(index: int) -> Prepared:
        return prepared(images[index], int(labels[index]))

    def digest(index: int) -> bytes:
        return fingerprints.digest_of(images[index].tobytes(), int(labels[index]))

    return ImageSet(
        name=name,
        size=len(images),
        structure=fingerprint_of("arrays as they are", images.shape, str(images.dtype)),
        load_fn=load,
        ident_fn=lambda index: f"{name}[{index}]",
        digest_fn=lambda indices: fingerprints.digests(digest, indices, name),
    )


def from_npz(path: str | os.PathLike, *, name: str | None = None) -> ImageSet:
    """Read a `.npz` file with an array `images` and, if the images have labels, one `labels`."""
    path = _existing_file(path)
    try:
        arrays = files.read_arrays(path, ("images", "labels"))
    except files.READ_ERRORS as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{reason}; write it anew with numpy.savez") from error
    if "images" not in arrays:
        raise ValueError(f"{path} has no array called 'images'; write it under that name")
    return from_arrays(name or path.stem, arrays["images"], arrays.get("labels"))


def from_svhn_mat(path: str | os.PathLike, *, name: str | None = None) -> ImageSet:
    """One of SVHN's own files of 32x32 crops, e.g. `test_32x32.mat`; labels are 0 to 9.

    `X` is uint8 of shape (32, 32, 3, n), `y` the digits with 10 for zero.
    """
    path = _existing_file(path)
    command = [sys.executable, "-c", _READ_MAT, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=600)
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().split("\n")[-1][:200]
            raise ValueError(reason or "it crashes its reader")
        arrays = np.load(io.BytesIO(done.stdout), allow_pickle=False)
        images = arrays["X"].transpose(3, 0, 1, 2)
        labels = arrays["y"].ravel().astype(np.int64) % 10
    except (*files.READ_ERRORS, subprocess.SubprocessError) as error:
        raise ValueError(
            f"{path} is not one of SVHN's .mat files of 32x32 crops ({error}): download it again"
            " from http://ufldl.stanford.edu/housenumbers"
        ) from error
    return from_arrays(name or path.stem, images, labels)


def _existing_file(path: str | os.PathLike) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingSet(f"{path} is not a file; give the path of an existing file")
    return path
