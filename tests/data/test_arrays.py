"""Arrays, npz and MATLAB files, and subsets."""

import io
import zipfile

import numpy as np
import pytest
from pictures import RNG, idents, labels, replicate
from scipy.io import savemat

from si_jax.data import files, sources
from si_jax.data.image_set import MissingSet, subset, take


def test_arrays():
    images = RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    found = sources.from_arrays("mine", images, np.array([3, 1, 2, 0]))
    image, label = found.load(2)
    np.testing.assert_array_equal(image, images[2])
    assert (len(found), label, found.ident(2)) == (4, 2, "mine[2]")
    with pytest.raises(IndexError, match=r"index \(=4\)"):
        found.load(4)
    with pytest.raises(IndexError, match=r"index \(=-1\)"):
        found.ident(-1)
    assert labels(sources.from_arrays("mine", images)) == [-1] * 4


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 5, 6, 1)])
def test_grey_arrays(shape):
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    image, _ = sources.from_arrays("grey", images).load(1)
    np.testing.assert_array_equal(image, replicate(images[1].reshape(5, 6)))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3), "M8[s]"), None, r"not datetime64\[s\] of shape"),
        (np.zeros((2, 4, 4, 3, 1), np.uint8), None, r"shape \(2, 4, 4, 3, 1\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), None, "holds no images"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, int), r"labels of x .*shape \(2,\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), "labels of x must be integers"),
    ],
)
def test_wrong_arrays(images, labels, message):
    with pytest.raises(ValueError, match=message):
        sources.from_arrays("x", images, labels)


def test_array_fingerprint_is_of_the_content():
    images = RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    first = sources.from_arrays("a", images).fingerprint
    assert first == sources.from_arrays("b", images.copy()).fingerprint
    assert first != sources.from_arrays("a", images, np.zeros(4, int)).fingerprint
    assert first != sources.from_arrays("a", images[::-1]).fingerprint


def test_npz(tmp_path):
    images = RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "set.npz", images=images, labels=np.arange(4))
    found = sources.from_path(tmp_path / "set.npz")
    assert found.name == "set"
    assert labels(found) == [0, 1, 2, 3]
    np.testing.assert_array_equal(found.load(3)[0], images[3])

    np.savez(tmp_path / "other.npz", pictures=images)
    with pytest.raises(ValueError, match="no array called 'images'"):
        sources.from_npz(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], object))
    with pytest.raises(ValueError, match=r"pickled\.npz cannot be read"):
        sources.from_npz(tmp_path / "pickled.npz")
    whole = (tmp_path / "set.npz").read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.npz cannot be read"):
            sources.from_npz(tmp_path / "bad.npz")
    with pytest.raises(MissingSet, match=r"absent\.npz is not a file"):
        sources.from_path(tmp_path / "absent.npz")


def npz_member(shape, content=b""):
    """A `.npy` that claims a shape, whatever it holds."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + content


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (npz_member((10**12, 32, 32, 3), bytes(100)), ""),
        (npz_member((-2, -50), bytes(100)), ""),
        (npz_member((5, 10), bytes(100)), "images is longer than its header says"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "version"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((( ", ""),
    ],
)
def test_npz_with_an_altered_header(tmp_path, member, reason):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", member)
    with pytest.raises(ValueError, match=rf"set\.npz cannot be read.*{reason}.*write it anew"):
        sources.from_npz(tmp_path / "set.npz")


def test_npz_that_unpacks_beyond_its_size_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros((3000, 32, 32, 3), np.uint8))
    assert len(sources.from_npz(tmp_path / "set.npz")) == 3000
    monkeypatch.setattr(files, "LEAST_UNPACKED", 2**20)
    with pytest.raises(ValueError, match="GiB, more than is credible"):
        sources.from_npz(tmp_path / "set.npz")


def test_npz_damaged_anywhere_ends_in_a_sentence(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    whole = (tmp_path / "whole.npz").read_bytes()
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(300):
        data = bytearray(whole)
        for position in rng.integers(len(data), size=3):
            data[position] = rng.integers(256)
        (tmp_path / "bad.npz").write_bytes(bytes(data))
        try:
            sources.from_npz(tmp_path / "bad.npz")
        except ValueError:
            told += 1
    assert told > 200


def test_svhn_mat(tmp_path):
    images = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    digits = np.array([[10], [1], [9]], np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": digits})
    found = sources.from_path(tmp_path / "test_32x32.mat")
    assert labels(found) == [0, 1, 9]
    np.testing.assert_array_equal(found.load(1)[0], images[1])
    (tmp_path / "bad.mat").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not one of SVHN's"):
        sources.from_path(tmp_path / "bad.mat")


def test_damaged_mat_files_end_in_a_sentence(tmp_path):
    """Some damages crash scipy's parser, which is why it runs in a process of its own."""
    images = RNG.integers(0, 256, (32, 32, 3, 2), dtype=np.uint8)
    savemat(tmp_path / "x.mat", {"X": images, "y": [[1], [2]]})
    whole = (tmp_path / "x.mat").read_bytes()
    rng = np.random.default_rng(0)
    for round_ in range(12):
        data = bytearray(whole[: len(whole) if round_ % 2 else rng.integers(len(whole))])
        for position in rng.integers(min(len(data), 250), size=4):
            data[position] = rng.integers(256)
        (tmp_path / "bad.mat").write_bytes(bytes(data))
        try:
            sources.from_svhn_mat(tmp_path / "bad.mat")
        except ValueError as error:
            assert "bad" in str(error)


def test_a_mat_file_that_crashes_its_reader_is_told(tmp_path, monkeypatch):
    (tmp_path / "bad.mat").write_bytes(b"x")
    monkeypatch.setattr(sources, "_READ_MAT", "import os; os.abort()")
    with pytest.raises(ValueError, match=r"bad\.mat is not one of SVHN's"):
        sources.from_svhn_mat(tmp_path / "bad.mat")
    monkeypatch.setattr(
        sources, "_READ_MAT", "import numpy, sys; numpy.savez(sys.stdout.buffer, X=[{}], y=[1])"
    )
    with pytest.raises(ValueError, match="allow_pickle"):
        sources.from_svhn_mat(tmp_path / "bad.mat")


def test_subset_is_seeded_and_in_order():
    whole = sources.from_arrays("x", RNG.integers(0, 256, (50, 2, 2, 3), dtype=np.uint8))
    part = subset(whole, 10, seed=1)
    names = idents(part)
    positions = [int(name[2:-1]) for name in names]
    assert positions == sorted(set(positions))
    assert len(part) == 10
    np.testing.assert_array_equal(part.load(4)[0], whole.load(positions[4])[0])
    again, other = subset(whole, 10, seed=1), subset(whole, 10, seed=2)
    assert (idents(again), again.fingerprint) == (names, part.fingerprint)
    assert idents(other) != names
    assert len({whole.fingerprint, part.fingerprint, other.fingerprint}) == 3
    assert subset(whole, None) is whole
    assert subset(whole, 50) is whole
    with pytest.raises(ValueError, match=r"limit \(=0\)"):
        subset(whole, 0)
    with pytest.raises(ValueError, match="between 0 and 49"):
        take(whole, [3, 50])
