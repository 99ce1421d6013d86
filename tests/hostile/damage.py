"""What happens to files in a hostile world: bytes are altered, or pickles planted."""

import io
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np


class Planted:
    """Unpickled, it makes a file: the sign that code was executed."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


BYTES = ("flip", "overwrite", "cut", "drop", "insert", "huge", "header")
VALUES = (b"-1", b"0", b"1e9", b"1e400", b"NaN", b'"x"', b"[]", b"{}", b"null", b"true",
          b"[[[[1]]]]")  # fmt: skip


def altered(how: str, data: bytearray, rng: np.random.Generator) -> bytes:
    """Bytes after one of the ways to damage them."""
    if how == "flip":
        for offset in rng.integers(0, len(data), rng.integers(1, 9)):
            data[offset] ^= 1 << rng.integers(0, 8)
    elif how == "header":
        for offset in rng.integers(0, min(len(data), 128), rng.integers(1, 5)):
            data[offset] = rng.integers(0, 256)
    else:
        start = int(rng.integers(0, len(data) + (how == "insert")))
        length = 4 if how == "huge" else 0 if how == "cut" else int(rng.integers(1, 65))
        if how == "cut":
            del data[start:]
        elif how == "drop":
            del data[start : start + length]
        else:
            end = start if how == "insert" else start + length
            data[start:end] = b"\xff\xff\xff\x7f" if how == "huge" else rng.bytes(length)
    return bytes(data)


def alter(path: Path, rng: np.random.Generator) -> str:
    """Alter a file in one way; in JSON, half of the time a number becomes another value."""
    data = path.read_bytes()
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", data)) if path.suffix == ".json" else []
    if numbers and rng.random() < 0.5:
        chosen, value = numbers[rng.integers(len(numbers))], VALUES[rng.integers(len(VALUES))]
        path.write_bytes(data[: chosen.start()] + value + data[chosen.end() :])
        return f"number -> {value.decode()}"
    how = BYTES[rng.integers(len(BYTES))]
    path.write_bytes(altered(how, bytearray(data), rng) if data else rng.bytes(64))
    return how


def plant(path: Path, marker: Path, rng: np.random.Generator) -> str:
    """Put a pickle into a file's place, or into the place of an array of an archive."""
    planted = pickle.dumps(Planted(marker))
    if zipfile.is_zipfile(path) and rng.random() < 0.7:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        victim = list(members)[rng.integers(len(members))]
        content = io.BytesIO()
        np.lib.format.write_array(content, np.array([Planted(marker)], object), allow_pickle=True)
        is_array = victim.endswith(".npy") and rng.random() < 0.8
        members[victim] = content.getvalue() if is_array else planted
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return "pickle in an archive"
    path.write_bytes(planted)
    return "pickle"
