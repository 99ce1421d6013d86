"""What a detector refuses: states, images and scores that cannot be its own."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from si_jax.detectors.base import Compute, Inputs, State
from si_jax.model import Model
from si_jax.networks.checking import SCALES

LEAST_TO_WARN = 10  # scores, of which one or two could be the same by chance


def check_state(name: str, model: Model, compute: Compute, state: State) -> None:
    """Raise a ValueError unless a detector can compute with this state; nothing is computed."""
    image = jax.ShapeDtypeStruct((2, *model.image_shape), jnp.float32)

    def run(variables, state, images):
        return compute(Inputs(model, variables, images), state)

    try:
        jax.eval_shape(run, model.variables, dict(state), image)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"this is no state of detector {name!r} with these options on this network,"
            f" but holds {', '.join(map(str, state)) or 'nothing'} ({type(error).__name__});"
            " load what was fitted with the same ones"
        ) from None


def check_dtype(name: str, fitted_on: np.dtype | None, dtype: np.dtype) -> None:
    """Raise a ValueError if a detector was fitted on images of another dtype; None for unknown."""
    if fitted_on not in (None, dtype):
        raise ValueError(
            f"images (dtype {dtype}) are of another kind than those that detector"
            f" {name!r} was fitted on ({fitted_on}): say what their numbers mean"
            f" by scale=, one of {', '.join(map(repr, SCALES))}"
        )


def check_scores(name: str, scores: Float32[np.ndarray, "batch"], varied: bool) -> None:
    """Refuse scores that are not finite; warn if images that differ all have the same."""
    if len(bad := np.flatnonzero(~np.isfinite(scores))):
        raise ValueError(
            f"detector {name!r} gives {len(bad)} of {len(scores)} images, image {bad[0]} the first,"
            " a score that is NaN or infinite: the network's weights are broken, or the images hold"
            " values that are too large"
        )
    if varied and len(scores) >= LEAST_TO_WARN and np.ptp(scores) == 0:
        warnings.warn(
            f"detector {name!r} gives all of {len(scores)} different images the same score,"
            f" {scores[0]:.6g}, so it is useless on this network: use another, such as 'energy'"
            " or 'knn' (zero-deflation needs ReLUs behind its taps)",
            stacklevel=4,
        )
