"""A detector as one file that runs without this library.

By `jax.export` for JAX on CPU, CUDA or TPU, or as ONNX for other runtimes. The network, the fit and
the threshold are constants in it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
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


def export_onnx(detector: Detector, path: str | os.PathLike) -> Path:
    """Write a detector as an ONNX model, by `jax2onnx`; input and outputs as `export_jax`.

    It serves the detectors that need one forward pass alone, but for those whose operations ONNX or
    `jax2onnx` lack.

    Raises:
        ValueError: if the detector cannot be expressed, or is not fitted.
        ImportError: if `jax2onnx` is not installed; the message says how to.
    """
    try:
        from jax2onnx import to_onnx
    except ImportError:
        raise ImportError('ONNX needs jax2onnx: pip install "si-jax[onnx]"') from None
    if not detector.forward_only:
        raise ValueError(
            f"detector {detector.name!r} needs a gradient, which ONNX has not: export it for JAX,"
            " or choose a detector that needs a forward pass alone"
        )
    run = program_of(detector)
    names = list(jax.eval_shape(run, jax.ShapeDtypeStruct((1, *detector.model.image_shape), "u1")))
    image = jax.ShapeDtypeStruct(("batch", *detector.model.image_shape), jnp.uint8)
    original = _linen_calls()

    def traced(images):
        with _set_linen_calls(original):
            return tuple(run(images).values())

    try:
        model = to_onnx(
            traced,
            inputs=[image],
            model_name=detector.name,
            input_names=["images"],
            output_names=names,
        )
    except Exception as error:  # jax2onnx raises what its parts stumble over
        raise ValueError(
            f"jax2onnx cannot express detector {detector.name!r} ({type(error).__name__}:"
            f" {str(error).splitlines()[0][:200]}): export it for JAX"
        ) from error
    data = model.SerializeToString()
    path = Path(path)
    write_atomically(path, lambda file: file.write(data))
    return path


def program_of(
    detector: Detector,
) -> Callable[[UInt8[Array, "batch height width channels"]], dict[str, Shaped[Array, "batch"]]]:
    """The function of images that is exported, with everything else bound."""
    detector.check_fitted()
    model, threshold = detector.model, detector.threshold
    variables = jax.tree.map(jnp.asarray, model.variables)
    state = {name: jnp.asarray(array) for name, array in detector.state.items()}

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


def _linen_calls() -> dict[type, Callable]:
    """Flax Linen's layers, and how each is called."""
    layers = [value for value in vars(nn).values() if isinstance(value, type)]
    return {
        layer: vars(layer)["__call__"]
        for layer in layers
        if issubclass(layer, nn.Module) and "__call__" in vars(layer)
    }


@contextlib.contextmanager
def _set_linen_calls(calls: Mapping[type, Callable]) -> Iterator[None]:
    """Call Linen's layers in another way for a while.

    `jax2onnx` replaces their calls while it traces, so that taps and features are not met.
    """
    now = _linen_calls()
    try:
        for layer, call in calls.items():
            layer.__call__ = call
        yield
    finally:
        for layer, call in now.items():
            layer.__call__ = call
