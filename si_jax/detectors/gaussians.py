"""Detectors that fit a Gaussian to each class's features."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.fitting import Batches, Moments, check_every_class, check_labels, unit
from si_jax.detectors.head import feature_size
from si_jax.model import Model

RANK_TOLERANCE = 1e-10  # relative to the largest eigenvalue; float32's rounding is at 1e-14


def mahalanobis(model: Model, *, normalise: bool = False) -> Plan:
    """Minus the smallest squared Mahalanobis distance to a class mean.

    Lee et al., NeurIPS 2018, eq. 2, on the features that enter the head alone: no input
    pre-processing, no ensemble of layers, as in later comparisons (Ren et al., 2021; Wang et al.,
    2022). The covariance is common to the classes; features that never vary are left out of it, as
    its pseudo-inverse does in the published codes.

    Args:
        model: the network.
        normalise: whether the features are divided by their norm first, which makes it
            Mahalanobis++ (Mueller & Hein, ICML 2025).

    The fit raises a ValueError if labels are missing, a class has no image, or there are too few
    images for the covariance.
    """
    feature_size(model)  # refuses what is no vector

    def fit(batches: Batches) -> State:
        return _gaussians(model, batches, normalise)

    def compute(inputs: Inputs, state: State):
        h = inputs.forward.features
        return {"score": -_nearest_class(unit(h) if normalise else h, state)}

    return Plan(compute, {"normalise": normalise}, fit=fit)


def relative_mahalanobis(model: Model, *, normalise: bool = False) -> Plan:
    """Minus the smallest Mahalanobis distance to a class relative to that to all classes as one.

    `-min_c (MD_c - MD_0)`, where `MD_0` is the distance by the mean and the covariance of all
    images (Ren et al., 2021, "A simple fix to Mahalanobis distance for improving near-OOD
    detection"). Fitted as `mahalanobis`, and with the same option.
    """
    feature_size(model)  # refuses what is no vector

    def fit(batches: Batches) -> State:
        return _gaussians(model, batches, normalise)

    def compute(inputs: Inputs, state: State):
        h = inputs.forward.features
        h = unit(h) if normalise else h
        with jax.default_matmul_precision("highest"):
            whole = jnp.sum(((h - state["mean"]) @ state["whiten_all"]) ** 2, axis=-1)
        return {"score": whole - _nearest_class(h, state)}

    return Plan(compute, {"normalise": normalise}, fit=fit)


def whitening(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """`A` with `A A^T` the pseudo-inverse of a covariance matrix.

    Raises:
        ValueError: if the matrix is zero.
    """
    values, vectors = np.linalg.eigh(covariance)
    kept = values > RANK_TOLERANCE * values[-1]
    if not values[-1] > 0 or not kept.any():
        raise ValueError("the covariance is singular: no feature varies among the fitting images")
    return vectors * np.where(kept, 1 / np.sqrt(np.where(kept, values, 1)), 0)


def _nearest_class(h: Float[Array, "batch features"], state: State) -> Float[Array, "batch"]:
    """Squared Mahalanobis distance to the nearest class mean, class by class."""
    with jax.default_matmul_precision("highest"):
        white = (h - state["mean"]) @ state["whiten"]
    distances = jax.lax.map(
        lambda mean: jnp.sum((white - mean) ** 2, axis=-1), state["white_class_means"]
    )
    return jnp.min(distances, axis=0)


def _gaussians(model: Model, batches: Batches, normalise: bool) -> State:
    """Means, and whitening maps of the common and of the whole covariance, in one pass.

    Whitened before they are rounded to float32, distances lose little to a covariance whose
    eigenvalues differ by many orders of magnitude.
    """
    classes = model.num_classes
    counts, sums, moments = np.zeros(classes), np.zeros((classes, model.num_features)), Moments()
    for _, h, labels in batches.outputs():
        check_labels(labels, classes)
        h = unit(h) if normalise else h
        moments.add(h)
        np.add.at(sums, labels, h - moments.origin)
        counts += np.bincount(labels, minlength=classes)
    check_every_class(counts)
    total, origin = moments.count, moments.origin
    means, mean = sums / counts[:, None], moments.total / total
    whole = moments.covariance()
    common = (moments.products - (means * counts[:, None]).T @ means) / total
    scale = np.trace(whole) / len(whole)
    varying = int(np.sum(np.diag(whole) > RANK_TOLERANCE * scale))
    if total - classes < varying:
        raise ValueError(
            f"the covariance of {varying} features is singular: images (={total}) are too few"
            f" for {classes} classes; fit on at least {varying + classes}"
        )
    whiten = whitening(common)
    state = {
        "mean": origin + mean,
        "whiten": whiten,
        "white_class_means": (means - mean) @ whiten,
        "whiten_all": whitening(whole),
    }
    return {name: array.astype(np.float32) for name, array in state.items()}
