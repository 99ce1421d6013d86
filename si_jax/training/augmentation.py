"""What training does to the images, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8


def augment(
    images: UInt8[Array, "batch height width channels"], key: Array, padding: int, flip: bool
) -> UInt8[Array, "batch height width channels"]:
    """Random crops of the zero-padded images, half of them mirrored.

    Args:
        images: the batch.
        key: the random key that all draws come from.
        padding: pixels of zeros on every side before the crop; 0 crops nothing.
        flip: whether each image is mirrored with probability 1/2.
    """
    count, height, width, channels = images.shape
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(crop_key, (count, 2), 0, 2 * padding + 1)

    def crop(image: Array, corner: Array) -> UInt8[Array, "height width channels"]:
        return jax.lax.dynamic_slice(image, (*corner, 0), (height, width, channels))

    images = jax.vmap(crop)(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
