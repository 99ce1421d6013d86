"""Lists of images: files, and numbers or wnids as labels."""

import numpy as np
import pytest
from PIL import Image

from si_jax.data import sources

NAMES = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, 5)]
WNIDS = ["n01484850", "n01440764", "n01484850", "n01443537"]


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        pixels = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / name, "PNG")
    return tmp_path


def opened(folder, lines, encoding="utf8", **options):
    (folder / "val.txt").write_text("\n".join(lines) + "\n", encoding=encoding)
    found = sources.from_path(folder / "val.txt", **options)
    return [(image[0, 0, 0], label) for image, label in map(found.load, range(len(found)))]


def rows(labels):
    return [f"{name} {label}" for name, label in zip(NAMES, labels, strict=True)]


def test_numbers_and_wnids(folder):
    expected = [(3, 1), (2, 2), (1, 0), (0, 2)]
    assert opened(folder, rows([2, 0, 2, 1])[::-1], num_classes=3) == expected
    assert opened(folder, rows(WNIDS)[::-1], num_classes=3) == expected
    assert opened(folder, NAMES) == [(0, -1), (1, -1), (2, -1), (3, -1)]
    assert opened(folder, rows([-1] * 4)) == [(0, -1), (1, -1), (2, -1), (3, -1)]


def test_a_byte_order_mark_is_no_part_of_the_first_name(folder):
    assert opened(folder, rows([2, 0, 2, 1]), encoding="utf-8-sig")[0] == (0, 2)


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
    ],
)
def test_lists_of_something_else(folder, lines, message):
    with pytest.raises(ValueError, match=message):
        opened(folder, lines, num_classes=3)
