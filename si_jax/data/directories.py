"""Directories that are written whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is swept
    fcntl = None  # type: ignore[assignment]  # the name of a module

MARKER = ".si_jax_writing"
"""A file that the process which fills a hidden directory holds locked for as long as it runs."""
MAX_FILES = 100_000


@contextlib.contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """A hidden directory to fill, which takes the name `directory` once the block ends well.

    What is at `directory` is replaced then; its parents are made. What other processes left behind
    beside it, because they were killed while they wrote, is removed.
    """
    hidden = make_hidden(directory)
    old = hidden.with_name(f"{hidden.name}.old")
    try:
        with _marked(hidden):
            yield hidden
            for name in (MARKER, f"{MARKER}.new"):
                (hidden / name).unlink(missing_ok=True)
            if directory.exists():
                directory.rename(old)
            hidden.rename(directory)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    if old.exists():
        (old / MARKER).touch()
        shutil.rmtree(old, ignore_errors=True)
    sweep(directory.parent)


def make_hidden(directory: Path) -> Path:
    """A new hidden directory beside `directory`, whose parents are made; the umask holds."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    hidden = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    hidden.mkdir()
    return hidden


def sweep(parent: Path) -> None:
    """Remove the hidden directories in `parent` whose writer no longer runs."""
    for path in parent.iterdir():
        if fcntl is None or not path.name.startswith(".") or not (path / MARKER).is_file():
            continue
        with contextlib.suppress(OSError), (path / MARKER).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)


def check_new(directory: str | os.PathLike) -> None:
    """Raise a ValueError if something has the name of a directory that is to be written."""
    if os.path.lexists(directory):
        raise ValueError(f"{directory} exists already: choose another directory or remove it")


@contextlib.contextmanager
def _marked(directory: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    unlocked = directory / f"{MARKER}.new"
    with unlocked.open("wb") as file:
        # where the file system has no locks, nothing is marked, and so nothing swept
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            unlocked.rename(directory / MARKER)  # whoever sees the marker sees it locked
        yield
