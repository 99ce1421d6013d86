"""Detectors, by what they need, and their table.

In flow a model and, for those that learn, in-distribution images; out flows a `Detector`, which
gives each image a score, higher for in-distribution.
"""

import inspect
import re
from typing import Any

import numpy as np

from si_jax.detectors import (
    adaptive,
    class_geometry,
    features,
    gaussians,
    gradients,
    logits,
    neighbours,
    probabilities,
    rectified,
    si,
    subspace,
)
from si_jax.detectors.base import Detector, Inputs, Method, Plan
from si_jax.detectors.head import check_logits
from si_jax.detectors.options import convert_all
from si_jax.detectors.options import describe as describe_option
from si_jax.detectors.si_c import method as si_c
from si_jax.model import Model

__all__ = [
    "DETECTORS",
    "Detector",
    "Inputs",
    "Method",
    "Plan",
    "default_options",
    "describe",
    "make_detector",
    "register_detector",
]

DETECTORS: dict[str, Method] = {
    "si-c": Method(
        si_c.si_c,
        "S&I calibrated: energy, channel-average and zero-deflation",
        "this library, after S&I",
        version=1,
        needs=("fit", "gradient", "linear head"),
        batch_size=32,
    ),
    "si-c-forward": Method(
        si_c.si_c_forward,
        "S&I calibrated, without a gradient: energy and zero-deflation",
        "this library, after S&I",
        version=1,
        needs=("fit", "linear head"),
    ),
    "si-z": Method(
        si.si_z,
        "S&I zero-deflation",
        "S&I, ICML 2025",
        version=1,
        needs=("gradient",),
        batch_size=32,
    ),
    "si-a": Method(
        si.si_a,
        "S&I channel-average",
        "S&I, ICML 2025",
        version=1,
        needs=("gradient", "linear head"),
        batch_size=16,
    ),
    "gaia-z": Method(
        si.gaia_z,
        "GAIA zero-deflation",
        "Chen et al., NeurIPS 2023",
        version=1,
        needs=("gradient",),
    ),
    "gaia-a": Method(
        si.gaia_a,
        "GAIA channel-average",
        "Chen et al., NeurIPS 2023",
        version=1,
        needs=("gradient", "linear head"),
    ),
    "msp": Method(
        logits.msp, "largest softmax probability", "Hendrycks & Gimpel, ICLR 2017", version=1
    ),
    "temperature-scaling": Method(
        probabilities.temperature_scaling,
        "largest softmax probability, calibrated",
        "Guo et al., ICML 2017",
        version=1,
        needs=("fit", "labels"),
    ),
    "entropy": Method(
        logits.entropy,
        "minus the entropy of the softmax",
        "Hendrycks & Gimpel, ICLR 2017",
        version=1,
    ),
    "max-logit": Method(
        logits.max_logit, "largest logit", "Hendrycks et al., ICML 2022", version=1
    ),
    "energy": Method(
        logits.energy, "logsumexp of the logits", "Liu et al., NeurIPS 2020", version=1
    ),
    "gen": Method(logits.gen, "minus the generalised entropy", "Liu et al., CVPR 2023", version=1),
    "odin": Method(
        gradients.odin,
        "largest softmax probability at a high temperature after a step on the image",
        "Liang et al., ICLR 2018",
        version=1,
        needs=("gradient",),
    ),
    "i-odin": Method(
        gradients.i_odin,
        "ODIN whose step moves the one value with the largest gradient",
        "Regmi, 2025",
        version=1,
        needs=("gradient",),
    ),
    "gradnorm": Method(
        gradients.gradnorm,
        "gradient norm of the head's, or of all, weights",
        "Huang et al., NeurIPS 2021",
        version=1,
        needs=("linear head",),
    ),
    "react": Method(
        rectified.react,
        "energy of truncated features",
        "Sun et al., NeurIPS 2021",
        version=1,
        needs=("fit", "linear head"),
    ),
    "vra": Method(
        rectified.vra,
        "energy of features without the small ones, truncated",
        "Xu et al., NeurIPS 2023",
        version=1,
        needs=("fit", "linear head"),
    ),
    "ash-p": Method(
        features.ash_p,
        "energy of pruned features",
        "Djurisic et al., ICLR 2023",
        version=1,
        needs=("linear head",),
    ),
    "ash-b": Method(
        features.ash_b,
        "energy of pruned, equalised features",
        "Djurisic et al., ICLR 2023",
        version=1,
        needs=("linear head",),
    ),
    "ash-s": Method(
        features.ash_s,
        "energy of pruned, scaled features",
        "Djurisic et al., ICLR 2023",
        version=1,
        needs=("linear head",),
    ),
    "scale": Method(
        features.scale,
        "energy of scaled features",
        "Xu et al., ICLR 2024",
        version=1,
        needs=("linear head",),
    ),
    "lts": Method(
        features.lts,
        "energy of logits scaled by the features",
        "Djurisic et al., 2025",
        version=1,
        needs=("linear head",),
    ),
    "adascale-a": Method(
        adaptive.adascale_a,
        "energy of features scaled by the answer to a perturbation",
        "Regmi, 2025",
        version=1,
        needs=("fit", "gradient", "linear head"),
    ),
    "adascale-l": Method(
        adaptive.adascale_l,
        "energy of logits scaled by the answer to a perturbation",
        "Regmi, 2025",
        version=1,
        needs=("fit", "gradient", "linear head"),
    ),
    "rankfeat": Method(
        features.rankfeat,
        "energy without the feature maps' rank-1 component",
        "Song et al., NeurIPS 2022",
        version=1,
    ),
    "dice": Method(
        rectified.dice,
        "energy by the head's weightiest weights",
        "Sun & Li, ECCV 2022",
        version=1,
        needs=("fit", "linear head"),
    ),
    "knn": Method(
        neighbours.knn,
        "distance to the k-th nearest feature",
        "Sun et al., ICML 2022",
        version=1,
        needs=("fit",),
    ),
    "nnguide": Method(
        neighbours.nnguide,
        "energy times the likeness to training images",
        "Park et al., ICCV 2023",
        version=1,
        needs=("fit",),
    ),
    "she": Method(
        class_geometry.she,
        "inner product with the predicted class's mean",
        "Zhang et al., ICLR 2023",
        version=1,
        needs=("fit", "labels"),
    ),
    "fdbd": Method(
        class_geometry.fdbd,
        "distance to the decision boundaries",
        "Liu & Qin, ICML 2024",
        version=1,
        needs=("fit", "linear head"),
    ),
    "nci": Method(
        class_geometry.nci,
        "features along the predicted class's weights",
        "Liu & Qin, CVPR 2025",
        version=1,
        needs=("fit", "linear head"),
    ),
    "mahalanobis": Method(
        gaussians.mahalanobis,
        "distance to the nearest class mean",
        "Lee et al., NeurIPS 2018",
        version=1,
        needs=("fit", "labels"),
    ),
    "relative-mahalanobis": Method(
        gaussians.relative_mahalanobis,
        "the same relative to the distance to all classes as one",
        "Ren et al., 2021",
        version=1,
        needs=("fit", "labels"),
    ),
    "vim": Method(
        subspace.vim,
        "energy minus a virtual logit",
        "Wang et al., CVPR 2022",
        version=1,
        needs=("fit", "linear head"),
    ),
    "residual": Method(
        subspace.residual,
        "norm of the features outside their subspace",
        "Wang et al., CVPR 2022",
        version=1,
        needs=("fit", "linear head"),
    ),
    "kl-matching": Method(
        probabilities.kl_matching,
        "divergence from the classes' mean softmax",
        "Hendrycks et al., ICML 2022",
        version=1,
        needs=("fit",),
    ),
}
"""Every detector by name. Each has a version, which is raised when its scores change."""


