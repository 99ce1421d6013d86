"""Small images and files that the tests of reading share."""

import io

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, kind, **options
    )
    return file.getvalue()


def write(path, image=RGB):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
    path.write_bytes(encode(image, kind.get(path.suffix.lower(), "PNG")))


def idents(image_set):
    return [image_set.ident(index) for index in range(len(image_set))]


def labels(image_set):
    return [image_set.load(index)[1] for index in range(len(image_set))]


def replicate(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


NOISE = encode(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")


class Dataset:
    """What PyTorch calls a map-style data set."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]
