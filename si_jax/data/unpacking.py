"""Unpack downloaded archives: all or nothing, inside the folder, no links, no bombs."""

import shutil
import tarfile
import zipfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from si_jax.data import files
from si_jax.data.directories import make_hidden

MOST_FILES = 2_000_000


class UnsafeArchive(ValueError):
    """An archive that is not unpacked; the message says why."""


def unpack(archive: Path, root: Path, folder: str) -> Path:
    """Unpack a tar (of any compression) or zip file to `folder` below `root`, and return its path.

    Archives differ in how much of `folder` their paths repeat: with 'a/b' as the folder, a member
    called 'a/b/c.png', 'b/c.png' or 'c.png' becomes `root`/a/b/c.png. Paths that lead elsewhere,
    links, devices, and more than 2 million files or the larger of 1 GiB and 20 times the archive's
    size are refused.
    """
    target, parts = root / folder, PurePosixPath(folder).parts
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OSError(f"{target} exists already: move it away to unpack {archive.name} again")
    temporary = make_hidden(target)
    try:
        _extract(archive, temporary)
        tails = [temporary.joinpath(*parts[k:]) for k in range(len(parts))]
        whole = next(filter(Path.is_dir, tails), temporary)
        if not any(whole.iterdir()):
            raise UnsafeArchive(f"{archive} holds no files")
        if target.exists():
            target.rmdir()
        whole.rename(target)
    except UnsafeArchive:
        raise
    except files.READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; damage has none
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnsafeArchive(
            f"{archive} cannot be unpacked ({reason}): delete it and download it again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _extract(archive: Path, folder: Path) -> None:
    """Extract an archive by the standard library, whose filters keep every path in the folder."""
    limit = max(files.LEAST_UNPACKED, files.UNPACKED_SHARE * archive.stat().st_size)
    count = size = 0

    def is_taken(name: str, length: int) -> bool:
        nonlocal count, size
        count, size = count + 1, size + length
        if size > limit or count > MOST_FILES:
            raise UnsafeArchive(f"{archive} unpacks to more than is credible for its size")
        path = PurePosixPath(name)
        return "__MACOSX" not in path.parts and not path.name.startswith("._")

    def accept(info: tarfile.TarInfo, path: Any) -> tarfile.TarInfo | None:
        if not (info.isreg() or info.isdir()):  # Python 3.11's filter lets some links lead outside
            raise UnsafeArchive(f"{archive} holds {info.name!r}, a link or device")
        return tarfile.data_filter(info, path) if is_taken(info.name, info.size) else None

    bar = partial(tqdm, desc=archive.name, unit="file", delay=2, leave=False)
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            tar.extractall(folder, bar(tar), filter=accept)
    else:
        with zipfile.ZipFile(archive) as opened:
            for info in bar(opened.infolist()):
                if is_taken(info.filename, info.file_size):
                    opened.extract(info, folder)
