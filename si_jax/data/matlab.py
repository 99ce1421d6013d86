"""Arrays of numbers out of MATLAB files of version 5, by NumPy and zlib alone.

SVHN comes in such files. scipy reads them with a C parser that trusts the file; here every length
is checked against the bytes that there are. The format is MathWorks' "MAT-File Format" (Level 5).
"""

import itertools
import math
import zlib
from collections.abc import Collection, Iterator

import numpy as np

_MATRIX, _COMPRESSED = 14, 15
_DTYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_NUMERIC_CLASSES = range(6, 16)  # double to uint64; others are cells, structures, text, sparse
_COMPLEX = 0x800


def read_mat(data: bytes, names: Collection[str], *, limit: int = 2**32) -> dict[str, np.ndarray]:
    """Read real numeric arrays by name.

    Args:
        data: the file's content.
        names: the arrays to read; others are passed over.
        limit: bytes that one array may unpack to.

    Returns:
        Name -> array, for those that are there. The dtype is the one that they are stored in.

    Raises:
        ValueError: if the file is damaged, of another version, or an array is no plain one.
    """
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        raise ValueError("it has no header of a MATLAB file of version 5")
    order = "<" if data[126:128] == b"IM" else ">"
    arrays = {}
    for kind, content in _elements(data[128:], order):
        if kind == _COMPRESSED:
            kind, content = next(_elements(_unpack(content, limit), order), (0, memoryview(b"")))
        if kind != _MATRIX:
            continue
        parts = list(itertools.islice(_elements(content, order), 4))
        if len(parts) < 3:
            raise ValueError("an array of it lacks its head")
        name = bytes(parts[2][1]).decode("latin-1")
        if name in names:
            arrays[name] = _array(name, parts, order)
    return arrays


def _unpack(content: memoryview, limit: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(content, limit)
    except zlib.error as error:
        raise ValueError(f"compressed data is damaged: {error}") from error
    if not unpacker.eof:
        raise ValueError("compressed data is cut off, or larger than is credible")
    return data


def _elements(data: bytes | memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Go through (type, content) of a sequence of data elements."""
    data, position = memoryview(data), 0
    while position + 8 <= len(data):
        first, size = np.frombuffer(data[position : position + 8], f"{order}u4").tolist()
        if first >> 16:  # a small element: size, type and up to four bytes in eight
            kind, size, start, step = first & 0xFFFF, first >> 16, position + 4, 8
            if size > 4:
                raise ValueError("a small element of it claims more than four bytes")
        else:
            kind, start = first, position + 8
            step = 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data):
            raise ValueError("it is cut off")
        yield kind, data[start : start + size]
        position += step


def _array(name: str, parts: list[tuple[int, memoryview]], order: str) -> np.ndarray:
    (_, flags), (_, dimensions), _, *values = parts
    if len(flags) < 8 or len(dimensions) % 4 or not values:
        raise ValueError(f"the head of {name} is damaged")
    flag = int(np.frombuffer(flags[:4], f"{order}u4")[0])
    if flag & 0xFF not in _NUMERIC_CLASSES or flag & _COMPLEX:
        raise ValueError(f"{name} is no array of real numbers")
    shape = np.frombuffer(dimensions, f"{order}i4").tolist()
    kind, content = values[0]
    if kind not in _DTYPES or any(length < 0 for length in shape):
        raise ValueError(f"the head of {name} is damaged")
    dtype = np.dtype(order + _DTYPES[kind])
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{name} claims the shape {tuple(shape)}, which it has not the bytes for")
    return np.frombuffer(content, dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="))
