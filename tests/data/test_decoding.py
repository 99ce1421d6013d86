"""Bytes of an image become RGB, or a sentence."""

import numpy as np
import pytest
from pictures import GREY, NOISE, RGB, encode, replicate
from PIL import Image

from si_jax.data.decoding import decode
from si_jax.data.image_set import UnreadableImage

PALETTE = Image.fromarray(RGB).quantize(16)
CYAN = np.zeros((16, 16, 4), np.uint8)
CYAN[..., 0] = 255  # alone: red is gone, green and blue stay
FLAT = np.full((16, 16, 3), 90, np.uint8)
PAIR = {"save_all": True, "append_images": [Image.fromarray(RGB)]}
MODES = {  # file -> its bytes, what becomes of them, and how far off a lossy one may be
    "rgb": (encode(RGB), RGB, 0),
    "bmp": (encode(RGB, "BMP"), RGB, 0),
    "webp": (encode(RGB, "WEBP", lossless=True), RGB, 0),
    "really a png.JPEG": (encode(RGB), RGB, 0),
    "grey": (encode(GREY), replicate(GREY), 0),
    "black and white": (encode(Image.fromarray(GREY > 99)), replicate((GREY > 99) * 255), 0),
    "palette": (encode(PALETTE), PALETTE.convert("RGB"), 0),
    "palette with transparency": (encode(PALETTE, transparency=3), PALETTE.convert("RGB"), 0),
    "grey with alpha": (encode(np.stack([GREY, GREY[::-1]], axis=-1)), replicate(GREY), 0),
    "rgb with alpha": (encode(np.concatenate([RGB, GREY[..., None]], axis=-1)), RGB, 0),
    "16-bit grey": (encode(GREY.astype(np.uint16) * 256 + 77), replicate(GREY), 0),
    "large 16-bit grey": (encode(np.full((2, 2), 65535, np.uint16)), np.full((2, 2, 3), 255), 0),
    "cmyk.jpg": (encode(Image.fromarray(CYAN, "CMYK"), "JPEG"), FLAT * 0 + [0, 255, 255], 6),
    "a phone's pair, of which the first counts": (encode(FLAT, "MPO", **PAIR), FLAT, 2),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_rgb(name):
    data, expected, error = MODES[name]
    image = decode(data, name)
    assert image.dtype == np.uint8 and image.shape == np.shape(expected)
    np.testing.assert_allclose(image, np.asarray(expected, float), rtol=0, atol=error)


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
