"""Arrays, archives, CIFAR's and SVHN's own files, lists; and subsets of them."""

import io

import numpy as np
import pytest
from pictures import RNG, idents, labels, npy, npz, replicate, write
from scipy.io import savemat

from si_jax.data import files, sources
from si_jax.data.files import read_arrays
from si_jax.data.image_set import MissingSet, subset, take
from si_jax.data.sources import from_cifar_binary, from_corruptions

ARRAY = RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)


def test_arrays():
    found = sources.from_arrays("mine", ARRAY, np.array([3, 1, 2, 0]))
    image, label = found.load(2)
    np.testing.assert_array_equal(image, ARRAY[2])
    assert (len(found), label, found.ident(2)) == (4, 2, "mine[2]")
    with pytest.raises(IndexError, match=r"index \(=4\)"):
        found.load(4)
    with pytest.raises(IndexError, match=r"index \(=-1\)"):
        found.ident(-1)
    assert labels(sources.from_arrays("mine", ARRAY)) == [-1] * 4
    for grey in (ARRAY[..., 0], ARRAY[..., :1]):
        image, _ = sources.from_arrays("grey", grey).load(1)
        np.testing.assert_array_equal(image, replicate(ARRAY[1, ..., 0]))
    again = sources.from_arrays("b", ARRAY.copy(), np.array([3, 1, 2, 0]))
    assert again.fingerprint == found.fingerprint
    others = [(ARRAY, np.zeros(4, int)), (ARRAY[::-1], None), (ARRAY, None)]
    prints = {sources.from_arrays("a", *other).fingerprint for other in others}
    assert len(prints | {found.fingerprint}) == 4


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3), "M8[s]"), None, r"not datetime64\[s\] of shape"),
        (np.zeros((2, 4, 4, 3, 1), np.uint8), None, r"shape \(2, 4, 4, 3, 1\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), None, "holds no images"),
        (ARRAY, np.zeros(3, int), r"labels of x .* each of 4 images"),
        (ARRAY, np.zeros(4), "labels of x .*dtype float64"),
    ],
)
def test_wrong_arrays(images, labels, message):
    with pytest.raises(ValueError, match=message):
        sources.from_arrays("x", images, labels)


def test_npz_that_unpacks_beyond_its_size_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros((3000, 32, 32, 3), np.uint8))
    assert len(sources.from_npz(tmp_path / "set.npz")) == 3000
    monkeypatch.setattr(files, "LEAST_UNPACKED", 2**20)
    with pytest.raises(ValueError, match="GiB, more than is credible"):
        sources.from_npz(tmp_path / "set.npz")


ARRAYS = {"images": np.arange(6, dtype=np.uint8), "labels": np.array([3, 1]), "more": np.ones(2)}


def test_a_damaged_list_of_members_loses_none_in_silence(tmp_path):
    path, file = tmp_path / "damaged.npz", io.BytesIO()
    np.savez_compressed(file, **ARRAYS)
    archive = file.getvalue()
    start = archive.index(b"PK\x01\x02")  # of the list, which has no check sum
    refused = 0
    for place in range(start, len(archive)):
        damaged = bytearray(archive)
        damaged[place] ^= (0x01, 0x20, 0x80)[place % 3]
        path.write_bytes(damaged)
        try:
            arrays = read_arrays(path)
        except ValueError:
            refused += 1
            continue
        assert arrays.keys() == ARRAYS.keys(), place - start
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(arrays[name], array)
    assert refused > 50


