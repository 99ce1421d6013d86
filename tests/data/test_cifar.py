"""CIFAR's own files, made small."""

import numpy as np
import pytest

from si_jax.data import sources
from si_jax.data.image_set import MissingSet
from si_jax.data.sources import from_cifar_binary, from_corruptions

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


def test_files_that_are_something_else(tmp_path):
    cut = tmp_path / "cut.bin"
    cut.write_bytes(write_binary(tmp_path / "a.bin", IMAGES, [1] * 7).read_bytes()[:-1])
    (tmp_path / "empty.bin").touch()
    no_class = write_binary(tmp_path / "b.bin", IMAGES, [10] * 7)
    for path in (cut, tmp_path / "empty.bin", no_class):
        with pytest.raises(ValueError, match=r"is not a file of CIFAR's binary .* 3073 or 3074"):
            from_cifar_binary([path])
    with pytest.raises(MissingSet, match="is not a file"):
        from_cifar_binary([tmp_path / "absent.bin"])


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


def test_corrupted_copies_that_are_damaged(corrupted):
    np.save(corrupted / "fog.npy", IMAGES[:3])
    with pytest.raises(ValueError, match=r"fog.npy must hold uint8 of shape \(7, 32, 32, 3\)"):
        from_corruptions(corrupted)
    np.save(corrupted / "fog.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"fog.npy cannot be read .*unpack it again"):
        from_corruptions(corrupted)
    whole = (corrupted / "brightness.npy").read_bytes()
    (corrupted / "brightness.npy").write_bytes(whole[:5000])
    with pytest.raises(ValueError, match=r"brightness.npy cannot be read"):
        from_corruptions(corrupted)
    np.save(corrupted / "labels.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="must hold integers"):
        from_corruptions(corrupted)
    (corrupted / "labels.npy").unlink()
    with pytest.raises(MissingSet, match=r"labels.npy is not a file"):
        from_corruptions(corrupted)
    with pytest.raises(MissingSet, match="holds no corrupted images"):
        from_corruptions(corrupted / "nowhere")
