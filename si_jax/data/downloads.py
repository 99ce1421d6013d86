"""`prepare`, which downloads the public sets of a benchmark that are not on this machine."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from si_jax.checks import check_choice
from si_jax.data import files, sources
from si_jax.data.benchmarks import SearchPaths, find
from si_jax.data.datasets import BENCHMARKS, LISTS, DatasetSpec, Download
from si_jax.data.image_set import MissingSet
from si_jax.data.preprocessing import PROTOCOLS

MOST_FILES = 2_000_000  # of an archive


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one set: `state` is 'there', 'fetched', 'manually' or 'failed'."""

    name: str
    state: str
    images: int
    detail: str


class FailedDownload(OSError):
    """A file that could not be downloaded; the message says why and what to do."""


def prepare(
    benchmark: str,
    protocol: str = "published",
    data_dir: str | os.PathLike | None = None,
    ood_root: str | os.PathLike | None = None,
    *,
    full_spectrum: bool = False,
) -> Iterator[Outcome]:
    """Download every public set of a benchmark that is not on this machine.

    Args:
        benchmark: a key of `BENCHMARKS`.
        protocol: `"published"` or `"openood"`.
        data_dir: folder of all data; None for `$SI_JAX_DATA` or `~/.cache/si_jax/data`.
        ood_root: folder for folders of images; None for `data_dir`.
        full_spectrum: whether the benchmark's covariate-shifted sets are downloaded too.

    Returns:
        An iterator that downloads one set after the other and says what became of it. A set that
        fails does not keep the next from being tried.

    Raises:
        ValueError: if `benchmark` or `protocol` is unknown.
    """
    check_choice(BENCHMARKS, benchmark=benchmark)
    check_choice(PROTOCOLS, protocol=protocol)
    table, paths = BENCHMARKS[benchmark], SearchPaths(data_dir, ood_root)
    specs = [spec for _, spec in table.specs(protocol)]
    specs += table.shifted if full_spectrum else ()
    tasks = [(spec.name, partial(_prepare_set, spec, protocol, paths)) for spec in specs]
    if any(spec.list_files for spec in specs):
        tasks.insert(0, ("OpenOOD's lists", partial(_prepare_lists, paths.root)))
    manually = {spec.name for spec in specs if spec.manually}

    def outcomes() -> Iterator[Outcome]:
        for name, task in tasks:
            try:
                yield Outcome(name, *task())
            except (OSError, ValueError) as error:
                yield Outcome(name, "manually" if name in manually else "failed", 0, str(error))

    return outcomes()


def _prepare_lists(root: Path) -> tuple[str, int, str]:
    target = root / LISTS.folder
    if target.is_dir():
        return "there", 0, str(target)
    return "fetched", 0, str(download_set(LISTS, root))


def _prepare_set(spec: DatasetSpec, protocol: str, paths: SearchPaths) -> tuple[str, int, str]:
    """Find a set, or download it; its state, number of images and place."""
    with contextlib.suppress(MissingSet):
        found = find(spec, paths)
        if found.is_listed or not spec.list_files:
            return "there", len(found.images), found.where
    if download := spec.download_for(protocol):
        download_set(download, paths.root)
    else:
        paths = dataclasses.replace(paths, fetch=True)
    found = find(spec, paths)
    return "fetched", len(found.images), found.where


def download_set(download: Download, root: Path) -> Path:
    """Download a set, unpack it below the data folder and count its images; return its place."""
    target = root / download.folder
    single = target.suffix == ".mat"
    archive = target if single else root / "downloads" / download.name
    sums = root / "downloads/md5.json"
    if not archive.exists():
        recorded: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            recorded = dict(json.loads(files.read_bytes(sums)))
        md5 = fetch(download.url, archive, download.md5 or str(recorded.get(download.name, "")))
        if not download.md5:
            files.write_text(sums, json.dumps({**recorded, download.name: md5}, indent=1) + "\n")
    if not single:
        unpack(archive, root, download.folder)
    if download.images:
        count = len(sources.from_path(target))
        if count != download.images:
            target.unlink() if single else shutil.rmtree(target)
            raise ValueError(
                f"{target} holds {count} images where {download.images} are known: it was deleted"
            )
    if not single:
        archive.unlink()
    return target


def fetch(url: str, path: Path, md5: str = "") -> str:
    """Download a file, or its rest, to `path` if its MD5 sum is `md5` or none is known; the sum."""
    try:
        import gdown
    except ImportError as error:
        raise FailedDownload('downloads need gdown: pip install "si-jax[download]"') from error
    path.parent.mkdir(parents=True, exist_ok=True)
    came = path.with_name(f"{path.name}.unchecked")
    try:
        gdown.download(url, str(came), resume=True, retries=4, timeout=30.0, use_cookies=False)
    except Exception as error:  # gdown raises its own errors and those of what it uses
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FailedDownload(
            f"{url} cannot be downloaded ({reason}): what has come is kept, so run the same command"
            f" again; or download it with a browser as {path}"
        ) from error
    with files.open_regular(came) as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if md5 and found != md5:
        came.unlink()
        raise FailedDownload(
            f"{url} has the MD5 sum {found} where {md5} is known, so it is another file or was"
            " damaged on its way: run the same command again, or look for another copy"
        )
    os.replace(came, path)
    return found


class UnsafeArchive(ValueError):
    """An archive that is not unpacked; the message says why."""


def unpack(archive: Path, root: Path, folder: str) -> Path:
    """Unpack a tar or zip file to `folder` below `root`, all or nothing.

    With 'a/b' as the folder, a member 'a/b/c.png', 'b/c.png' or 'c.png' becomes `root`/a/b/c.png.
    """
    if not hasattr(tarfile, "data_filter"):  # which refuses what would land elsewhere
        raise OSError(f"{archive} is unpacked by Python 3.11.4 or newer: upgrade Python")
    target, parts = root / folder, PurePosixPath(folder).parts
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OSError(f"{target} exists already: move it away to unpack {archive.name} again")
    temporary = files.make_hidden(target)
    try:
        _extract(archive, temporary)
        tails = [temporary.joinpath(*parts[k:]) for k in range(len(parts))]
        whole = next(filter(Path.is_dir, tails), temporary)
        if not any(whole.iterdir()):
            raise UnsafeArchive(f"{archive} holds no files")
        if target.exists():
            target.rmdir()
        whole.rename(target)
    except files.READ_ERRORS as error:
        if isinstance(error, UnsafeArchive) or getattr(error, "errno", None) is not None:
            raise  # of the disk; damage has no number
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