def test_svhn_mat(tmp_path, monkeypatch):
    images = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    digits = np.array([[10], [1], [9]], np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": digits})
    found = sources.from_path(tmp_path / "test_32x32.mat")
    assert labels(found) == [0, 1, 9]
    np.testing.assert_array_equal(found.load(1)[0], images[1])
    (tmp_path / "bad.mat").write_bytes(b"nothing")
    monkeypatch.setattr(sources, "_READ_MAT", "import os; os.abort()")
    with pytest.raises(ValueError, match=r"bad\.mat is not one of SVHN's"):
        sources.from_path(tmp_path / "bad.mat")


def test_subset_is_seeded_and_in_order():
    whole = sources.from_arrays("x", RNG.integers(0, 256, (50, 2, 2, 3), dtype=np.uint8))
    part = subset(whole, 10, seed=1)
    names = idents(part)
    positions = [int(name[2:-1]) for name in names]
    assert positions == sorted(set(positions)) and len(part) == 10
    np.testing.assert_array_equal(part.load(4)[0], whole.load(positions[4])[0])
    again, other = subset(whole, 10, seed=1), subset(whole, 10, seed=2)
    assert (idents(again), again.fingerprint) == (names, part.fingerprint)
    assert idents(other) != names
    assert len({whole.fingerprint, part.fingerprint, other.fingerprint}) == 3
    assert subset(whole, None) is whole and subset(whole, 50) is whole
    with pytest.raises(ValueError, match=r"limit \(=0\)"):
        subset(whole, 0)
    with pytest.raises(ValueError, match="between 0 and 49"):
        take(whole, [3, 50])


IMAGES = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


def write_binary(path, images, labels, coarse=b""):
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    rows = zip(labels, planes, strict=True)
    path.write_bytes(b"".join(coarse + bytes([k]) + row.tobytes() for k, row in rows))
    return path


def test_the_binary_version(tmp_path):
    one = write_binary(tmp_path / "a.bin", IMAGES[:4], [3, 0, 9, 1])
    two = write_binary(tmp_path / "b.bin", IMAGES[4:], [2, 2, 5])
    found = from_cifar_binary([one, two], name="cifar10")
    loaded = [found.load(k) for k in range(7)]
    np.testing.assert_array_equal(np.stack([image for image, _ in loaded]), IMAGES)
    assert [label for _, label in loaded] == [3, 0, 9, 1, 2, 2, 5]
    hundred = write_binary(tmp_path / "train.bin", IMAGES, [99, 3, 0, 1, 2, 3, 4], coarse=b"\x05")
    found = from_cifar_binary([hundred])
    assert (found.name, found.load(0)[1]) == ("train", 99)
    np.testing.assert_array_equal(found.load(6)[0], IMAGES[6])
    cut = tmp_path / "cut.bin"
    cut.write_bytes(write_binary(tmp_path / "a.bin", IMAGES, [1] * 7).read_bytes()[:-1])
    (tmp_path / "empty.bin").touch()
    no_class = write_binary(tmp_path / "b.bin", IMAGES, [10] * 7)
    for path in (cut, tmp_path / "empty.bin", no_class):
        with pytest.raises(ValueError, match=r"is not a file of CIFAR's binary .* 3073 or 3074"):
            from_cifar_binary([path])
    with pytest.raises(MissingSet, match="is not a file"):
        from_cifar_binary([tmp_path / "absent.bin"])
    with pytest.raises(MissingSet, match="holds no corrupted images"):
        from_corruptions(tmp_path / "nowhere")


@pytest.fixture
def corrupted(tmp_path):
    """Three corruptions of the seven images, one of which is left aside."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for number, name in enumerate(("fog", "brightness", "spatter")):
        np.save(folder / f"{name}.npy", IMAGES + np.uint8(number))
    np.save(folder / "labels.npy", np.arange(7) % 3)
    return folder


def test_corrupted_copies(corrupted):
    found = sources.from_path(corrupted, name="cifar10_c")
    assert (found.name, len(found), found.notes) == ("cifar10_c", 14, ())
    assert [found.ident(k) for k in (0, 6, 7)] == ["brightness[0]", "brightness[6]", "fog[0]"]
    for index in range(14):
        image, label = found.load(index)
        np.testing.assert_array_equal(image, IMAGES[index % 7] + np.uint8(index < 7))
        assert label == index % 7 % 3
    assert type(image) is np.ndarray  # a copy, not a part of the map
    drawn = from_corruptions(corrupted, drawn=5)
    assert drawn.notes == ("5 of its 14 images are taken, drawn by seed 0",)
    assert [drawn.ident(k) for k in range(5)] == [
        from_corruptions(corrupted, drawn=5).ident(k) for k in range(5)
    ]
    before = drawn.fingerprint, found.fingerprint
    np.save(corrupted / "fog.npy", IMAGES)
    assert found.fingerprint == before[1]  # read once
    np.save(corrupted / "brightness.npy", IMAGES)
    assert from_corruptions(corrupted, drawn=5).fingerprint != before[0]


CORRUPTED = {"c/labels.npy": npy(np.arange(7)), "c/fog.npy": npy(IMAGES)}
WNIDS_JSON = "n.wnid_to_index.json"
BYTES = np.zeros(100_000, np.uint8)
REFUSED = [  # what is opened, what lies there, and what is said
    ("absent", {}, "absent is not a folder"),
    ("absent.npz", {}, r"absent\.npz is not a file"),
    ("absent.txt", {}, r"absent\.txt is not a file"),
    ("empty", {"empty/classless/.DS_Store": b"x"}, "empty holds no images"),
    ("a.txt", {"a.txt": b"\xff\xfe\x00"}, "cannot be read as a list"),
    ("a.npz", {"a.npz": npz(pictures=ARRAY)}, "no array called 'images'"),
    *(
        ("a.npz", {"a.npz": data}, rf"a\.npz cannot be read.*{reason}.*write it anew")
        for data, reason in (
            (b"", ""),
            (b"not a zip", ""),
            (npz(images=ARRAY)[:300], ""),
            (npz(images=np.array([{}], object)), ""),
            (npz(images=npy(BYTES, (10**12,))), ""),
            (npz(images=npy(BYTES, (-2, -5))), ""),
            (npz(images=npy(BYTES, (5, 10))), "images is longer than its header says"),
            (npz(images=b"\x93NUMPY\x09\x00" + bytes(100)), "version"),
            (npz(images=b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((( "), ""),
        )
    ),
    ("c", {"c/fog.npy": npy(IMAGES[:3])}, r"fog.npy must hold uint8 of shape \(7, 32, 32, 3\)"),
    ("c", {"c/fog.npy": npy(np.array([{}], object))}, "fog.npy cannot be read .*unpack it again"),
    ("c", {"c/fog.npy": npy(IMAGES)[:5000]}, "fog.npy cannot be read"),
    ("c", {"c/labels.npy": npy(np.zeros((2, 2)))}, "must hold integers"),
    ("n", {WNIDS_JSON: b'{"n01": 7}'}, r"class folder 'n02' \(1 such\)"),
    ("n", {WNIDS_JSON: b'["n01"]'}, "must map folder names to integer labels"),
    ("n", {WNIDS_JSON: b"{"}, "cannot be read as JSON"),
]


@pytest.mark.parametrize(("path", "content", "message"), REFUSED)
def test_what_is_no_set_is_told(path, content, message, tmp_path):
    others = CORRUPTED if path == "c" else {"n/n01/1.png": b"", "n/n02/1.png": b""}
    for name, data in (others | content).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        sources.from_path(tmp_path / path)


NAMES = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, 5)]
WNIDS = ["n01484850", "n01440764", "n01484850", "n01443537"]


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        write(tmp_path / name, np.full((8, 8, 3), number, np.uint8))
    return tmp_path


def opened(folder, lines, encoding="utf8", **options):
    (folder / "val.txt").write_text("\n".join(lines) + "\n", encoding=encoding)
    found = sources.from_path(folder / "val.txt", **options)
    return list(zip(idents(found), labels(found), strict=True))


def rows(labels):
    return [f"{name} {label}" for name, label in zip(NAMES, labels, strict=True)]


def test_lists_with_numbers_wnids_or_neither(folder):
    expected = list(zip(NAMES, [2, 0, 2, 1], strict=True))[::-1]
    for known in ([2, 0, 2, 1], WNIDS):
        assert opened(folder, rows(known)[::-1], num_classes=3) == expected
    assert opened(folder, NAMES) == opened(folder, rows([-1] * 4)) == [(n, -1) for n in NAMES]
    # a byte order mark, ends of lines and blanks are no parts of a name
    assert opened(folder, rows([2, 0, 2, 1]), encoding="utf-8-sig")[::-1] == expected
    write(folder / "sub/a b.png")
    mixed = ["sub/a b.png 2\r", "", f"{NAMES[0]}\r", "sub/a b.png"]
    assert opened(folder, mixed) == [("sub/a b.png", 2), (NAMES[0], -1), ("sub/a b.png", -1)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (rows([2, 0, 2, 3]), "labels from 0 to 3 where the classifier has 3 classes"),
        (rows([*WNIDS[:3], 1]), "2 different wnids as labels, where every line must have one"),
        (rows([*WNIDS[:3], WNIDS[0]]), "2 different wnids .* the classifier has 3 classes"),
        (NAMES, "labels from -1 to -1"),
        ([*NAMES, "lost.png 1"], "labels from -1"),
        ([], "lists no images"),
        (["nul\0byte.png 1", "lost.png 0"], "lists 2 images, 2 of which are not below"),
        ([f"{NAMES[0]} 0", "lost.png 1"], r"lists 2 images, 1 of which .* \(as lost\.png\)"),
    ],
)
def test_lists_of_something_else(folder, lines, message):
    with pytest.raises(ValueError, match=message):
        opened(folder, lines, num_classes=3)
