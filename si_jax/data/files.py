"""Files that are written whole or not at all, and what reading a damaged one raises."""

import os
import tempfile
import zipfile
import zlib
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
