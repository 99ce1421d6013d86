"""Files and directories that are written whole or not at all, and reading what may be anything."""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Collection, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is swept
    fcntl = None  # type: ignore[assignment]  # the name of a module

READ_ERRORS = (Exception,)
"""What reading a file raises that is damaged or of another kind: parsers fail in every way."""

AnyPath = str | os.PathLike

LEAST_UNPACKED = 2**30  # bytes that any archive may unpack to
UNPACKED_SHARE = 20  # a larger one may unpack to this many times its own size
LARGEST_FILE = 2**29  # bytes of a file that is read at once, such as an image

LARGEST_JSON = 64 << 20  # bytes
MAX_WHOLE = 2**63  # the largest whole number that is taken
MAX_DEPTH = 50

MARKER = ".si_jax_writing"
"""A file that the process which fills a hidden directory holds locked for as long as it runs."""
MAX_FILES = 100_000


class BrokenArchive(ValueError):
    """An archive of arrays is damaged, of another kind or of a size that is no data's."""


def open_regular(path: AnyPath) -> BufferedReader:
    """Open a regular file to read; never wait on a pipe or read a device without end."""
    flags = [getattr(os, name, 0) for name in ("O_NONBLOCK", "O_BINARY", "O_CLOEXEC")]
    descriptor = os.open(path, sum(flags, os.O_RDONLY))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: AnyPath, limit: int = LARGEST_FILE) -> bytes:
    """Read a regular file at once; an OSError, as of `open_regular`, if it has more bytes."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit / 2**20:.0f} MiB", str(path))
    return data


def read_arrays(path: AnyPath, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of a `.npz` file, of at most 1 GiB or 20 times its size; none is unpickled.

    NumPy's own `load` reads on where a member is shorter or longer than its header says, or is lost
    from the archive's list; here that is an error.
    """
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                check_members(file, archive)
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                if len(members) < len(archive.infolist()):
                    raise ValueError("it holds two arrays of one name")
                chosen = {k: v for k, v in members.items() if names is None or k in names}
                size = sum(info.file_size for info in chosen.values())
                if size > max(LEAST_UNPACKED, UNPACKED_SHARE * os.fstat(file.fileno()).st_size):
                    raise ValueError(f"it claims {size / 2**30:.1f} GiB, more than is credible")
                arrays = {}
                for name, info in chosen.items():
                    with archive.open(info) as member:
                        arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                        if member.read(1):  # its check sum is compared at its end
                            raise ValueError(f"{name} is longer than its header says")
                return arrays
        except READ_ERRORS as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            reason = reason.removesuffix(" when allow_pickle=False")
            raise BrokenArchive(f"{path} cannot be read as a .npz file ({reason})") from error


def check_members(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Raise an error if an archive's list of members, which has no check sum, is damaged.

    Opening a member compares its name; the archive's last record says how many there are.
    """
    for info in archive.infolist():
        archive.open(info).close()
    last = 22 + len(archive.comment)  # the record's size
    file.seek(-last, os.SEEK_END)
    count = int.from_bytes(file.read(last)[10:12], "little")
    if count not in (len(archive.infolist()), 0xFFFF):  # 0xFFFF: more than fit
        raise zipfile.BadZipFile(f"it lists {len(archive.infolist())} of {count} members")


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(binary file)` and give the file its name only once it is whole and on disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:  # the mode is the umask's
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a file of text, whole; what UTF-8 cannot say, as in names of files, is escaped."""
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def read_json(path: Path) -> Any:
    """The content of a JSON file within `LARGEST_JSON` and `MAX_DEPTH`; NaN is an error."""
    data = read_bytes(path, LARGEST_JSON)
    try:
        content = json.loads(data, parse_constant=_number, parse_int=_number, parse_float=_number)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    if _deeper(content, MAX_DEPTH):
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    return content


def fields_problem(values: dict[str, Any], record: type) -> str:
    """What is wrong with the fields of a dataclass; '' if nothing. Unknown ones are let through."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(record).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, *keys = first["loc"]
        if first["type"] == "missing":
            return f"it lacks {name!r}"
        place = f" for {' on '.join(map(repr, keys))}" if keys else ""
        wanted = first["msg"].replace("Input should be", "it must be")
        return f"{name!r} is of the wrong type{place}: {wanted}"
    return ""


def _number(text: str) -> int | float:
    whole = text.lstrip("-").isdigit()
    value = float(text) if not whole or len(text) > 25 else int(text)
    if not math.isfinite(value) or (whole and abs(value) >= MAX_WHOLE):
        raise ValueError(f"it holds {text[:30]}, which is no finite number")
    return value


def _deeper(content: Any, depth: int) -> bool:
    if not isinstance(content, dict | list):
        return False
    inner = content.values() if isinstance(content, dict) else content
    return depth == 0 or any(_deeper(one, depth - 1) for one in inner)


def json_hash(content: Any) -> str:
    """Hex SHA-256 of content as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def home() -> Path:
    """The folder of all that is kept: $SI_JAX_CACHE, or else ~/.cache/si_jax."""
    folder = Path(os.path.expanduser(os.environ.get("SI_JAX_CACHE") or "~/.cache/si_jax"))
    if folder.parts[0].startswith("~"):
        raise OSError(f"{folder} is in an unknown home folder: set $SI_JAX_CACHE to a folder")
    return folder


def default_data_dir() -> Path:
    """The folder of all data: $SI_JAX_DATA, or else `data` in `home()`."""
    given = os.environ.get("SI_JAX_DATA")
    return Path(given).expanduser() if given else home() / "data"


@contextlib.contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """A hidden directory to fill, which replaces `directory` once the block ends well."""
    hidden = make_hidden(directory)
    old, unlocked = hidden.with_name(f"{hidden.name}.old"), hidden / f"{MARKER}.new"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, hidden, ignore_errors=True)
        if fcntl is not None:
            file = stack.enter_context(unlocked.open("wb"))
            # where the file system has no locks, nothing is marked, and so nothing swept
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
                unlocked.rename(hidden / MARKER)  # whoever sees the marker sees it locked
        yield hidden
        for marker in (hidden / MARKER, unlocked):
            marker.unlink(missing_ok=True)
        if directory.exists():
            directory.rename(old)
        hidden.rename(directory)
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


def check_new(directory: AnyPath) -> None:
    """Raise a ValueError if something has the name of a directory that is to be written."""
    if os.path.lexists(directory):
        raise ValueError(f"{directory} exists already: choose another directory or remove it")
