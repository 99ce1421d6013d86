"""Bring a file over HTTP or from Google Drive: resumed, with progress, and checked against a sum.

What has come of a file lies beside it as `NAME.part` until it is whole.
"""

import hashlib
import os
import shutil
import time
from pathlib import Path

from tqdm import tqdm

from si_jax.data import files

_CHUNK = 2**14  # what came of a chunk that is cut off is lost
_PAGES = (b"<!doctype html", b"<html", b"<?xml")


class FailedDownload(OSError):
    """A file could not be brought; the message says why and what to do."""

    def __str__(self) -> str:
        return str(self.args[0])


def fetch(url: str, path: Path, md5: str = "", *, tries: int = 4, timeout: float = 30.0) -> str:
    """Download a file, going on where an earlier attempt ended.

    Args:
        url: its address, http or https.
        path: what to write; nothing has that name before it is whole and its sum is right.
        md5: hexadecimal sum that it must have; '' where none is known.
        tries: attempts, each of which goes on where the last one was cut off.
        timeout: seconds that the server may be silent.

    Returns:
        The file's MD5 sum.

    Raises:
        FailedDownload: if the server refuses it or sends a web page in its place, the connection
            or the disk fails, or the sum is another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    for attempt in range(tries):
        if attempt:
            time.sleep(min(2.0**attempt / 4, 5.0))
        if not (reason := _attempt(url, part, timeout)):
            return _finish(part, path, md5, url)
    came = part.stat().st_size if part.exists() else 0
    raise FailedDownload(
        f"{url} can't be downloaded: {reason}. {came / 2**20:.1f} MiB have come and are kept; run"
        " the same command again to go on."
    )


def fetch_from_drive(identifier: str, path: Path, md5: str = "") -> str:
    """Download a file of Google Drive with gdown; arguments, result and errors as `fetch`'s."""
    try:
        import gdown
    except ImportError as error:
        raise FailedDownload(
            'files on Google Drive need gdown: pip install "si-jax[download]"'
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    address = f"https://drive.google.com/uc?id={identifier}"
    part.unlink(missing_ok=True)  # gdown keeps what it resumes under names of its own
    try:
        done = gdown.download(id=identifier, output=str(part), resume=True)
    except Exception as error:  # gdown raises its own errors and those of what it uses
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FailedDownload(
            f"{address} can't be downloaded ({reason}): fetch it with a browser as {path}, and run"
            " the same command again."
        ) from error
    if done is None or not part.is_file():
        raise FailedDownload(f"{address} can't be downloaded: fetch it with a browser as {path}.")
    return _finish(part, path, md5, address)


def md5_of(path: Path) -> str:
    """Hash a file."""
    with files.open_regular(path) as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _attempt(url: str, part: Path, timeout: float) -> str:
    """Bring what is still missing; '' once all is there, else why it was cut off."""
    import requests

    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "si_jax"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            if response.status_code == 416:  # nothing from there on: it is whole, or another file
                size = response.headers.get("Content-Range", "").rpartition("/")[2]
                if size == str(start):
                    return ""
                part.unlink()
                return "the file there is another one now"
            if response.status_code >= 500:
                return f"the server answers {response.status_code} {response.reason}"
            if response.status_code not in (200, 206):
                raise FailedDownload(
                    f"{url} can't be downloaded: the server answers {response.status_code}"
                    f" {response.reason}. Look for another copy of the file, or try later."
                )
            begins = response.headers.get("Content-Range", "").removeprefix("bytes ")
            if response.status_code != 206 or not begins.startswith(f"{start}-"):
                start = 0  # the server sends the whole file again
            _refuse_page(response.headers.get("Content-Type", "").startswith("text/html"), url)
            length = response.headers.get("Content-Length")
            total = None if length is None else start + int(length)
            _check_space(part, total, start)
            came = _write(response, part, start, total, url)
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        return f"the connection failed ({type(error).__name__})"
    if total is not None and came < total:
        return f"the connection was cut off at {came} of {total} bytes"
    return ""


def _write(response, part: Path, start: int, total: int | None, url: str) -> int:
    with (
        part.open("r+b" if start else "wb") as file,
        tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=part.name, leave=False
        ) as bar,
    ):
        file.seek(start)
        file.truncate()
        came = start
        for chunk in response.iter_content(_CHUNK):
            if came == 0 and chunk.lstrip()[:20].lower().startswith(_PAGES):
                _refuse_page(True, url)
            try:
                file.write(chunk)
            except OSError as error:
                raise _no_space(part, error) from error
            came += len(chunk)
            bar.update(len(chunk))
    return came


def _refuse_page(is_page: bool, url: str) -> None:
    if is_page:
        raise FailedDownload(
            f"{url} can't be downloaded: the server sends a web page in place of the file. Open the"
            " address in a browser to see what it asks for."
        )


def _check_space(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise FailedDownload(
            f"{part.parent} has {free / 2**30:.1f} GiB left, and {part.stem} needs"
            f" {(total - start) / 2**30:.1f} GiB more: free some, or give another data_dir."
        )


def _no_space(part: Path, error: OSError) -> FailedDownload:
    return FailedDownload(
        f"{part} can't be written ({error.strerror}): free some space and run the same command"
        " again; it goes on where it was."
    )


def _finish(part: Path, path: Path, md5: str, url: str) -> str:
    md5_sum = md5_of(part)
    if md5 and md5_sum != md5:
        part.unlink()
        raise FailedDownload(
            f"{url} has the MD5 sum {md5_sum} where {md5} is known, so it is another file or was"
            " damaged on its way. It was deleted; run the same command again, or look for another"
            " copy."
        )
    os.replace(part, path)
    return md5_sum
