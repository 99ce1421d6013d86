"""Images in memory and in files become an `ImageSet`; nothing that a file holds is run."""

import dataclasses
import glob
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from si_jax.data import files
from si_jax.data.decoding import EXTENSIONS
from si_jax.data.files import AnyPath
from si_jax.data.folders import from_files, from_folder
from si_jax.data.image_set import NO_LABEL, ImageSet, MissingSet, make_set, prepared, subset

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

SIDE = 32
PIXELS = 3 * SIDE**2
CLASSES = {1 + PIXELS: 10, 2 + PIXELS: 100}
"""Bytes of an image, the last of them before the pixels being its class -> number of classes."""

LABELS = "labels.npy"
"""The file of a folder of corrupted copies that holds the labels of each other file's images."""
ASIDE = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Corruptions that were published for choosing parameters, not for results."""
DRAWN = 10_000
"""Corrupted images that are taken: as many as there are clean ones."""


def from_path(
    path: AnyPath, *, name: str = "", num_classes: int | None = None, classes: Sequence[str] = ()
) -> ImageSet:
    """Open a folder, a `.npz` file, a list (`.txt`), a `.mat` file of SVHN, an image, or a glob."""
    path, kind = Path(path).expanduser(), kind_of(path)
    openers: dict = {".npz": from_npz, ".mat": from_svhn_mat, "corruptions": from_corruptions}
    if kind in openers:
        return openers[kind](path, name=name)
    if kind == ".txt":
        return from_list(path, name=name, num_classes=num_classes)
    if kind in ("glob", "image"):
        names = matching(str(path)) if kind == "glob" else [str(path)]
        return from_files(Path(), names, np.full(len(names), NO_LABEL), name or path.name)
    return from_folder(path, name=name, num_classes=num_classes, classes=classes)


def kind_of(path: AnyPath) -> str:
    """What a path names: a file of that ending, corruptions, a folder, glob, image, or nothing."""
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix in (".npz", ".mat", ".txt"):
        return suffix
    if path.is_dir():
        return "corruptions" if (path / LABELS).is_file() else "folder"
    if glob.has_magic(str(path)) and not path.exists():
        return "glob"
    return "image" if suffix in EXTENSIONS or path.exists() else ""


def holds_several(path: AnyPath) -> bool:
    """Whether a path is no image's, but a folder's, a glob, or a file's that holds a set."""
    is_image = Path(path).suffix.lower() in EXTENSIONS and not glob.has_magic(os.fspath(path))
    return not is_image and kind_of(path) not in ("image", "")


def matching(pattern: str) -> list[str]:
    """The files that a glob matches, in the order of their names; a MissingSet if there is none."""
    found = [p for p in sorted(glob.glob(pattern, recursive=True)) if not os.path.isdir(p)]
    if not found:
        raise MissingSet(f"no file matches {pattern}")
    return found


def from_list(
    path: AnyPath, *, name: str = "", roots: Sequence[AnyPath] = (), num_classes: int | None = None
) -> ImageSet:
    """Read the images that a text file lists, one a line: a path, and a number or wnid if known."""
    path = _existing_file(path)
    try:
        lines = files.read_bytes(path).decode("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a list of images ({error})") from error
    names, texts = [], []
    for line in filter(None, map(str.strip, lines)):
        file, _, label = line.rpartition(" ")
        known = bool(file) and re.fullmatch(r"-?\d{1,9}|n\d{8}", label) is not None
        names.append(file.strip() if known else line)
        texts.append(label if known else str(NO_LABEL))
    if not names:
        raise MissingSet(f"{path} lists no images")
    wnids = sorted({text for text in texts if text.startswith("n")})
    if wnids and not (all(text in wnids for text in texts) and num_classes in (None, len(wnids))):
        raise ValueError(
            f"{path} has {len(wnids)} different wnids as labels, where every line must have one and"
            f" the classifier has {num_classes} classes: give another list"
        )
    # the label of a wnid, such as n01440764, is its place among all of the list's
    places = {wnid: place for place, wnid in enumerate(wnids)}
    labels = [places.get(text, NO_LABEL) if wnids else max(int(text), NO_LABEL) for text in texts]
    if num_classes is not None and not 0 <= min(labels) <= max(labels) < num_classes:
        raise ValueError(
            f"{path} has labels from {min(labels)} to {max(labels)} where the classifier has"
            f" {num_classes} classes: give another list"
        )
    folders = [Path(root).expanduser() for root in roots] or [path.parent]
    root = next((folder for folder in folders if (folder / names[0]).exists()), folders[0])
    if lost := [file for file in names if not (root / file).exists()]:
        raise MissingSet(
            f"{path} lists {len(names)} images, {len(lost)} of which are not below {root} (as"
            f" {lost[0]}): save them there"
        )
    return from_files(root, names, np.array(labels, np.int64), name or path.stem)