def make_detector(
    name: str,
    model: Model,
    *,
    batch_size: int | np.integer | str | None = None,
    **options: Any,
) -> Detector:
    """Apply a detection method to a model.

    Args:
        name: a key of `DETECTORS`.
        model: the network.
        batch_size: images per batch; None for the method's default. Bounds the memory; no score
            depends on it.
        options: the method's options, see `default_options`; Python's values, NumPy's, or text as
            on a command line, see `si_jax.detectors.options`.

    Raises:
        ValueError: if there is no such detector, it does not take an option, or an option's value
            makes no sense.
    """
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}: choose one of {', '.join(DETECTORS)}")
    method = DETECTORS[name]
    known = default_options(name)
    if unknown := [key for key in options if key not in known]:
        raise ValueError(
            f"detector {name!r} does not take the option {', '.join(unknown)}; it takes"
            f" {', '.join(known) or 'none'}"
        )
    check_logits(model)
    options = convert_all(method.build, options)
    size = method.batch_size if batch_size is None else batch_size
    detector = Detector(name, model, method.build(model, **options), size)
    detector.options = options
    detector.version = method.version
    return detector


def register_detector(name: str, method: Method) -> None:
    """Add a method of your own to `DETECTORS`, where `make_detector` and the commands find it.

    Its scores and fits are stored in files only if it names a `version`; raise that whenever a
    change of yours changes its scores, since what is stored under it is taken for current.

    Args:
        name: what it is called: lower-case letters, digits and `-`, as it becomes a file's name.
        method: how it is built; its function takes the model, then options by keyword.

    Raises:
        ValueError: if the name is taken or of another form, or the method's function takes
            anything but the model and keywords with defaults.

    Example:
        A detector is a function of the model that returns a `Plan`, whose `compute` sees a batch
        and what was fitted::

            def margin(model, *, power: float = 1.0):
                def compute(inputs, state):
                    top = jax.lax.top_k(inputs.forward.logits, 2)[0]
                    return {"score": (top[:, 0] - top[:, 1]) ** power}
                return Plan(compute, {"power": power})

            register_detector("margin", Method(margin, "margin of the logits", "mine", version=1))
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name (={name!r}) must be lower-case letters, digits and single '-'")
    if name in DETECTORS:
        raise ValueError(f"name (={name!r}) is taken: choose another, or delete it from DETECTORS")
    _, *options = inspect.signature(method.build).parameters.values()
    for option in options:
        if option.kind is not option.KEYWORD_ONLY or option.default is option.empty:
            raise ValueError(
                f"method: its function's argument {option.name!r} must be a keyword with a default"
            )
    DETECTORS[name] = method


def describe(name: str) -> str:
    """A detector in a few lines: what it is, what it needs, and which values its options take."""
    method = DETECTORS[name]
    lines = [
        f"{name}: {method.summary} ({method.reference})",
        f"    needs: {', '.join(method.needs) or 'the logits alone'}",
    ]
    parameters = inspect.signature(method.build).parameters
    for option, default in default_options(name).items():
        shown = ",".join(default) if isinstance(default, tuple) else default
        shown = "none" if default is None else shown
        lines.append(f"    {option}={shown}: {describe_option(parameters[option].annotation)}")
    return "\n".join(lines)


def default_options(name: str) -> dict[str, Any]:
    """Options of a detector and their defaults."""
    parameters = inspect.signature(DETECTORS[name].build).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
