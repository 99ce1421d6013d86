"""What a model refuses: images, constants and weights that cannot be what they are meant to be."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from si_jax.checks import check_choice

SCALES = ("uint8", "unit", "normalised")
"""What numbers in images mean: 0 to 255; [0, 1]; or less the mean, divided by the deviation."""

WAYS = (
    "say scale='uint8' for values from 0 to 255, scale='unit' for [0, 1], or scale='normalised' if"
    " the model's mean and std are already taken off, to Model or to this call"
)
LARGEST_WEIGHT = 1e20  # its square is beyond float32
Shape = tuple[int, int, int]
Numbers = Sequence[float]
FAR = 10  # how many times a normalised image's range is certainly none


def check_constants(mean: Numbers, std: Numbers) -> None:
    """Refuse a mean or a deviation that no images in [0, 1] units can have."""
    for name, values, interval in (("mean", mean, "[0, 1]"), ("std", std, "(0, 1]")):
        array = np.asarray(values, np.float64)
        fits = (array <= 1) & ((array >= 0) if name == "mean" else (array > 0))
        if not fits.all():
            advice = "; divide values in units of 0 to 255 by 255" if (array > 1).any() else ""
            raise ValueError(
                f"{name} (={tuple(values)}) must lie in {interval}, in units of images scaled to"
                f" [0, 1]{advice}"
            )


def check_weights(variables: Any) -> None:
    """Refuse weights that are not finite, so large that float32 overflows, or all zero."""
    kernels = zeros = 0
    for path, leaf in jax.tree.leaves_with_path(variables):
        if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, np.ndarray | jax.Array):
            continue  # such as the shapes of weights that are still to come
        if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) or not leaf.size:
            continue
        leaf = np.asarray(leaf)
        largest = max(float(leaf.max()), -float(leaf.min()))
        if not largest <= LARGEST_WEIGHT:  # nor if it is NaN
            place = "/".join(str(getattr(key, "key", key)) for key in path)
            raise ValueError(
                f"variables: {place} holds {'NaN' if np.isnan(largest) else f'{largest:.3g}'}: the"
                " weights are broken; load, convert or train them again"
            )
        if leaf.ndim > 1:
            kernels, zeros = kernels + 1, zeros + (largest == 0)
    if kernels and zeros == kernels:
        raise ValueError(
            "variables: all weights are zero, so that every image gets the same logits: load,"
            " convert or train them"
        )


def as_images(
    images: Any, shape: Shape, mean: Numbers, std: Numbers, scale: str | None = None
) -> np.ndarray:
    """Images as a model takes them, uint8 or float32 normalised: the latter too without `scale`."""
    if scale is not None:
        check_choice(SCALES, scale=scale)
    name = "images" if hasattr(images, "shape") else "np.asarray(images)"
    images = _array(images)
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape):
        expected = "x".join(map(str, shape))
        raise ValueError(
            f"images (shape {tuple(images.shape)}) must have shape (N, {expected}): the model's"
            f" height, width and channels, channels last{_hint(name, images.shape, shape)}"
        )
    if scale is None and images.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"images (dtype {images.dtype}) must be uint8, or float32 if already normalised; for"
            f" others {WAYS}"
        )
    if not jax.numpy.issubdtype(images.dtype, jax.numpy.number) or np.iscomplexobj(images):
        raise ValueError(f"images (dtype {images.dtype}) must be real numbers")
    if images.dtype == np.uint8 or not len(images):
        return images
    if not bool(np.isfinite(images).all()):
        raise ValueError("images hold NaN or infinite values: clean them before scoring")
    if scale is None:
        _check_normalised(images, mean, std)
        return images
    if scale == "normalised":
        return images.astype(np.float32)
    top = 255 if scale == "uint8" else 1
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > top:
        raise ValueError(
            f"images hold values from {low:.4g} to {high:.4g}, but scale={scale!r} means 0 to {top}"
        )
    if scale == "uint8" and not (images % 1).any():
        return images.astype(np.uint8)
    unit = images.astype(np.float32) / np.float32(top)
    return (unit - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def _array(images: Any) -> np.ndarray:
    several = isinstance(images, list | tuple)
    modes = {getattr(image, "mode", "RGB") for image in (images if several else [images])}
    if modes - {"RGB", "L"}:  # Pillow's; an array of a palette's holds no colours
        raise ValueError(
            f"images (of mode {', '.join(sorted(modes))}) must be RGB or grey: give"
            " image.convert('RGB') of each"
        )
    if several:
        shapes = sorted({tuple(np.shape(image)) for image in images}, key=str)
        if len(shapes) > 1:
            raise ValueError(
                f"images come in different shapes, {shapes[0]} and {shapes[1]} for two: bring them"
                " to the model's input size first"
            )
    array = np.asarray(images)
    if array.dtype.kind in "OUSMm":
        raise ValueError(
            f"images (a {type(images).__name__}) cannot be read as numbers: give an array of"
            " images, (N, height, width, channels)"
        )
    return array


def _hint(name: str, given: tuple[int, ...], shape: Shape) -> str:
    """What is probably wrong with a shape, and what to give instead of what is called `name`."""
    size, channels = tuple(shape[:2]), shape[2]
    one = f"; this is one image without a batch axis: give {name}"
    known = {
        tuple(shape): f"{one}[None]",
        (channels, *size): f"{one}.transpose(1, 2, 0)[None]",
        size: f"{one}[None, ..., None]" if channels == 1 else "",
    }
    many = {
        (channels, *size): f"; these are channels first: give {name}.transpose(0, 2, 3, 1)",
        size: f"; the axis of the one channel is missing: give {name}[..., None]"
        if channels == 1
        else f"; these are grey: give np.repeat({name}[..., None], {channels}, axis=-1)",
        (*size, 1): f"; these are grey: give np.repeat({name}, {channels}, axis=-1)",
        (*size, channels + 1): f"; leave out the last channel: give {name}[..., :{channels}]",
    }
    is_other_size = len(given) == 4 and given[3] == channels
    other = "; bring them to the model's input size first" if is_other_size else ""
    return known.get(given) or many.get(given[1:], other)


def _check_normalised(images: np.ndarray, mean: Numbers, std: Numbers) -> None:
    """Refuse float images that are certainly not normalised."""
    means, deviations = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    reach = FAR * max(1.0, float(np.max(np.maximum(means, 1 - means) / deviations)))
    low, high = float(images.min()), float(images.max())
    described = f"images (float32, values from {low:.4g} to {high:.4g})"
    if max(-low, high) > reach:
        raise ValueError(f"{described} are not normalised: {WAYS}")
    same = not means.any() and bool((deviations == 1).all())  # normalised images are in [0, 1] then
    if same or low < 0 or high > 1 or high - low < 0.5:
        return
    steps = images * np.float32(255)
    if (low <= 1 / 255 and high >= 254 / 255) or bool((abs(steps - np.rint(steps)) < 1e-3).all()):
        raise ValueError(f"{described} look like [0, 1] rather than normalised: {WAYS}")
