"""Archives of arrays: damage is reported, never read as a smaller archive."""

import io

import numpy as np
import pytest

from si_jax.data.files import READ_ERRORS, read_arrays

ARRAYS = {"images": np.arange(6, dtype=np.uint8), "labels": np.array([3, 1]), "more": np.ones(2)}


@pytest.fixture(scope="module")
def archive():
    file = io.BytesIO()
    np.savez_compressed(file, **ARRAYS)
    return file.getvalue()


def test_whole(archive, tmp_path):
    path = tmp_path / "whole.npz"
    path.write_bytes(archive)
    arrays = read_arrays(path)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_a_damaged_list_of_members_loses_none_in_silence(archive, tmp_path):
    path = tmp_path / "damaged.npz"
    start = archive.index(b"PK\x01\x02")  # of the list, which has no check sum
    refused = 0
    for place in range(start, len(archive)):
        for bit in (0x01, 0x20, 0x80):
            damaged = bytearray(archive)
            damaged[place] ^= bit
            path.write_bytes(damaged)
            try:
                arrays = read_arrays(path)
            except READ_ERRORS:
                refused += 1
                continue
            assert arrays.keys() == ARRAYS.keys(), (place - start, bit)
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(arrays[name], array)
    assert refused > 100
