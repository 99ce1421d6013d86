"""The offline benchmark `digits`: scikit-learn's handwritten digits against four synthetic sets.

Nothing is downloaded: the digits and two photographs come with scikit-learn, the letters are
drawn with the fonts that matplotlib ships. The digits are 8x8 counts (0 to 16) of the ink in the
4x4 blocks of a 32x32 bitmap; letters and noise are made at the same 8x8 counts and enlarged in the
same way, so that what sets them apart is their shape and not the way in which they were drawn.

Every set is a function of `count`, the number of its images, and of `seed`, of all choices; it is
uint8 of shape (count, 32, 32, 3). Every function here is deterministic in its arguments.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from si_jax.data.synthetic import shuffled as shuffled_patches

SIZE = 32  # side of an image, pixels
CLASSES = 10
TRAIN_COUNT, TEST_COUNT = 1200, 597
OOD_COUNT = 500  # images of an out-of-distribution set, by default

LETTERS = "AEFHKLMNPRTUVWXYdhkmn"  # none that is easily taken for a digit: no O I l Z S B G q ...
FONTS = tuple(
    f"DejaVu{family}{style}"
    for family, slanted in (("Sans", "Oblique"), ("Serif", "Italic"), ("SansMono", "Oblique"))
    for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
)

_COUNTS = 8  # side of the grid of ink counts
_MAX_COUNT = 16  # ink counts run from 0 to this
_LEAST_CONTRAST = 10  # standard deviation below which a photograph's patch is empty sky


def load(split: str) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int[np.ndarray, " n"]]:
    """Give the in-distribution digits of one split.

    Args:
        split: 'train' (1200 images) or 'test' (597 images); fixed, stratified by class.

    Returns:
        Images, uint8 of shape (n, 32, 32, 3), and labels 0 to 9, int64 of shape (n,).

    Raises:
        ValueError: if `split` is neither 'train' nor 'test'.
    """
    counts, labels = _counts_and_labels(split)
    return enlarge(counts), labels.copy()


def enlarge(counts: Int[np.ndarray, "n 8 8"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Enlarge 8x8 ink counts to 32x32 grey images, smoothly (Pillow's bicubic filter)."""
    grey = np.round(counts * (255 / _MAX_COUNT)).astype(np.uint8)
    images = np.empty((len(grey), SIZE, SIZE, 3), np.uint8)
    for image, small in zip(images, grey, strict=True):
        large = Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        image[:] = np.asarray(large)[..., None]
    return images


def letters(count: int = OOD_COUNT, seed: int = 0) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Draw printed letters of varied font, size, angle and position, inked like the digits."""
    rng = np.random.default_rng([seed, 1])
    bitmaps = np.zeros((count, SIZE, SIZE), np.int64)
    for bitmap in bitmaps:
        ink = _draw_letter(
            LETTERS[rng.integers(len(LETTERS))],
            FONTS[rng.integers(len(FONTS))],
            stroke=int(rng.integers(1, 5)),
            angle=rng.uniform(-15, 15),
            height=int(rng.integers(24, SIZE + 1)),
        )
        height, width = ink.shape
        top, left = rng.integers(SIZE - height + 1), rng.integers(SIZE - width + 1)
        bitmap[top : top + height, left : left + width] = ink
    cell = SIZE // _COUNTS
    return enlarge(bitmaps.reshape(count, _COUNTS, cell, _COUNTS, cell).sum(axis=(2, 4)))


def photos(count: int = OOD_COUNT, seed: int = 0) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Cut grey square patches of varied scale out of scikit-learn's two sample photographs.

    Patches overlap; those without any contrast (sky, shadow) are left out.
    """
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng([seed, 2])
    grey = [Image.fromarray(image).convert("L") for image in load_sample_images().images]
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    made = 0
    while made < count:
        photograph = grey[rng.integers(len(grey))]
        longest = min(photograph.size)
        side = round(SIZE * (longest / SIZE) ** rng.uniform())  # even in the logarithm
        left = int(rng.integers(photograph.width - side + 1))
        top = int(rng.integers(photograph.height - side + 1))
        box = (left, top, left + side, top + side)
        patch = np.asarray(photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))
        if patch.std() >= _LEAST_CONTRAST:
            images[made] = patch[..., None]
            made += 1
    return images


def shuffled(count: int = OOD_COUNT, seed: int = 0) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Shuffle the 8x8-pixel blocks of held-out digits, so that each differs from what it was.

    Beyond 597 images the digits are used again, shuffled anew.
    """
    rng = np.random.default_rng([seed, 3])
    digits, _ = load("test")
    rounds = -(-count // len(digits))
    order = rng.permuted(np.tile(np.arange(len(digits)), (rounds, 1)), axis=1).ravel()
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for image, index in zip(images, order[:count], strict=True):
        image[:] = digits[index]
        while np.array_equal(image, digits[index]):  # an identity, or only black blocks moved
            image[:] = shuffled_patches(digits[index], rng)
    return images


def noise(count: int = OOD_COUNT, seed: int = 0) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Draw every 8x8 ink count independently from the digits' own histogram."""
    rng = np.random.default_rng([seed, 4])
    counts, _ = _counts_and_labels("train")
    return enlarge(rng.choice(counts.ravel(), size=(count, _COUNTS, _COUNTS)))


_OOD = (letters, photos, shuffled, noise)
OOD_SETS: dict[str, Callable[..., np.ndarray]] = {make.__name__: make for make in _OOD}


@functools.cache
def _counts_and_labels(split: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if split not in ("train", "test"):
        raise ValueError(f"split (={split!r}) is not one of the digits' splits: 'train' or 'test'")
    data = load_digits()
    counts, labels = data.images.astype(np.int64), data.target.astype(np.int64)
    sizes = {"train_size": TRAIN_COUNT, "test_size": TEST_COUNT, "random_state": 0}
    train, test = train_test_split(np.arange(len(labels)), stratify=labels, **sizes)
    chosen = np.sort(train if split == "train" else test)
    return counts[chosen], labels[chosen]


@functools.cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    import matplotlib

    path = f"{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf"
    # The basic layout engine draws alike whether or not Pillow finds libraqm.
    return ImageFont.truetype(path, 96, layout_engine=ImageFont.Layout.BASIC)


def _draw_letter(letter: str, font: str, *, stroke: int, angle: float, height: int) -> np.ndarray:
    """A letter as a 0/1 bitmap, at most `height` high; `stroke` thickens print as a pen does."""
    canvas = Image.new("L", (192, 192))
    ImageDraw.Draw(canvas).text(
        (96, 96), letter, fill=255, font=_font(font), anchor="mm", stroke_width=stroke
    )
    canvas = canvas.rotate(angle, Image.Resampling.BICUBIC)
    canvas = canvas.crop(canvas.getbbox())
    scale = min(height / canvas.height, SIZE / canvas.width)
    size = (max(1, int(canvas.width * scale)), max(1, int(canvas.height * scale)))
    return (np.asarray(canvas.resize(size, Image.Resampling.BOX)) > 127).astype(np.int64)
