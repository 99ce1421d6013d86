"""Files that are written whole or not at all, and what reading a damaged one raises."""

import contextlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROKEN = (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)
"""What `np.load` and reading from it raise for a file that is damaged or of another kind."""


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(binary file)` and give the file its name only once it is whole and on disk.

    Raises:
        OSError: naming the file, if it cannot be written; no part of it is left behind.
    """
    try:
        _write_atomically(path, write)
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a file of text, UTF-8; whole and errors as `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def _write_atomically(path: Path, write: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def directory_written_whole(directory: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give an empty directory to write to, which takes its name at the end, once it is whole.

    Args:
        directory: the name; it must not exist unless `replace`.
        replace: whether what has that name may be replaced.

    Raises:
        ValueError: if the directory exists and is not to be replaced.
        OSError: if it cannot be written; no part of it is left behind.
    """
    if directory.exists() and not replace:
        raise ValueError(f"{directory} exists already: choose another directory or remove it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if directory.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
            directory.replace(old)
            shutil.rmtree(old)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
