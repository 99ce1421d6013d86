"""Unpack archives from elsewhere: all or nothing, inside the folder, no links, no bombs."""

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from si_jax.data import files
from si_jax.data.directories import make_hidden

MOST_FILES = 2_000_000
_BLOCK = 2**20


def unpack(archive: Path, root: Path, folder: str) -> Path:
    """Unpack a tar (of any compression) or zip file.

    Archives differ in how much of `folder` their paths repeat: with 'a/b' as the folder, a member
    called 'a/b/c.png', 'b/c.png' or 'c.png' becomes `root`/a/b/c.png.

    Args:
        archive: the file.
        root: the folder below which everything stays.
        folder: where the set goes, relative to `root`; it must not be there yet, or be empty.

    Returns:
        The folder's path.

    Raises:
        ValueError: if the archive is damaged, or holds paths that lead elsewhere, links, devices,
            or more than is credible: 2 million files, or the larger of 1 GiB and 20 times its size.
        OSError: if it cannot be read, or what is in it cannot be written.
    """
    target = root / folder
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OSError(f"{target} is there already: move it away to unpack {archive.name} anew.")
    limit = max(files.LEAST_UNPACKED, files.UNPACKED_SHARE * archive.stat().st_size)
    temporary = make_hidden(target)
    try:
        names = _extract(archive, temporary, limit)
        whole = temporary / _common(names, folder)
        if target.exists():
            target.rmdir()
        whole.rename(target)
    except OSError as error:
        if error.errno is not None:  # of the disk; damage has none
            raise
        raise _damaged(archive, error) from error
    except Refused:
        raise
    except files.BROKEN as error:
        raise _damaged(archive, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _extract(archive: Path, folder: Path, limit: int) -> list[PurePosixPath]:
    names: list[PurePosixPath] = []
    size = 0
    members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    for name, length, stream in members(archive):
        size += length
        if size > limit or len(names) >= MOST_FILES:
            raise Refused(f"{archive} unpacks to more than is credible for its size: don't use it.")
        names.append(name)
        _write(folder / name, stream, length)
    if not names:
        raise Refused(f"{archive} holds no files.")
    return names


class Refused(ValueError):
    """An archive that is not unpacked; the message says why."""


def _damaged(archive: Path, error: Exception) -> Refused:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return Refused(f"{archive} can't be unpacked ({reason}): delete it and download it again.")


def _zip_members(archive: Path) -> Iterator[tuple[PurePosixPath, int, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for info in tqdm(opened.infolist(), archive.name, unit="file", delay=2, leave=False):
            mode = info.external_attr >> 16
            plain = not stat.S_IFMT(mode) or stat.S_ISREG(mode)
            if info.is_dir():
                continue
            if (name := _safe(archive, info.filename, plain)) is not None:
                with opened.open(info) as stream:
                    yield name, info.file_size, stream


def _tar_members(archive: Path) -> Iterator[tuple[PurePosixPath, int, IO[bytes]]]:
    with tarfile.open(archive, "r:*") as opened:
        for info in tqdm(opened, archive.name, unit="file", delay=2, leave=False):
            if info.isdir():
                continue
            name = _safe(archive, info.name, info.isreg())
            if name is not None and (stream := opened.extractfile(info)) is not None:
                with stream:
                    yield name, info.size, stream


def _safe(archive: Path, name: str, plain: bool) -> PurePosixPath | None:
    """Give a member's path, or None for what is of no use; refuse whatever leads elsewhere."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name[:2]
    if outside or "\0" in name or not path.parts:
        raise Refused(f"{archive} holds the path {name!r}, which leads out of it: don't use it.")
    if not plain:
        raise Refused(f"{archive} holds {name!r}, a link or device: don't use it.")
    if path.parts[0] == "__MACOSX" or path.name.startswith("._"):
        return None
    return path


def _write(path: Path, stream: Any, length: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            while block := stream.read(_BLOCK):
                file.write(block)
                length -= len(block)
                if length < 0:
                    raise ValueError("a member is longer than it claims")
    except FileExistsError:
        raise Refused(f"an archive holds {path.name!r} twice: don't use it.") from None
    if length:
        raise ValueError(f"{path.name} is cut off")


def _common(names: list[PurePosixPath], folder: str) -> PurePosixPath:
    """Give the longest tail of `folder` that all paths begin with; that is where the set is."""
    parts = PurePosixPath(folder).parts
    for first in range(len(parts)):
        head = parts[first:]
        if all(name.parts[: len(head)] == head and len(name.parts) > len(head) for name in names):
            return PurePosixPath(*head)
    return PurePosixPath()
