"""Bytes of an image become RGB, or a sentence."""

import numpy as np
import pytest
from pictures import GREY, NOISE, RGB, encode, replicate
from PIL import Image

from si_jax.data.decoding import decode
from si_jax.data.image_set import UnreadableImage


def palette(**options):
    return encode(Image.fromarray(RGB).quantize(16), **options)


MODES = {
    "rgb": (encode(RGB), RGB),
    "bmp": (encode(RGB, "BMP"), RGB),
    "webp": (encode(RGB, "WEBP", lossless=True), RGB),
    "grey": (encode(GREY), replicate(GREY)),
    "black and white": (
        encode(Image.fromarray(GREY > 99)),
        replicate(np.where(GREY > 99, 255, 0).astype(np.uint8)),
    ),
    "palette": (palette(), np.asarray(Image.fromarray(RGB).quantize(16).convert("RGB"))),
    "palette with transparency": (
        palette(transparency=3),
        np.asarray(Image.fromarray(RGB).quantize(16).convert("RGB")),
    ),
    "grey with alpha": (
        encode(np.stack([GREY, GREY[::-1]], axis=-1)),
        replicate(GREY),
    ),
    "rgb with alpha": (encode(np.concatenate([RGB, GREY[..., None]], axis=-1)), RGB),
    "16-bit grey": (encode(GREY.astype(np.uint16) * 256 + 77), replicate(GREY)),
    "16-bit grey with a large value": (
        encode(np.full((2, 2), 65535, np.uint16)),
        np.full((2, 2, 3), 255, np.uint8),
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    data, expected = MODES[mode]
    image = decode(data, mode)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_cmyk_jpeg_becomes_rgb():
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 0] = 255  # cyan alone: red is gone, green and blue stay
    image = decode(encode(Image.fromarray(inks, "CMYK"), "JPEG"), "cmyk.jpg")
    assert image.shape == (16, 16, 3)
    np.testing.assert_allclose(image[8, 8], (0, 255, 255), atol=6)


def test_a_phones_picture_pair_gives_the_first():
    pair = encode(
        Image.fromarray(np.full((16, 16, 3), 90, np.uint8)),
        "MPO",
        save_all=True,
        append_images=[Image.fromarray(RGB)],
    )
    np.testing.assert_allclose(decode(pair, "pair.jpg"), np.full((16, 16, 3), 90), atol=2)


def test_contents_count_and_not_the_ending():
    np.testing.assert_array_equal(decode(encode(RGB), "really_a_png.JPEG"), RGB)


FLIPPED = bytearray(encode(RGB))
FLIPPED[FLIPPED.index(b"IDAT") + 20] ^= 0xFF
DEPTHS = Image.fromarray(np.full((4, 4), 0.5, np.float32))

DAMAGED = {
    "empty": (b"", "the file is empty"),
    "text": (b"<html>404 not found</html>", "not a JPEG, PNG, WebP, BMP, GIF, .* or ICO image"),
    "truncated jpeg": (NOISE[: len(NOISE) // 2], "truncated"),
    "truncated png": (encode(RGB)[:-40], ""),
    "truncated bmp": (encode(RGB, "BMP")[:-30], "truncated"),
    "truncated webp": (encode(RGB, "WEBP", lossless=True)[:-20], ""),
    "jpeg header only": (NOISE[:30], ""),
    "damaged pixels of a png": (bytes(FLIPPED), ""),
    "floating-point numbers": (encode(DEPTHS, "TIFF"), "floating-point numbers"),
    "enormous": (encode(Image.new("1", (8000, 8000))), "8000x8000 pixels are over 50 million"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_told_with_the_name(kind):
    data, reason = DAMAGED[kind]
    with pytest.raises(UnreadableImage, match=rf"some/file\.x cannot be decoded.*{reason}"):
        decode(data, "some/file.x")
