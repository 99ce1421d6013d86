"""The two protocols' ways from an image of any size to the network's input size.

uint8 in, uint8 out; normalisation belongs to the model. Resizing and cropping agree with
torchvision's `Resize` and `CenterCrop` on Pillow images to the last bit.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

PROTOCOLS = ("published", "openood")
RGB = UInt8[np.ndarray, "_ _ 3"]
"""An image of any height and width."""
Transform = Callable[[np.ndarray], np.ndarray]
MOST_PIXELS = 50_000_000  # of a resized image; so long a one is cut before


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize (bilinear, antialiased), then crop the centre; call it on an image."""

    crop: tuple[int, int]  # (height, width); zeros are added around a smaller image
    resize: int | tuple[int, int] | None = None  # of the shorter side, or of (height, width)

    def __call__(self, image: RGB) -> RGB:
        """Apply it to one image, uint8 of shape (height, width, 3)."""
        return center_crop(self.resized(image), self.crop)

    def resized(self, image: RGB) -> RGB:
        """The image before the crop; a very long one is cut about its middle, to bound memory."""
        short, long = sorted(image.shape[:2])
        if not isinstance(self.resize, int):
            height, width = self.resize or image.shape[:2]
        else:
            if self.resize**2 * long // short > MOST_PIXELS:
                kept = max(short, -(-max(self.crop) * short // self.resize) + 4)
                kept += (long - kept) % 2  # what lies in the middle stays there
                image = center_crop(image, tuple(min(side, kept) for side in image.shape[:2]))
            height, width = (int(self.resize * side / short) for side in image.shape[:2])
        if (height, width) == image.shape[:2]:
            return image
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def __str__(self) -> str:
        if self.resize is None:
            step = "no resize"
        elif isinstance(self.resize, int):
            step = f"shorter side to {self.resize}"
        else:
            step = "resize to {}x{}".format(*self.resize)
        return "{}, centre crop {}x{}".format(step, *self.crop)


# The protocols, by the size of a benchmark's images. Adding one is adding a line.
PREPROCESSING = {
    ("published", "small"): Preprocessing(crop=(32, 32)),
    ("published", "imagenet"): Preprocessing(resize=(480, 480), crop=(480, 480)),
    ("openood", "small"): Preprocessing(resize=32, crop=(32, 32)),
    ("openood", "imagenet"): Preprocessing(resize=256, crop=(224, 224)),
}


def preprocessing_for(
    input_size: tuple[int, int], card: Mapping[str, Any] | None = None
) -> Preprocessing:
    """How images are brought to a network's input size: as its card says, or else by resizing."""
    height, width = input_size
    entry = (card or {}).get("preprocessing")
    if entry is None:
        return Preprocessing((height, width), height if height == width else (height, width))
    try:
        size = entry["resize"]
        size = size if size is None or isinstance(size, int) else (int(size[0]), int(size[1]))
        crop = (int(entry["crop"][0]), int(entry["crop"][1]))
    except (KeyError, TypeError, ValueError, IndexError):
        usual = f"{{'resize': {height}, 'crop': [{height}, {width}]}}"
        raise ValueError(f"the card's preprocessing (={entry!r}) must be like {usual}") from None
    if crop != (height, width):
        cropped = f"the card's preprocessing crops to {crop[0]}x{crop[1]}"
        raise ValueError(f"{cropped}, but the network takes {height}x{width}")
    return Preprocessing(crop, size)


def center_crop(image: RGB, size: tuple[int, int]) -> RGB:
    """Crop the centre, offsets rounded half to even; zeros are added where a side is too short."""
    missing = [max(0, want - have) for want, have in zip(size, image.shape, strict=False)]
    if any(missing):
        margins = [(lack // 2, (lack + 1) // 2) for lack in missing]
        image = np.pad(image, [*margins, (0, 0)])
    top, left = (round((have - want) / 2) for want, have in zip(size, image.shape, strict=False))
    return image[top : top + size[0], left : left + size[1]]
