"""`prepare`, which downloads the public sets of a benchmark; `download_table` says from where.

Files are downloaded by gdown (the extra `download`), what TFDS alone prepares by TFDS.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from si_jax.checks import check_choice
from si_jax.data import files, finding, sources
from si_jax.data.catalogue import Listing, SetEntry, Tfds
from si_jax.data.download_table import BRINGS, DOWNLOADS
from si_jax.data.image_set import MissingSet
from si_jax.data.preprocessing import PROTOCOLS
from si_jax.data.tables import BENCHMARKS
from si_jax.data.unpacking import unpack


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one set: `state` is 'there', 'fetched', 'by hand' or 'failed'."""

    name: str
    state: str
    images: int
    detail: str


def prepare(
    benchmark: str,
    protocol: str = "published",
    data_dir: str | os.PathLike | None = None,
    ood_root: str | os.PathLike | None = None,
    *,
    full_spectrum: bool = False,
) -> Iterator[Outcome]:
    """Bring every public set of a benchmark that is not on this machine.

    Args:
        benchmark: a key of `BENCHMARKS`.
        protocol: `"published"` or `"openood"`.
        data_dir: folder of all data; None for `$SI_JAX_DATA` or `~/.cache/si_jax/data`.
        ood_root: folder for folders of images; None for `data_dir`.
        full_spectrum: whether the benchmark's covariate-shifted sets are brought too.

    Returns:
        An iterator that brings one set after the other and tells what became of it. A set that
        fails does not keep the next from being tried.

    Raises:
        ValueError: if `benchmark` or `protocol` is unknown.
    """
    check_choice(BENCHMARKS, benchmark=benchmark)
    check_choice(PROTOCOLS, protocol=protocol)
    table = BENCHMARKS[benchmark]
    where = finding.Where(data_dir, ood_root, fetch=False)
    entries = [table.id_entry("test", protocol), table.id_entry("train", protocol)]
    entries += [*table.ood[protocol], *(table.shifted if full_spectrum else ())]
    return _prepare(entries, protocol, where)


def fetch(url: str, path: Path, md5: str = "") -> str:
    """Download a file with gdown, going on where an earlier attempt ended.

    Args:
        url: its address, http or https, of Google Drive too.
        path: what to write; nothing has that name before its sum has been compared.
        md5: hexadecimal sum that it must have; '' where none is known.

    Returns:
        The file's MD5 sum.

    Raises:
        FailedDownload: if it cannot be downloaded or written, or its sum is another.
    """
    try:
        import gdown
    except ImportError as error:
        raise FailedDownload('downloads need gdown: pip install "si-jax[download]"') from error
    path.parent.mkdir(parents=True, exist_ok=True)
    came = path.with_name(f"{path.name}.unchecked")
    options = {"resume": True, "retries": 4, "timeout": 30.0, "use_cookies": False}
    try:
        gdown.download(url, str(came), **options)
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


class FailedDownload(OSError):
    """A file that could not be downloaded; the message says why and what to do."""


def bring(name: str, root: Path) -> Path:
    """Download one file, unpack it below the data root and count its images.

    Args:
        name: a key of `DOWNLOADS`.
        root: the data root.

    Returns:
        Where the set is.

    Raises:
        OSError: if it cannot be downloaded or written.
        ValueError: if it is not what it should be; nothing of it is left.
    """
    download = DOWNLOADS[name]
    target = root / download.folder
    single = Path(download.folder).suffix == ".mat"
    archive = target if single else root / "downloads" / name
    md5 = download.md5 or _recorded(root).get(name, "")
    if not archive.exists():
        md5_sum = fetch(download.address, archive, md5)
        if not md5:
            _record(root, name, md5_sum)
    if not single:
        unpack(archive, root, download.folder)
    if download.images:
        count = len(sources.from_path(target / download.counted))
        if count != download.images:
            target.unlink() if single else shutil.rmtree(target)
            raise ValueError(
                f"{name} holds {count} images where {download.images} are known; it was deleted."
            )
    if not single:
        archive.unlink()
    return target


def _prepare(entries: list[SetEntry], protocol: str, where: finding.Where) -> Iterator[Outcome]:
    if any(entry.has_list for entry in entries):
        lists = where.root / DOWNLOADS["openood_lists"].folder
        if lists.is_dir():
            yield Outcome("OpenOOD's lists", "there", 0, str(lists))
        else:
            yield _bring_set("OpenOOD's lists", "openood_lists", where.root)
    for entry in entries:
        yield _outcome(entry, protocol, where)


def _outcome(entry: SetEntry, protocol: str, where: finding.Where) -> Outcome:
    if (there := _look(entry, where)) is not None:
        return there
    key = BRINGS[protocol].get(entry.name)
    if key is not None:
        outcome = _bring_set(entry.name, key, where.root)
        there = _look(entry, where)
        if outcome.state != "fetched" or there is None:
            return outcome
        return dataclasses.replace(there, state="fetched")
    try:
        images = finding.find(entry, dataclasses.replace(where, fetch=True))
    except (MissingSet, OSError) as error:
        public = any(isinstance(place, Tfds) and place.fetch for place in entry.places)
        return Outcome(entry.name, "failed" if public else "by hand", 0, str(error))
    return Outcome(entry.name, "fetched", len(images), "prepared by TFDS")


def _look(entry: SetEntry, where: finding.Where) -> Outcome | None:
    """Say where a set is, if it's there as the protocol takes it."""
    try:
        images, place = finding.locate(entry, where)
    except MissingSet:
        return None
    except ValueError as error:
        return Outcome(entry.name, "failed", 0, str(error))
    if entry.has_list and not isinstance(place, Listing):
        return None
    return Outcome(entry.name, "there", len(images), finding.describe(place, where))


def _bring_set(name: str, key: str, root: Path) -> Outcome:
    try:
        target = bring(key, root)
    except FailedDownload as error:
        return Outcome(name, "failed", 0, str(error))
    except (OSError, ValueError) as error:
        return Outcome(name, "failed", 0, f"{key}: {error}")
    return Outcome(name, "fetched", DOWNLOADS[key].images, str(target))


def _recorded(root: Path) -> dict[str, str]:
    try:
        sums = json.loads(files.read_bytes(root / "downloads/md5.json"))
    except (OSError, ValueError):
        return {}
    return sums if isinstance(sums, dict) else {}


def _record(root: Path, name: str, md5: str) -> None:
    text = json.dumps({**_recorded(root), name: md5}, indent=1)
    files.write_text(root / "downloads/md5.json", text + "\n")
