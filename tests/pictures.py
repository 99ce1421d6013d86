"""Small images, in memory and as files; files of arrays, and archives."""

import io
import tarfile
import zipfile

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


def noise(count, *shape, seed=0):
    """Random uint8 images, of 8x8 pixels."""
    return np.random.default_rng(seed).integers(0, 256, (count, *(shape or (8, 8, 3))), np.uint8)


def write(path, image=RGB):
    """Write an image in the format that its name says, PNG else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
    path.write_bytes(encode(image, kind.get(path.suffix.lower(), "PNG")))
    return path


def put(folder, images):
    """Write images as 0.png, 1.png, ...; their paths."""
    return [write(folder / f"{k}.png", image) for k, image in enumerate(images)]


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


def tarred(members, mode="w:gz"):
    """A tar archive of pairs of name and content, which for a link or device is its type alone."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                (info.type,), info.linkname, content = content, "/etc/passwd", b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    """A zip archive of pairs of name and content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def npy(array, shape=None):
    """A `.npy` of an array, which may claim another shape."""
    file = io.BytesIO()
    np.save(file, array)
    claimed = repr(shape or array.shape).ljust(len(repr(array.shape)))
    return file.getvalue().replace(repr(array.shape).encode(), claimed.encode())


def npz(**arrays):
    """A `.npz` of arrays, or of the bytes of members."""
    members = [(f"{k}.npy", x if isinstance(x, bytes) else npy(x)) for k, x in arrays.items()]
    return zipped(members, zipfile.ZIP_STORED)
