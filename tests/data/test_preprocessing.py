import numpy as np
import pytest
from PIL import Image

from si_jax.data.preprocessing import PREPROCESSING, Preprocessing, center_crop


def ramp(height, width):
    """An image whose pixels tell their own row and column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 255)], axis=-1).astype(np.uint8)


def test_crops():
    # offsets that torchvision's CenterCrop chooses: int(round((side - crop) / 2)), half to even
    for side, offset in ((32, 0), (33, 0), (35, 2), (37, 2), (64, 16)):
        cropped = center_crop(ramp(side, side), (32, 32))
        assert cropped.shape == (32, 32, 3) and tuple(cropped[0, 0, :2]) == (offset, offset)
    padded = center_crop(ramp(5, 40), (8, 32))  # zeros are added, the odd row at the end
    assert padded.shape == (8, 32, 3) and not padded[:1].any() and not padded[6:].any()
    assert tuple(padded[1, 0]) == (0, 4, 255) and tuple(padded[5, 31]) == (4, 35, 255)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((64, 64), 32, (32, 32)),
        ((375, 500), 224, (224, 298)),  # 298.67 is rounded down
        ((500, 375), 224, (298, 224)),
        ((20, 30), 32, (32, 48)),
        ((32, 70), 32, (32, 70)),
        ((40, 50), (48, 24), (48, 24)),
    ],
)
def test_resize_is_pillows_bilinear(shape, size, expected):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    resized = Image.fromarray(image).resize(expected[::-1], Image.Resampling.BILINEAR)
    found = Preprocessing((8, 8), size).resized(image)
    np.testing.assert_array_equal(found, np.asarray(resized))
    for same in (min(shape), shape, None):
        assert Preprocessing((8, 8), same).resized(image) is image


def test_protocols():
    assert [str(preprocessing) for preprocessing in PREPROCESSING.values()] == [
        "no resize, centre crop 32x32",
        "resize to 480x480, centre crop 480x480",
        "shorter side to 32, centre crop 32x32",
        "shorter side to 256, centre crop 224x224",
    ]
    for preprocessing in PREPROCESSING.values():
        for shape in ((32, 32), (64, 64), (20, 90), (333, 500)):
            image = preprocessing(ramp(*shape))
            assert (image.shape, image.dtype) == ((*preprocessing.crop, 3), np.uint8)
    image = ramp(128, 128)  # of which one takes a small patch, the other the whole
    np.testing.assert_array_equal(PREPROCESSING["published", "small"](image), image[48:80, 48:80])
    assert np.ptp(PREPROCESSING["openood", "small"](image)[..., 0]) > 120


def test_imagenet_ignores_the_aspect_ratio_or_is_the_shorter_side_to_256_and_a_crop():
    image = PREPROCESSING["published", "imagenet"](ramp(100, 200))
    assert (image[0, -1, 1], image[-1, 0, 0]) == (199, 99)
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    small = Image.fromarray(image).resize((int(256 * 400 / 300), 256), Image.Resampling.BILINEAR)
    left, top = round((small.width - 224) / 2), round((small.height - 224) / 2)
    right = np.asarray(small.crop((left, top, left + 224, top + 224)))
    np.testing.assert_array_equal(PREPROCESSING["openood", "imagenet"](image), right)
