import numpy as np
import pytest
from PIL import Image

from si_jax.data.preprocessing import PREPROCESSING, Preprocessing, center_crop, resize


def ramp(height, width):
    """An image whose pixels tell their own row and column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 255)], axis=-1).astype(np.uint8)


# Offsets that torchvision's CenterCrop chooses: int(round((side - crop) / 2)), half to even.
@pytest.mark.parametrize(
    ("side", "crop", "offset"), [(32, 32, 0), (33, 32, 0), (35, 32, 2), (37, 32, 2), (64, 32, 16)]
)
def test_crop_offset(side, crop, offset):
    cropped = center_crop(ramp(side, side), (crop, crop))
    assert cropped.shape == (crop, crop, 3)
    assert tuple(cropped[0, 0, :2]) == (offset, offset)


def test_smaller_images_are_padded_with_zeros_the_odd_one_at_the_end():
    cropped = center_crop(ramp(5, 40), (8, 32))
    assert cropped.shape == (8, 32, 3)
    assert not cropped[:1].any()
    assert not cropped[6:].any()
    assert tuple(cropped[1, 0]) == (0, 4, 255)
    assert tuple(cropped[5, 31]) == (4, 35, 255)


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
def test_resized_shape(shape, size, expected):
    assert resize(ramp(*shape), size).shape == (*expected, 3)


def test_resize_is_pillows_bilinear():
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize((24, 30), Image.BILINEAR)
    np.testing.assert_array_equal(resize(image, 24), np.asarray(expected))
    assert resize(image, 40) is image
    assert resize(image, None) is image


@pytest.mark.parametrize("key", PREPROCESSING)
@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (20, 90), (333, 500)])
def test_protocols_give_their_shape(key, shape):
    preprocessing = PREPROCESSING[key]
    image = preprocessing(ramp(*shape))
    assert image.shape == (*preprocessing.crop, 3)
    assert image.dtype == np.uint8


def test_published_takes_a_small_patch_and_openood_the_whole():
    image = ramp(128, 128)
    np.testing.assert_array_equal(PREPROCESSING["published", "small"](image), image[48:80, 48:80])
    whole = PREPROCESSING["openood", "small"](image)
    assert np.ptp(whole[..., 0]) > 120


def test_published_imagenet_ignores_the_aspect_ratio():
    image = PREPROCESSING["published", "imagenet"](ramp(100, 200))
    assert image.shape == (480, 480, 3)
    assert image[0, -1, 1] == 199
    assert image[-1, 0, 0] == 99


def test_openood_imagenet_is_the_shorter_side_to_256_and_a_crop():
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    small = Image.fromarray(image).resize((int(256 * 400 / 300), 256), Image.BILINEAR)
    left, top = round((small.width - 224) / 2), round((small.height - 224) / 2)
    right = np.asarray(small.crop((left, top, left + 224, top + 224)))
    np.testing.assert_array_equal(PREPROCESSING["openood", "imagenet"](image), right)


def test_preprocessing_says_what_it_does():
    assert [str(preprocessing) for preprocessing in PREPROCESSING.values()] == [
        "no resize, centre crop 32x32",
        "resize to 480x480, centre crop 480x480",
        "shorter side to 32, centre crop 32x32",
        "shorter side to 256, centre crop 224x224",
    ]
    assert Preprocessing((8, 8)) == Preprocessing((8, 8))
