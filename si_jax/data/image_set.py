"""`ImageSet` and `ImageStream`, the two forms in which images reach the rest of the library."""

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from tqdm import tqdm

from si_jax.checks import check_least
from si_jax.data import files

NO_LABEL = -1  # the label of an image without one
HALF = 16  # bytes of a digest that are of the content; as many are of label and name
WORTH_CACHING = 2**26  # bytes of images from which on digests are kept
_SETTLED = 2_000_000_000  # nanoseconds after which a file's times distinguish its states


class MissingSet(ValueError):
    """A data set is not where it was looked for; the message says what to do."""


class UnreadableImage(ValueError):
    """An image cannot be decoded; the message names its file."""


Image = Shaped[np.ndarray, "height width channels"]
Load = Callable[[Any], tuple[np.ndarray, int]]  # uint8, RGB, at its own size; or a `Prepared`


class Prepared(NamedTuple):
    """An image that was given as an array: it is not resized where it has the network's size."""

    image: Image
    label: int = NO_LABEL


def prepared(image: Image, label: int) -> Prepared:
    """An image of an array; grey pixels become RGB, as those of files do."""
    if image.shape[-1] == 1 and image.dtype == np.uint8:
        image = np.repeat(image, 3, axis=-1)
    return Prepared(image, label)


@dataclasses.dataclass(frozen=True)
class ImageStream:
    """Images that come one after the other, such as a generator's, whose number is not known."""

    name: str
    entries: Callable[[], Iterable[Any]] = dataclasses.field(repr=False)
    load_fn: Load = dataclasses.field(repr=False)

    def ident(self, index: int) -> str:
        """Name one image by its place."""
        return f"{self.name}[{index}]"


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A finite, ordered set of images that are decoded one at a time, on demand."""

    name: str  # in messages
    size: int
    structure: str  # hexadecimal hash of what determines names, labels and order
    load_fn: Load = dataclasses.field(repr=False)  # takes an index, in several threads at once
    ident_fn: Callable[[int], str] = dataclasses.field(repr=False)  # the name of the image there
    # gives a row of `digests` for each of several indices; None where `structure` says it all
    digest_fn: Callable | None = dataclasses.field(default=None, repr=False)
    notes: tuple[str, ...] = ()  # sentences for a report, such as which files were left out
    # of class folders that are numbers, the label that each would be if they were sorted as text
    other_labels: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.size

    def entries(self) -> range:
        """The indices, each of which `load_fn` takes."""
        return range(self.size)

    @functools.cached_property
    def digests(self) -> UInt8[np.ndarray, "n 32"]:
        """Hashes of every image, the first half of its content alone; none where none are known."""
        if self.digest_fn is None:
            return np.zeros((0, 32), np.uint8)
        return self.digest_fn(np.arange(self.size))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal hash of names, labels, order and content: another where a file is another."""
        return fingerprint_of(self.structure, self.digests.tobytes())

    def load(self, index: int) -> tuple[Image, int]:
        """Decode one image."""
        return self.load_fn(self._checked(index))

    def ident(self, index: int) -> str:
        """Name one image, e.g. 'banded/banded_0001.jpg' or 'cifar100/test[17]'."""
        return self.ident_fn(self._checked(index))

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(f"index (={index}) is outside {self.name}'s {self.size} images")
        return int(index)


def subset(image_set: ImageSet, limit: int | None, seed: int = 0) -> ImageSet:
    """Draw a seeded random subset, kept in the set's own order."""
    check_least(1, limit=limit)
    if limit is None or limit >= len(image_set):
        return image_set
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(image_set), size=limit, replace=False))
    return take(image_set, chosen)


def take(image_set: ImageSet, indices: Iterable[int] | Int[np.ndarray, " n"]) -> ImageSet:
    """Take the images at the given indices, in that order."""
    chosen = np.fromiter(indices, np.int64)
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(image_set):
        raise ValueError(
            f"indices must lie between 0 and {len(image_set) - 1}, the last image of"
            f" {image_set.name}; they run from {chosen.min()} to {chosen.max()}"
        )
    digest_fn = image_set.digest_fn
    return dataclasses.replace(
        image_set,
        size=len(chosen),
        structure=fingerprint_of("take", image_set.structure, chosen.tobytes()),
        load_fn=lambda index: image_set.load(int(chosen[index])),
        ident_fn=lambda index: image_set.ident(int(chosen[index])),
        digest_fn=digest_fn and (lambda indices: digest_fn(chosen[indices])),
    )


