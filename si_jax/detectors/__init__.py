"""The table of detectors."""

import inspect
from typing import Any

import numpy as np

from si_jax.detectors import (
    features,
    gaussians,
    gradients,
    logits,
    si,
    training_features,
)
from si_jax.detectors.base import Detector, Inputs, Method, Plan
from si_jax.detectors.options import convert_all
from si_jax.detectors.si_c import method as si_c
from si_jax.model import Model

__all__ = ["DETECTORS", "Detector", "Inputs", "Method", "Plan", "default_options", "make_detector"]

DETECTORS: dict[str, Method] = {
    "si-c": Method(
        si_c.si_c,
        "S&I calibrated: energy, channel-average and zero-deflation",
        "this library, after S&I",
        batch_size=32,
    ),
    "si-c-forward": Method(
        si_c.si_c_forward,
        "S&I calibrated, without a gradient: energy and zero-deflation",
        "this library, after S&I",
    ),
    "si-z": Method(si.si_z, "S&I zero-deflation", "S&I, ICML 2025", batch_size=32),
    "si-a": Method(si.si_a, "S&I channel-average", "S&I, ICML 2025", batch_size=16),
    "gaia-z": Method(si.gaia_z, "GAIA zero-deflation", "Chen et al., NeurIPS 2023"),
    "gaia-a": Method(si.gaia_a, "GAIA channel-average", "Chen et al., NeurIPS 2023"),
    "msp": Method(logits.msp, "largest softmax probability", "Hendrycks & Gimpel, ICLR 2017"),
    "max-logit": Method(logits.max_logit, "largest logit", "Hendrycks et al., ICML 2022"),
    "energy": Method(logits.energy, "logsumexp of the logits", "Liu et al., NeurIPS 2020"),
    "gen": Method(logits.gen, "minus the generalised entropy", "Liu et al., CVPR 2023"),
    "odin": Method(
        gradients.odin,
        "largest softmax probability at a high temperature after a step on the image",
        "Liang et al., ICLR 2018",
    ),
    "gradnorm": Method(
        features.gradnorm, "gradient norm of the head's weights", "Huang et al., NeurIPS 2021"
    ),
    "react": Method(
        training_features.react, "energy of truncated features", "Sun et al., NeurIPS 2021"
    ),
    "ash-p": Method(features.ash_p, "energy of pruned features", "Djurisic et al., ICLR 2023"),
    "ash-b": Method(
        features.ash_b, "energy of pruned, equalised features", "Djurisic et al., ICLR 2023"
    ),
    "ash-s": Method(
        features.ash_s, "energy of pruned, scaled features", "Djurisic et al., ICLR 2023"
    ),
    "scale": Method(features.scale, "energy of scaled features", "Xu et al., ICLR 2024"),
    "rankfeat": Method(
        features.rankfeat,
        "energy without the feature maps' rank-1 component",
        "Song et al., NeurIPS 2022",
    ),
    "dice": Method(
        training_features.dice, "energy by the head's weightiest weights", "Sun & Li, ECCV 2022"
    ),
    "knn": Method(
        training_features.knn, "distance to the k-th nearest feature", "Sun et al., ICML 2022"
    ),
    "mahalanobis": Method(
        gaussians.mahalanobis, "distance to the nearest class mean", "Lee et al., NeurIPS 2018"
    ),
    "relative-mahalanobis": Method(
        gaussians.relative_mahalanobis,
        "the same relative to the distance to all classes as one",
        "Ren et al., 2021",
    ),
    "vim": Method(training_features.vim, "energy minus a virtual logit", "Wang et al., CVPR 2022"),
    "kl-matching": Method(
        training_features.kl_matching,
        "divergence from the classes' mean softmax",
        "Hendrycks et al., ICML 2022",
    ),
}
"""Every detector by name."""


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
    options = convert_all(method.build, options)
    size = method.batch_size if batch_size is None else batch_size
    detector = Detector(name, model, method.build(model, **options), size)
    detector.options = options
    return detector


def default_options(name: str) -> dict[str, Any]:
    """Options of a detector and their defaults."""
    parameters = inspect.signature(DETECTORS[name].build).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
