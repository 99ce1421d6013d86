"""A detector as one file that runs without this library.

By `jax.export`, for JAX on CPU, CUDA or TPU. The network, the fit and the threshold are constants
in it.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt8

from si_jax.data.files import write_atomically
from si_jax.detectors import Detector, Inputs

PLATFORMS = ("cpu", "cuda", "tpu")

LOADER = """\
import jax.export
import numpy as np


def load(path):
    with open(path, "rb") as file:
        program = jax.export.deserialize(bytearray(file.read()))
    return lambda images: {k: np.asarray(v) for k, v in program.call(images).items()}


# load("detector.jaxexport")(uint8 images) -> score, label, probability, is_ood, p_value
"""
"""All that is needed to run an exported detector, with `jax`, `numpy` and `flatbuffers`."""


def export_jax(
    detector: Detector, path: str | os.PathLike, *, platforms: Sequence[str] = PLATFORMS
) -> Path:
    """Write a detector as a program for `jax.export`, which `LOADER` runs.

    It takes uint8 images in the model's input size, any number of them, and gives the arrays of
    `Detector.predict`; without a threshold, `is_ood` and `p_value` are left out.

    Args:
        detector: fitted, and calibrated where it is to decide.
        path: the file, written whole or not at all.
        platforms: any of `PLATFORMS`.

    Returns:
        The path.

    Raises:
        ValueError: if the detector is not fitted, or the package `flatbuffers` is missing.
    """
    path = Path(path)
    shape = jax.export.symbolic_shape("batch, height, width, channels")
    shape = (shape[0], *detector.model.image_shape)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    program = jax.export.export(jax.jit(program_of(detector)), platforms=tuple(platforms))(images)
    try:
        data = program.serialize()
    except ModuleNotFoundError as error:
        raise ValueError(
            f"an export needs the package {error.name!r}: pip install flatbuffers"
        ) from None
    write_atomically(path, lambda file: file.write(data))
    return path


def program_of(
    detector: Detector,
) -> Callable[[UInt8[Array, "batch height width channels"]], dict[str, Shaped[Array, "batch"]]]:
    """The function of images that is exported, with everything else bound."""
    learnt = detector.check_fitted()
    model, threshold = detector.model, detector.threshold
    variables = jax.tree.map(jnp.asarray, model.variables)
    state = {name: jnp.asarray(array) for name, array in learnt.items()}

    def run(images):
        inputs = Inputs(model, variables, images)
        score = detector.compute(inputs, state)["score"]
        logits = inputs.forward.logits
        results = {
            "score": score,
            "label": jnp.argmax(logits, axis=-1).astype(jnp.int32),
            "probability": jnp.max(jax.nn.softmax(logits), axis=-1),
        }
        if threshold is not None:
            scores = jnp.asarray(threshold.scores)
            below = jnp.sum(scores[None] <= score[:, None], axis=-1)
            results["is_ood"] = ~(score >= np.float32(threshold.value))
            results["p_value"] = (1 + below) / np.float32(1 + threshold.count)
        return results

    return run