def unlabelled(image_set: ImageSet) -> ImageSet:
    """Give the same images without labels, where these are no classes of the classifier's."""
    return relabelled(image_set, np.full(len(image_set), NO_LABEL))


def relabelled(image_set: ImageSet, labels: Int[np.ndarray, " n"]) -> ImageSet:
    """Give the same images with other labels."""
    return dataclasses.replace(
        image_set,
        structure=fingerprint_of("labels", labels.tobytes(), image_set.structure),
        load_fn=lambda index: with_label(image_set.load(index), int(labels[index])),
        other_labels=(),
    )


def with_label(loaded: tuple[np.ndarray, int], label: int) -> tuple[np.ndarray, int]:
    """What was loaded, with another label."""
    image = loaded[0]
    return Prepared(image, label) if isinstance(loaded, Prepared) else (image, label)


def overlap(images: ImageSet, others: ImageSet) -> int:
    """Count the images whose content is, byte for byte, that of one of the others."""
    known = {row.tobytes() for row in others.digests[:, :16]}
    return sum(row.tobytes() in known for row in images.digests[:, :16])


def fingerprint_of(*parts: object) -> str:
    """Hash the parts (bytes as they are, anything else by its repr) to 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def digest_of(content: bytes | memoryview, *facts: object) -> bytes:
    """Hash one image to 32 bytes: 16 of its content alone, then 16 of everything else."""
    rest = hashlib.blake2b(repr(facts).encode("utf-8", "surrogateescape"), digest_size=HALF)
    return hashlib.blake2b(content, digest_size=HALF).digest() + rest.digest()


def make_set(
    name: str,
    size: int,
    load: Load,
    structure: Sequence[object],
    *,
    ident: Callable[[int], str] | None = None,
    read: Callable[[int], tuple[Any, ...]] | None = None,
    origin: Callable[[np.ndarray], tuple[Sequence[Path], object]] | None = None,
    **more: Any,
) -> ImageSet:
    """A set that hashes what `read`, or else `load`, gives; again where `origin` has changed."""
    if not size:
        raise MissingSet(f"{name} is empty: it holds no images; give at least one")

    def pixels(index: int) -> tuple[bytes, tuple[int, ...], int]:
        image, label = load(index)
        return image.tobytes(), image.shape, label

    def digest(index: int) -> bytes:
        try:
            content, *facts = (read or pixels)(index)
        except (UnreadableImage, OSError):  # which is reported where the image is loaded
            content, facts = b"", [index, "unreadable"]
        return digest_of(content, *facts)

    def compute(indices: np.ndarray) -> np.ndarray:
        count, rows = len(indices), []
        parts = [indices[k : k + 32].tolist() for k in range(0, count, 32)]
        with (
            ThreadPoolExecutor(8, thread_name_prefix="si_jax-hash") as executor,
            tqdm(total=count, desc=f"{name}: hashing", unit="img", delay=2, leave=False) as bar,
        ):
            for made in executor.map(lambda part: b"".join(map(digest, part)), parts):
                rows.append(made)
                bar.update(len(made) // (2 * HALF))
        return np.frombuffer(b"".join(rows), np.uint8).reshape(count, 2 * HALF)

    def digests(indices: np.ndarray) -> np.ndarray:
        if origin is None:
            return compute(indices)
        return remembered(lambda: compute(indices), len(indices), *origin(indices))

    ident = ident or (lambda index: f"{name}[{index}]")
    return ImageSet(name, size, fingerprint_of(*structure), load, ident, digests, **more)


def remembered(compute: Callable, count: int, paths: Sequence[Path], facts: object) -> np.ndarray:
    """Compute `count` rows of 32 bytes, or recall them where no file has changed, by its status."""
    began = time.time_ns()
    states = [_state(path) for path in paths]
    if sum(state[0] for state in states) < WORTH_CACHING:
        return compute()
    known = repr(([str(path.resolve()) for path in paths], states, facts))
    key = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()
    with contextlib.suppress(OSError):
        rows = np.frombuffer(files.read_bytes(files.home() / "digests" / key), np.uint8)
        if rows.size == 2 * HALF * count:
            return rows.reshape(count, 2 * HALF)
    rows = compute()
    if began - max(max(state[1:3]) for state in states) > _SETTLED:
        with contextlib.suppress(OSError):  # a read-only home only costs the time of hashing again
            kept = files.home() / "digests" / key
            files.write_atomically(kept, lambda file: file.write(rows.tobytes()))
    return rows


def _state(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0, 0)
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
