"""What to say when a network cannot be run."""

import re

from si_jax.networks.framework import Chance

HINTS = (
    (
        "rng|prng",
        "it draws random numbers, as dropout does: switch that off by call_kwargs, such as"
        ' {"deterministic": True} or {"train": False}',
    ),
    (
        "immutable|running_average",
        'it is in training mode: switch that off by call_kwargs, such as {"train": False}',
    ),
    (
        "missing|required",
        "where an argument of the network's own is missing, give it in call_kwargs, such as"
        ' {"train": False} or {"key": None}',
    ),
    (
        "same dtypes|float16",
        "images enter as float32: convert each array of weights to it, by astype(jnp.float32)",
    ),
    (
        "shape|dimension|channels|axis|axes|incompatible",
        "do input_size, the number of channels in mean and the variables fit it?",
    ),
)
"""What is looked for in an error of a network's own -> what may help; the first that is found."""


def told(error: Exception, image_shape: tuple[int, int, int]) -> ValueError:
    """What to raise in place of an error of a network that is run on an image of this shape."""
    if isinstance(error, Chance):
        return Chance()
    text = str(error).strip().splitlines()
    message = (
        f"the network cannot be run on an image of shape {(1, *image_shape)}:"
        f" {type(error).__name__}: {text[0] if text else ''}"
    )
    for words, hint in HINTS:
        if re.search(words, f"{type(error).__name__} {error}", re.IGNORECASE):
            return ValueError(f"{message} ({hint})")
    return ValueError(message)
