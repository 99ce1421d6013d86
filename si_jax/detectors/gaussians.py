"""Detectors that fit a Gaussian to each class's features."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.fitting import Batches, Moments, check_every_class, check_labels, unit
from si_jax.detectors.head import feature_size
from si_jax.detectors.options import Positive
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
        return {"score": -nearest_class(unit(h) if normalise else h, state)}

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
            whole = jnp.sum(((h - state["mean"][None]) @ state["whiten_all"]) ** 2, axis=-1)
        return {"score": whole - nearest_class(h, state)}

    return Plan(compute, {"normalise": normalise}, fit=fit)


def gmm(model: Model, *, reg: Positive = 1e-6) -> Plan:
    """Log-likelihood of the features under a mixture of Gaussians, one for each class.

    With `pi_c` a class's share of the fitting images, `mu_c` its mean and `S_c` its own covariance
    plus `reg` on the diagonal, the score is `log sum_c pi_c N(h; mu_c, S_c)` (code: pytorch-ood's
    `GMM`; no single paper). OpenOOD's `gmm` fits a mixture with a common covariance by EM, without
    labels, from a random start, and adds 1e-40 to the density, which makes all images that are far
    off the same; here the logarithm is exact, and nothing is drawn. The fit keeps
    `classes * features^2` numbers: 4 bytes each in the state, 8 while it runs.

    Args:
        model: the network.
        reg: added to the variances; a class with fewer images than features depends on it.

    The fit raises a ValueError if labels are missing or a class has no image.
    """
    feature_size(model)  # refuses what is no vector

    def fit(batches: Batches) -> State:
        classes = [Moments() for _ in range(model.num_classes)]
        for _, h, labels in batches.outputs():
            check_labels(labels, len(classes))
            for label in np.unique(labels):
                classes[label].add(h[labels == label])
        counts = np.array([moments.count for moments in classes])
        check_every_class(counts)
        values, vectors = np.linalg.eigh([moments.covariance() for moments in classes])
        values = np.maximum(values, 0) + reg
        log_density = np.log(counts / counts.sum()) - 0.5 * np.log(2 * np.pi * values).sum(axis=-1)
        state = {
            "means": np.stack([moments.mean() for moments in classes]),
            "whiten": vectors / np.sqrt(values)[:, None],
            "log_density": log_density,
        }
        return {name: array.astype(np.float32) for name, array in state.items()}

    def compute(inputs: Inputs, state: State):
        h = inputs.forward.features

        def log_likelihood(gaussian):
            mean, whiten, log_density = gaussian
            with jax.default_matmul_precision("highest"):
                return log_density - 0.5 * jnp.sum(((h - mean[None]) @ whiten) ** 2, axis=-1)

        gaussians = state["means"], state["whiten"], state["log_density"]
        return {"score": jax.nn.logsumexp(jax.lax.map(log_likelihood, gaussians), axis=0)}

    return Plan(compute, {"reg": reg}, fit=fit)


def whitening(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """`A` with `A A^T` the pseudo-inverse of a covariance matrix."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > RANK_TOLERANCE * values[-1]
    if not values[-1] > 0 or not kept.any():
        raise ValueError("the covariance is singular: no feature varies among the fitting images")
    return vectors * np.where(kept, 1 / np.sqrt(np.where(kept, values, 1)), 0)


def nearest_class(h: Float[Array, "batch features"], state: State) -> Float[Array, "batch"]:
    """Squared Mahalanobis distance to the nearest class mean, class by class."""
    with jax.default_matmul_precision("highest"):
        white = (h - state["mean"][None]) @ state["whiten"]
    distances = jax.lax.map(
        lambda mean: jnp.sum((white - mean[None]) ** 2, axis=-1), state["white_class_means"]
    )
    return jnp.min(distances, axis=0)


def _gaussians(model: Model, batches: Batches, normalise: bool) -> State:
    """The state of `ClassMoments` of the features, in one pass."""
    moments = ClassMoments(model.num_classes)
    for _, h, labels in batches.outputs():
        moments.add(unit(h) if normalise else h, labels)
    return moments.state()


class ClassMoments:
    """Running sums of rows: those of each class, and the moments of all."""

    def __init__(self, classes: int):
        self.counts = np.zeros(classes)
        self.moments = Moments()

    def add(self, h: Float[np.ndarray, "batch features"], labels: Int[np.ndarray, "batch"]) -> None:
        """Take in more rows; raises a ValueError if labels are missing or out of range."""
        check_labels(labels, len(self.counts))
        if not self.moments.count:
            self.sums = np.zeros((len(self.counts), h.shape[-1]))
        self.moments.add(h)
        np.add.at(self.sums, labels, h - self.moments.origin)
        self.counts += np.bincount(labels, minlength=len(self.counts))

    def state(self) -> dict[str, np.ndarray]:
        """Means, and whitening maps of the common and of the whole covariance.

        Whitened before they are rounded to float32, distances lose little to a covariance whose
        eigenvalues differ by many orders of magnitude.
        """
        counts, moments, total = self.counts, self.moments, self.moments.count
        check_every_class(counts)
        means, mean = self.sums / counts[:, None], moments.total / total
        whole = moments.covariance()
        common = (moments.products - (means * counts[:, None]).T @ means) / total
        scale = np.trace(whole) / len(whole)
        varying = int(np.sum(np.diag(whole) > RANK_TOLERANCE * scale))
        if total - len(counts) < varying:
            raise ValueError(
                f"the covariance of {varying} features is singular: images (={total}) are too few"
                f" for {len(counts)} classes; fit on at least {varying + len(counts)}"
            )
        whiten = whitening(common)
        state = {
            "mean": moments.origin + mean,
            "whiten": whiten,
            "white_class_means": (means - mean) @ whiten,
            "whiten_all": whitening(whole),
        }
        return {name: array.astype(np.float32) for name, array in state.items()}
