"""Hashes of images' content, so that a file that is replaced by another is noticed.

Files are hashed in threads. What takes long is remembered below `roots.home()`, under a key of
every file's path, size, inode and times of change, and so is only computed again where one of
them is another.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from si_jax.data import files
from si_jax.data.roots import home

HALF = 16  # bytes of a digest that are of the content; as many are of label and name
WORTH_CACHING = 2**26  # bytes of images from which on digests are kept
_SETTLED = 2_000_000_000  # nanoseconds after which a file's times tell one state from the next


def digest_of(content: bytes | memoryview, *facts: object) -> bytes:
    """Hash one image to 32 bytes: 16 of its content alone, then 16 of everything else."""
    rest = hashlib.blake2b(repr(facts).encode("utf-8", "surrogateescape"), digest_size=HALF)
    return hashlib.blake2b(content, digest_size=HALF).digest() + rest.digest()


def digests(
    compute: Callable[[int], bytes], indices: Sequence[int] | np.ndarray, name: str
) -> UInt8[np.ndarray, "n 32"]:
    """Hash images in threads, by a function that gives the 32 bytes of an index: uint8 (n, 32)."""
    rows = np.zeros((len(indices), 2 * HALF), np.uint8)
    with (
        ThreadPoolExecutor(8, thread_name_prefix="si_jax-hash") as executor,
        tqdm(total=len(rows), desc=f"{name}: hashing", unit="img", delay=2, leave=False) as bar,
    ):
        for first in range(0, len(rows), 256):
            part = [int(index) for index in indices[first : first + 256]]
            for row, digest in zip(rows[first:], executor.map(compute, part), strict=False):
                row[:] = np.frombuffer(digest, np.uint8)
            bar.update(len(part))
    return rows


def file_digests(
    root: Path, names: Sequence[str], facts: Sequence[object], name: str
) -> UInt8[np.ndarray, "n 32"]:
    """Hash files below a folder, or recall their hashes; an unreadable one counts as empty."""

    def compute(index: int) -> bytes:
        try:
            return digest_of(files.read_bytes(root / names[index]), facts[index])
        except OSError:
            return digest_of(b"", facts[index], "unreadable")

    return remembered(
        lambda: digests(compute, range(len(names)), name),
        len(names),
        [root / file for file in names],
        facts,
    )


def remembered(
    compute: Callable[[], np.ndarray], count: int, paths: Sequence[Path], facts: object
) -> UInt8[np.ndarray, "n 32"]:
    """Compute `count` rows of 32 bytes, or recall them where no file of `paths` has changed."""
    began = time.time_ns()
    states = [_state(path) for path in paths]
    if sum(state[0] for state in states) < WORTH_CACHING:
        return compute()
    places = [str(path.resolve()) for path in paths]
    known = repr((places, states, facts)).encode("utf-8", "surrogateescape")
    key = hashlib.sha256(known).hexdigest()
    try:
        kept = home() / "digests" / key
    except OSError:
        return compute()
    if (rows := _recall(kept, count)) is None:
        rows = compute()
        if began - max(max(state[1:3]) for state in states) > _SETTLED:
            _keep(kept, rows)
    return rows


def _state(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0, 0)
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _recall(path: Path, count: int) -> np.ndarray | None:
    try:
        rows = np.frombuffer(files.read_bytes(path), np.uint8)
    except OSError:
        return None
    return rows.reshape(count, 2 * HALF) if rows.size == 2 * HALF * count else None


def _keep(path: Path, rows: np.ndarray) -> None:
    try:
        files.write_atomically(path, lambda file: file.write(rows.tobytes()))
    except OSError:
        return  # a read-only home only costs the time of hashing again