def from_arrays(
    name: str, images: Shaped[np.ndarray, "n height width *channels"], labels: Any = None
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
    count = len(images)
    indices = np.full(count, NO_LABEL) if labels is None else class_indices(labels, count, name)

    def load(index: int) -> tuple[np.ndarray, int]:
        return prepared(images[index], int(indices[index]))

    return make_set(name, count, load, ("arrays", images.shape, str(images.dtype)))


def class_indices(labels: Any, count: int | None, name: str) -> Int[np.ndarray, " n"]:
    """Class indices of `count` images (None: of any number); one-hot rows become indices."""
    values = as_numpy(labels, f"labels of {name}")
    if values.ndim == 0 or (values.ndim == count == 1 and len(values) > 1):
        values = values[None]
    if values.ndim == 2:
        if values.shape[1] == 1:
            values = values[:, 0]
        elif ((values == 0) | (values == 1)).all() and (values.sum(axis=-1) == 1).all():
            values = values.argmax(axis=-1)
    if values.ndim != 1 or values.dtype.kind not in "iu" or count not in (None, len(values)):
        raise ValueError(
            f"labels of {name} (shape {values.shape}, dtype {values.dtype}) must be one class index"
            f" for each of {'the' if count is None else count} images, or one-hot rows"
        )
    return values.astype(np.int64)


def as_numpy(values: Any, name: str) -> np.ndarray:
    """An array of any library's, on the host."""
    if hasattr(values, "detach"):  # PyTorch's, which may lie on a device and keep gradients
        values = values.detach().cpu()
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        kind = type(values).__name__
        raise ValueError(f"{name} (of type {kind}) are no array of numbers of one shape") from None


def from_npz(path: AnyPath, *, name: str = "") -> ImageSet:
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


def from_svhn_mat(path: AnyPath, *, name: str = "") -> ImageSet:
    """Read one of SVHN's own files of 32x32 crops, e.g. `test_32x32.mat`; zeros are 10 in it."""
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
    except files.READ_ERRORS as error:
        raise ValueError(
            f"{path} is not one of SVHN's .mat files of 32x32 crops ({error}): download it again"
            " from http://ufldl.stanford.edu/housenumbers"
        ) from error
    return from_arrays(name or path.stem, images, labels)


def _existing_file(path: AnyPath) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingSet(f"{path} is not a file; give the path of an existing file")
    return path


def from_cifar_binary(paths: Sequence[AnyPath], *, name: str = "") -> ImageSet:
    """Read files of CIFAR's binary version, such as `train.bin`; of CIFAR-100 the fine labels."""
    parts = []
    for path in map(_existing_file, paths):
        data = np.frombuffer(files.read_bytes(path), np.uint8)
        width = next((w for w in CLASSES if data.size and data.size % w == 0), 0)
        rows = data.reshape(-1, width or 1)
        if not width or rows[:, -PIXELS - 1].max() >= CLASSES[width]:
            raise ValueError(
                f"{path} is not a file of CIFAR's binary version, whose images take"
                f" {' or '.join(map(str, CLASSES))} bytes each: download it again from"
                " https://www.cs.toronto.edu/~kriz/cifar.html"
            )
        images = rows[:, -PIXELS:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        parts.append((images, rows[:, -PIXELS - 1].astype(np.int64)))
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return from_arrays(name or Path(paths[0]).stem, images, labels)


def from_corruptions(folder: AnyPath, *, name: str = "", drawn: int | None = DRAWN) -> ImageSet:
    """Read `drawn` images of CIFAR-10-C or CIFAR-100-C: a `.npy` file a corruption, and labels."""
    folder = Path(folder).expanduser()
    paths = [p for p in sorted(folder.glob("*.npy")) if p.stem not in (*ASIDE, "labels")]
    if not paths:
        raise MissingSet(f"{folder} holds no corrupted images: unpack CIFAR-10-C.tar as that")
    labels = _mapped(folder / LABELS)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{folder / LABELS} must hold integers of shape (n,)")
    parts = [_mapped(path) for path in paths]
    shape = (len(labels), SIDE, SIDE, 3)
    for path, part in zip(paths, parts, strict=True):
        if part.shape != shape or part.dtype != np.uint8:
            raise ValueError(
                f"{path} must hold uint8 of shape {shape}, for the {len(labels)} labels of"
                f" {LABELS}, not {part.dtype} of shape {part.shape}"
            )

    def load(index: int) -> tuple[np.ndarray, int]:
        file, row = divmod(index, len(labels))
        return np.array(parts[file][row]), int(labels[row])

    def ident(index: int) -> str:
        return f"{stems[index // len(labels)]}[{index % len(labels)}]"

    stems = [path.stem for path in paths]
    name, size = name or folder.resolve().name, len(paths) * len(labels)
    whole = make_set(name, size, load, (stems, len(labels)), ident=ident)
    taken = subset(whole, drawn, 0)
    note = f"{len(taken)} of its {size} images are taken, drawn by seed 0"
    return whole if taken is whole else dataclasses.replace(taken, notes=(note,))


def _mapped(path: Path) -> np.ndarray:
    _existing_file(path)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except files.READ_ERRORS as error:
        raise ValueError(f"{path} cannot be read ({error}): unpack it again") from error
