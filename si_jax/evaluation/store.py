"""Score files: one for each chunk of images, of one set by one detector; their names and keys.

A file carries a key, one hash of what determines its content and of nothing else; under another key
it is as good as none. The key holds the network's weights and its program, the detector's settings,
its method's version and what it has learnt, preprocessing, the set's content, and the versions of
jax and flax. It holds no source file: a change of a comment makes nothing stale, and a change of a
method's scores is marked by the method's version.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import splitting
from si_jax.data.files import BrokenArchive, json_hash, read_arrays, write_atomically
from si_jax.detectors import Detector
from si_jax.model import Model
from si_jax.weights.saved import weights_hash

FORMAT = 3  # raised when the arrays of a score file, or what is hashed here, change their meaning
HELD = ("score", "index", "label")  # in every file, a number an image; these alone stay in memory
LONGEST = 150  # bytes of a set's name, escaped; file systems allow 255, with prefixes and endings
PREDICTION = "prediction"  # in place of a detector: the predicted class

Arrays = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
"""Set -> detector -> name -> array with a row for each image."""


def check_names(names: Iterable[str], what: str = "set") -> None:
    """Refuse names of image sets or detectors that cannot be distinguished, written or shown."""
    seen: dict[str, str] = {}
    for name in names:
        said = f"the {what}'s name {name[:30]!a}"
        if not name or name != name.strip() or not name.isprintable():
            raise ValueError(f"{said} must be printable characters without spaces at its ends")
        if name == "total":  # of the seconds in results
            raise ValueError(f"{said} is reserved: choose another name")
        if len(escaped(name)) > LONGEST:
            raise ValueError(
                f"{said}... is too long: choose one of at most {LONGEST} bytes (three for each that"
                " is no letter, digit, or one of . _ -)"
            )
        other = seen.get(name.casefold())
        if other == name:
            raise ValueError(f"the {what} {name!r} is given twice: give each name once")
        if other is not None:
            raise ValueError(
                f"the {what}s' names {other!r} and {name!r} differ in case alone, which not all"
                " file systems distinguish: choose another name"
            )
        seen[name.casefold()] = name


def escaped(name: str) -> str:
    """A name as a folder's, another for another name: `%` and hex for what is no plain letter."""
    text = urllib.parse.quote(name, safe="")
    return "%2E" + text[1:] if text.startswith(".") else text


def key_of(facts: Mapping[str, Any]) -> str:
    """Hex hash of what determines a file's content; the versions of jax and flax are added."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax")}
    return json_hash({**facts, "versions": versions, "format": FORMAT})


def detector_facts(detector: Detector) -> dict[str, Any]:
    """What determines a detector's scores beside the network and what it has learnt."""
    # without a version nothing that is stored is ever taken for current
    version = uuid.uuid4().hex if detector.version is None else detector.version
    return {"detector": detector.name, "settings": detector.settings, "version": version}


def model_facts(model: Model) -> dict[str, Any]:
    """What determines a network's logits and features: its program, its weights, and its input."""
    return {
        "weights": weights_hash(model.variables),
        "program": _program_hash(model),
        "call_kwargs": repr(sorted(model.call_kwargs.items())),
        "head": str(model.head),
        "mean": list(map(float, model.mean)),
        "std": list(map(float, model.std)),
        "precision": model.precision,
        "input_size": list(map(int, model.input_size)),
    }


def _program_hash(model: Model) -> str:
    """Hex hash of what the network computes, as its compiler sees it; its weights aside."""

    def forward(variables, images):
        out = splitting.forward(model, variables, images)
        return out.logits, out.features

    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.variables)
    text = jax.jit(forward).lower(variables, image).as_text()
    return hashlib.sha256(text.encode()).hexdigest()


def write_keyed(path: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, compressed, beside the key of what determines them."""
    content: dict[str, Any] = {"key": np.array(key), **arrays}
    write_atomically(path, lambda file: np.savez_compressed(file, **content))


def read_keyed(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays that `write_keyed` wrote under that key; None for anything else."""
    try:
        arrays = read_arrays(path)
    except (OSError, BrokenArchive):
        return None
    return arrays if str(arrays.pop("key", "")) == key else None


def chunk_path(directory: Path, detector: str, image_set: str, number: int = 0) -> Path:
    """The score file of one chunk."""
    return directory / escaped(detector) / escaped(image_set) / f"{number:06d}.npz"


Chunk = dict[str, Any]
"""The `HELD` arrays of a score file, and None under the names of its others."""


def held(arrays: Mapping[str, np.ndarray]) -> Chunk:
    """What is kept in memory of a score file's arrays."""
    return {name: array if name in HELD else None for name, array in arrays.items()}


def read_chunk(path: Path, key: str) -> Chunk | None:
    """What a score file holds; None where it is absent, damaged or under another key."""
    arrays = read_keyed(path, key)
    if arrays is None or not set(HELD) <= set(arrays):
        return None
    score, index, label = (arrays[name] for name in HELD)
    kinds = score.dtype.kind == "f", index.dtype.kind == "i", label.dtype.kind in "iu"
    if not all(kinds) or not score.ndim == index.ndim == label.ndim == 1:
        return None
    rows = all(array.shape[:1] == index.shape for array in arrays.values())
    ascending = (np.diff(index, prepend=-1) > 0).all()
    return held(arrays) if rows and ascending else None


class Scores(Mapping[str, np.ndarray]):
    """One detector's arrays for one set; all but `HELD` are read each time they are asked for."""

    def __init__(self, paths: Sequence[Path], key: str, chunks: Sequence[Chunk]):
        self.paths, self._key = paths, key
        filled = [len(chunk["index"]) > 0 for chunk in chunks]
        self._filled = list(itertools.compress(paths, filled))
        self._names = list(next(itertools.compress(chunks, filled), HELD))
        self.held = {k: np.concatenate([c[k] for c in chunks] or [np.zeros(0)]) for k in HELD}

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.held:
            return self.held[name]
        if name not in self._names:
            raise KeyError(name)
        parts = []
        for path in self._filled:
            arrays = read_keyed(path, self._key)
            if arrays is None or name not in arrays:
                raise OSError(f"{path} was deleted or changed meanwhile: run it again")
            parts.append(arrays[name])
        return np.concatenate(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def load_scores(directory: Path, detector: str, image_set: str) -> Scores:
    """The scores of a finished set, by whatever computation; an error where there are none."""
    folder = chunk_path(directory, detector, image_set).parent
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise ValueError(f"{folder} holds no scores: evaluate again into the same directory")
    key, end, chunks = "none", -1, []
    with contextlib.suppress(OSError, BrokenArchive, KeyError):
        key = str(read_arrays(paths[0], ["key"])["key"])
    for path in paths:
        chunk = read_chunk(path, key)
        if chunk is None or (len(chunk["index"]) and chunk["index"][0] <= end):
            raise ValueError(f"{path} is no score file of that run: evaluate there again")
        end = max(end, *chunk["index"][-1:])
        chunks.append(chunk)
    return Scores(paths, key, chunks)
