"""CIFAR's own files, made small."""

import numpy as np
import pytest

from si_jax.data.cifar import from_cifar_binary
from si_jax.data.image_set import MissingSet

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


def write_binary(path, images, labels, coarse=b""):
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    rows = zip(labels, planes, strict=True)
    path.write_bytes(b"".join(coarse + bytes([k]) + row.tobytes() for k, row in rows))
    return path


def test_the_binary_version(tmp_path):
    one = write_binary(tmp_path / "a.bin", IMAGES[:4], [3, 0, 9, 1])
    two = write_binary(tmp_path / "b.bin", IMAGES[4:], [2, 2, 5])
    found = from_cifar_binary([one, two], 10, name="cifar10")
    loaded = [found.load(k) for k in range(7)]
    np.testing.assert_array_equal(np.stack([image for image, _ in loaded]), IMAGES)
    assert [label for _, label in loaded] == [3, 0, 9, 1, 2, 2, 5]
    hundred = write_binary(tmp_path / "train.bin", IMAGES, [99, 3, 0, 1, 2, 3, 4], coarse=b"\x05")
    found = from_cifar_binary([hundred], 100)
    assert (found.name, found.load(0)[1]) == ("train", 99)
    np.testing.assert_array_equal(found.load(6)[0], IMAGES[6])


def test_files_that_are_something_else(tmp_path):
    ten = write_binary(tmp_path / "a.bin", IMAGES, [1] * 7)
    (tmp_path / "empty.bin").touch()
    for path in (ten, tmp_path / "empty.bin"):
        with pytest.raises(ValueError, match=r"isn't a file of CIFAR-100's binary version.* 3074"):
            from_cifar_binary([path], 100)
    with pytest.raises(ValueError, match="has the label 10, which isn't among the 10 classes"):
        from_cifar_binary([write_binary(tmp_path / "b.bin", IMAGES, [10] * 7)], 10)
    with pytest.raises(MissingSet, match="is not a file"):
        from_cifar_binary([tmp_path / "absent.bin"], 10)
