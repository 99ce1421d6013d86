"""A detector as one file that runs without this library: of `jax.export`, or of ONNX."""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import jax.export
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from si_jax.data.files import AnyPath, write_atomically
from si_jax.detectors import Detector, Inputs
from si_jax.detectors.base import State

ONNX = ".onnx"  # the ending of such files
CHECKED = 5  # random images on which ONNX is compared with the library before it is written
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


ONNX_LOADER = """\
import onnxruntime


def load(path):
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images})))


# load("detector.onnx")(uint8 images) -> score, label, probability, is_ood, p_value
"""
"""All that is needed to run a detector in ONNX, with `onnxruntime`."""


def export_jax(detector: Detector, path: AnyPath, *, platforms: Sequence[str] = PLATFORMS) -> Path:
    """Write a fitted detector as a program for `jax.export`, which `LOADER` runs; returns the path.

    It takes uint8 images in the model's input size, any number of them, and gives the arrays of
    `Detector.predict`; without a threshold, `is_ood` and `p_value` are left out. The network, the
    fit and the threshold are constants in it.

    Raises:
        ValueError: if the detector is not fitted.
    """
    run, images = _program(detector)
    data = jax.export.export(jax.jit(run), platforms=tuple(platforms))(images).serialize()
    write_atomically(Path(path), lambda file: file.write(data))
    return Path(path)


def export_onnx(detector: Detector, path: AnyPath) -> Path:
    """Write a fitted detector as ONNX, which `ONNX_LOADER` runs; returns the path.

    Input and outputs are those of `export_jax`. Before it is written, it is run by onnxruntime, and
    its scores of random images are compared with this library's.

    Raises:
        ValueError: if the detector is not fitted, the package `jax2onnx` is missing, it does not
            know this version of JAX, it has no conversion for what the detector computes, or the
            scores are others.
    """
    run, images = _program(detector, branches=False)
    try:
        import onnxruntime
        from jax2onnx import to_onnx
    except ModuleNotFoundError as error:
        raise ValueError(
            f'an export to ONNX needs the package {error.name!r}: pip install "si-jax[onnx]"'
        ) from None
    closed, results = jax.make_jaxpr(run, return_shape=True)(images)  # before Flax is patched
    logging.disable(logging.WARNING)  # that it does not know the shape of an inner value
    try:
        data = to_onnx(
            jax.extend.core.jaxpr_as_fun(closed),
            [images],
            model_name=detector.name,
            input_names=["images"],
            output_names=sorted(results),
        ).SerializeToString()
    except Exception as error:  # what it raises for a missing conversion is of any kind
        if isinstance(error, AttributeError) and str(error).startswith("module 'jax"):
            raise ValueError(
                f"jax2onnx {version('jax2onnx')} does not know jax {jax.__version__} ({error}):"
                " write the detector for JAX, or as ONNX with an older one, such as jax 0.10"
            ) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"detector {detector.name!r} cannot be written as ONNX, for which jax2onnx lacks a"
            f" conversion ({reason}): write it for JAX, or take a detector without a gradient"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised
    shape = (CHECKED, *detector.model.image_shape)
    checked = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    try:
        session = onnxruntime.InferenceSession(data, options)
        (scores,) = session.run(["score"], {"images": checked})
    except Exception as error:  # of onnxruntime's own kinds
        reason = " ".join(str(error).split())[-200:]
        raise ValueError(
            f"detector {detector.name!r} cannot be run once written as ONNX, as jax2onnx writes the"
            f" network's max-pools, for example (onnxruntime: {reason}): write it for JAX"
        ) from error
    expected = detector.score(checked)
    if not np.allclose(scores, expected, rtol=1e-4, atol=1e-5 * np.ptp(expected)):
        raise ValueError(
            f"detector {detector.name!r} gives other scores once written as ONNX, up to"
            f" {np.abs(scores - expected).max():.3g} away: write it for JAX"
        )
    write_atomically(Path(path), lambda file: file.write(data))
    return Path(path)


def _program(detector: Detector, *, branches: bool = True) -> tuple[Callable, jax.ShapeDtypeStruct]:
    """The function that is exported, with all else bound; and its images, a batch of any size.

    What the detector cannot be sure of (see `Plan.exact`) is computed in a branch of its own; where
    there are to be none, its score is NaN, which is below any threshold.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *detector.model.image_shape), jnp.uint8)
    model, threshold = detector.model, detector.threshold
    state = jax.tree.map(jnp.asarray, dict(detector.check_fitted()))
    variables = jax.tree.map(jnp.asarray, model.variables)

    def run(images):
        inputs = Inputs(model, variables, images)
        score = _certain_score(detector, inputs, state, branches)
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

    if model.framework.any_batch:
        return run, images

    def one(image):
        return jax.tree.map(lambda x: x[0], run(image[None]))

    # a loop has the branch that vmap would always compute
    loop = branches and detector.exact
    return (partial(jax.lax.map, one) if loop else jax.vmap(one)), images


def _certain_score(detector: Detector, inputs: Inputs, state: State, branches: bool) -> Array:
    results = detector.compute(inputs, state)
    score, settled = results["score"], results.get("settled")
    if settled is None:
        return score
    if not branches:
        return jnp.where(settled, score, jnp.nan)

    def exact():  # on a copy of the inputs, as the pass that it sets ends with the branch
        whole = detector.compute(copy.copy(inputs), state, exact=True)
        return jnp.where(settled, score, whole["score"])

    return jax.lax.cond(jnp.all(settled), lambda: score, exact)
