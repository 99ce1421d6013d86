"""The table of detectors: a row a method. What it is and its paper stand in its docstring.

A network, an option or fitting images that do not serve a method are refused by a `ValueError` that
says why: a head that is not linear where one is needed, labels that are missing, a class of no
image, an option out of its range.
"""

from collections.abc import Callable
from functools import partial

from si_jax.detectors import (
    class_geometry,
    features,
    gaussians,
    gradients,
    layers,
    logits,
    neighbours,
    si,
    si_c,
)
from si_jax.detectors.base import Method, Plan
from si_jax.detectors.features import adascale


def _row(build: Callable[..., Plan], *needs: str, version: int = 1, batch_size: int = 64) -> Method:
    """A method whose docstring begins with its summary and, in brackets, its reference."""
    described = build.args[0] if isinstance(build, partial) else build
    first = (described.__doc__ or "").partition("\n")[0]
    summary, _, reference = first.removesuffix(").").rpartition(" (")
    return Method(build, summary, reference, batch_size, version, needs)


DETECTORS: dict[str, Method] = {
    "si-c": _row(si_c.si_c, "fit", "gradient", "linear head for channel-average", batch_size=32),
    "si-c-forward": _row(si_c.si_c_forward, "fit"),
    "si-z": _row(si.si_z, "gradient", version=3, batch_size=32),
    "si-a": _row(si.si_a, "gradient", "linear head", batch_size=16),
    "gaia-z": _row(si.gaia_z, "gradient", version=3),
    "gaia-a": _row(si.gaia_a, "gradient", "linear head"),
    "msp": _row(logits.msp),
    "temperature-scaling": _row(logits.temperature_scaling, "fit", "labels"),
    "entropy": _row(logits.entropy),
    "max-logit": _row(logits.max_logit),
    "energy": _row(logits.energy),
    "gen": _row(logits.gen, version=2),
    "odin": _row(gradients.odin, "gradient"),
    "i-odin": _row(gradients.i_odin, "gradient"),
    "gradnorm": _row(gradients.gradnorm, "linear head"),
    "grad-uncertainty": _row(gradients.grad_uncertainty, "linear head"),
    "react": _row(features.react, "fit", "linear head"),
    "vra": _row(features.vra, "fit", "linear head"),
    "ash-p": _row(features.ash_p, "linear head"),
    "ash-b": _row(features.ash_b, "linear head"),
    "ash-s": _row(features.ash_s, "linear head"),
    "scale": _row(features.scale, "linear head"),
    "lts": _row(features.lts, "linear head"),
    "adascale-a": _row(partial(adascale, features.adascale_a), "fit", "gradient", "linear head"),
    "adascale-l": _row(partial(adascale, features.adascale_l), "fit", "gradient", "linear head"),
    "rankfeat": _row(layers.rankfeat),
    "dice": _row(features.dice, "fit", "linear head"),
    "knn": _row(neighbours.knn, "fit", "feature vector"),
    "nnguide": _row(neighbours.nnguide, "fit", "feature vector"),
    "relation": _row(neighbours.relation, "fit", "feature vector"),
    "cfood": _row(neighbours.cfood, "fit", "feature vector"),
    "she": _row(class_geometry.she, "fit", "labels", "feature vector"),
    "fdbd": _row(class_geometry.fdbd, "fit", "linear head"),
    "nci": _row(class_geometry.nci, "fit", "linear head"),
    "grood": _row(class_geometry.grood, "fit", "labels", "feature vector"),
    "mahalanobis": _row(gaussians.mahalanobis, "fit", "labels", "feature vector"),
    "relative-mahalanobis": _row(gaussians.relative_mahalanobis, "fit", "labels", "feature vector"),
    "gmm": _row(gaussians.gmm, "fit", "labels", "feature vector"),
    "multi-mahalanobis": _row(layers.multi_mahalanobis, "fit", "labels"),
    "gram": _row(layers.gram, "fit"),
    "nac": _row(layers.nac, "fit", "gradient", batch_size=32),
    "vim": _row(gaussians.vim, "fit", "linear head"),
    "residual": _row(gaussians.residual, "fit", "linear head"),
    "pnml": _row(gaussians.pnml, "fit", "linear head"),
    "kl-matching": _row(logits.kl_matching, "fit"),
    "openmax": _row(class_geometry.openmax, "fit", "labels"),
    "mcm": _row(class_geometry.mcm, "linear head"),
}
"""Every detector by name. Each has a version, which is raised when its scores change."""
