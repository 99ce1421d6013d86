"""Detectors that learn means and covariances: distances to classes, and to a subspace."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from si_jax.detectors.base import Inputs, Plan, State, head_logits, of_features, product
from si_jax.detectors.fitting import Batches, Moments, check_classes, check_labels, float32, unit
from si_jax.detectors.logits import log_probabilities
from si_jax.detectors.options import Count, Positive
from si_jax.model import Model

RANK_TOLERANCE = 1e-10  # relative to the largest eigenvalue; float32's rounding is at 1e-14


def mahalanobis(model: Model, *, normalise: bool = False) -> Plan:
    """Minus the squared distance to the nearest class mean (Lee et al., NeurIPS 2018, eq. 2).

    The squared Mahalanobis distance, on the features that enter the head alone: no input
    pre-processing, no ensemble of layers, as in later comparisons (Ren et al., 2021; Wang et al.,
    2022). The covariance is common to the classes; features that never vary are left out of it, as
    its pseudo-inverse does in the published codes.

    Args:
        normalise: whether the features are divided by their norm first, which makes it
            Mahalanobis++ (Mueller & Hein, ICML 2025).
    """
    return _by_class(model, normalise, lambda h, state: -nearest_class(h, state))


def relative_mahalanobis(model: Model, *, normalise: bool = False) -> Plan:
    """`mahalanobis` relative to the distance to all classes as one (Ren et al., 2021).

    `-min_c (MD_c - MD_0)`, where `MD_0` is the distance by the mean and the covariance of all
    images ("A simple fix to Mahalanobis distance for improving near-OOD detection"). Fitted as
    `mahalanobis`, and with the same option.
    """

    def score(h, state):
        white = product(h - state["mean"][None], state["whiten_all"])
        whole = jnp.sum(white**2, axis=-1)
        return whole - nearest_class(h, state)

    return _by_class(model, normalise, score)


def gmm(model: Model, *, reg: Positive = 1e-6) -> Plan:
    """Log-likelihood under a Gaussian for each class (pytorch-ood's GMM; no single paper).

    With `pi_c` a class's share of the fitting images, `mu_c` its mean and `S_c` its own covariance
    plus `reg` on the diagonal, the score is `log sum_c pi_c N(h; mu_c, S_c)`. OpenOOD's `gmm` fits
    a mixture with a common covariance by EM, without labels, from a random start, and adds 1e-40 to
    the density, which makes all images that are far off the same; here the logarithm is exact, and
    nothing is drawn. The fit keeps `classes * features^2` numbers: 4 bytes each in the state, 8
    while it runs.

    Args:
        reg: added to the variances; a class with fewer images than features depends on it.
    """

    def fit(batches: Batches) -> State:
        classes = [Moments() for _ in range(model.num_classes)]
        for _, h, labels in batches.outputs():
            check_labels(labels, len(classes))
            for label in np.unique(labels):
                classes[label].add(h[labels == label])
        counts = np.array([moments.count for moments in classes])
        check_classes(counts)
        values, vectors = np.linalg.eigh([moments.covariance() for moments in classes])
        values = np.maximum(values, 0) + reg
        log_density = np.log(counts / counts.sum()) - 0.5 * np.log(2 * np.pi * values).sum(axis=-1)
        return float32(
            means=np.stack([moments.mean() for moments in classes]),
            whiten=vectors / np.sqrt(values)[:, None],
            log_density=log_density,
        )

    def score(h, state):
        def log_likelihood(gaussian):
            mean, whiten, log_density = gaussian
            return log_density - 0.5 * jnp.sum(product(h - mean[None], whiten) ** 2, axis=-1)

        gaussians = state["means"], state["whiten"], state["log_density"]
        return jax.nn.logsumexp(jax.lax.map(log_likelihood, gaussians), axis=0)

    return of_features(score, fit)


def vim(model: Model, *, dim: Count | None = None) -> Plan:
    """Energy minus a virtual logit (Wang et al., CVPR 2022, section 4).

    ViM (code: haoqiwang/vim): the energy minus the scaled norm of the features outside their
    principal subspace. Features are taken relative to `o = -pinv(W^T) b`, the subspace is spanned
    by the first `dim` eigenvectors of their second moment, and the scale is the mean largest logit
    over the mean residual norm of the fitting images. These are run through the network once; their
    logits and features are kept for the while, 4 bytes a number.

    Args:
        dim: dimension of the principal subspace; None for the published rule, 1000 for at least
            2048 features, 512 for at least 768, half of them otherwise.
    """
    outside = residual(model, dim=dim)
    dim = outside.settings["dim"]

    def fit(batches: Batches) -> State:
        batches = batches.keeping()
        origin, rest = _subspace(model, dim, batches)
        logit, residual, norm, count = 0.0, 0.0, 0.0, 0
        for logits, h, _ in batches.outputs():
            count += len(logits)
            logit += logits.max(axis=-1).sum(dtype=np.float64)
            residual += np.linalg.norm((h - origin) @ rest, axis=-1).sum()
            norm += np.linalg.norm(h - origin, axis=-1).sum()
        if residual <= 1e-6 * norm:
            raise ValueError(
                f"dim (={dim}): the fitting images span no further dimension; give more of them"
            )
        if logit <= 0:
            raise ValueError(
                f"the mean largest logit of the fitting images is {logit / count:.3g}, and ViM's"
                " scale, which is in proportion to it, would turn its scores round: add a constant"
                " to the head's bias, which changes no prediction, or use 'residual'"
            )
        return float32(rest=rest, origin=origin @ rest, alpha=logit / residual)

    def compute(inputs: Inputs, state: State):
        energy = jax.nn.logsumexp(inputs.forward.logits, axis=-1)
        return {"score": energy + state["alpha"] * outside.compute(inputs, state)["score"]}

    return Plan(compute, {"dim": dim}, fit=fit)


def residual(model: Model, *, dim: Count | None = None) -> Plan:
    """Minus the features' norm outside their subspace (Wang et al., CVPR 2022, section 4.1).

    The part of ViM that knows nothing of the classes; options and errors as for `vim`.
    """
    features = model.num_features
    if dim is None:
        dim = 1000 if features >= 2048 else 512 if features >= 768 else features // 2
    if not 1 <= dim < features:
        raise ValueError(f"dim (={dim}) must be from 1 to {features - 1}, one less than features")

    def fit(batches: Batches) -> State:
        origin, rest = _subspace(model, dim, batches)
        return float32(rest=rest, origin=origin @ rest)

    def score(h, state):
        return -jnp.linalg.norm(product(h, state["rest"]) - state["origin"][None], axis=-1)

    return of_features(score, fit, dim=dim)


def pnml(model: Model) -> Plan:
    """Minus the regret of the best prediction in hindsight (Bibas et al., NeurIPS 2021, theorem 2).

    pNML, the predictive normalised maximum likelihood (code: kobybibas/pnml_ood_detection): with
    `u` the features divided by their norm, `p` the softmax that the head gives for `u`, and `U` the
    fitting images' `u`, `x = u' (U' U)^+ u` says how little these span its direction, and the
    regret is `log(sum_c p_c / (p_c + (1 - p_c) p_c^k)) / log(classes)` with `k = x / (1 + x)`. The
    sum less 1 is computed, without cancellation. As published, what lies outside the span of `U`
    counts nothing.
    """

    def fit(batches: Batches) -> State:
        products = sum(u.T @ u for u in (unit(h.astype(float)) for _, h, _ in batches.outputs()))
        return float32(whiten=whitening(products))

    def compute(inputs: Inputs, state: State):
        u = unit(inputs.forward.features)
        x = jnp.sum(product(u, state["whiten"]) ** 2, axis=-1, keepdims=True)
        k = x / (1 + x)
        log_p = log_probabilities(head_logits(model, inputs.variables, u))
        rest = -jnp.expm1(log_p)  # 1 - p
        term = jax.nn.sigmoid((1 - k) * log_p - jnp.log(rest))  # p / (p + (1 - p) p^k)
        beyond_one = jnp.sum(term * rest * -jnp.expm1(k * log_p), axis=-1)
        return {"score": -jnp.log1p(beyond_one) / np.log(model.num_classes)}

    return Plan(compute, fit=fit)


def whitening(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """`A` with `A A^T` the pseudo-inverse of a covariance matrix."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > RANK_TOLERANCE * values[-1]
    if not values[-1] > 0 or not kept.any():
        raise ValueError("the covariance is singular: no feature varies among the fitting images")
    return vectors * np.where(kept, 1 / np.sqrt(np.where(kept, values, 1)), 0)


def nearest_class(h: Float[Array, "batch features"], state: State) -> Float[Array, "batch"]:
    """Squared Mahalanobis distance to the nearest class mean, class by class."""
    white = product(h - state["mean"][None], state["whiten"])
    distances = jax.lax.map(
        lambda mean: jnp.sum((white - mean[None]) ** 2, axis=-1), state["white_class_means"]
    )
    return jnp.min(distances, axis=0)


def _by_class(model: Model, normalise: bool, score: Callable[[Array, State], Array]) -> Plan:
    """The score of features and of the state of their `ClassMoments`, fitted in one pass."""

    def fit(batches: Batches) -> State:
        moments = ClassMoments(model.num_classes)
        for _, h, labels in batches.outputs():
            moments.add(unit(h) if normalise else h, labels)
        return moments.state()

    return of_features(lambda h, state: score(unit(h) if normalise else h, state), fit)


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
        check_classes(counts)
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
        return float32(
            mean=moments.origin + mean,
            whiten=whiten,
            white_class_means=(means - mean) @ whiten,
            whiten_all=whitening(whole),
        )


def _subspace(model: Model, dim: int, batches: Batches) -> tuple[np.ndarray, np.ndarray]:
    """The origin, and an orthonormal basis of what the principal subspace leaves out."""
    weights = np.asarray(model.head_weights(model.variables), np.float64)
    bias = np.asarray(model.head_bias(model.variables), np.float64)
    origin = -np.linalg.pinv(weights.T) @ bias
    moments = Moments(origin)
    for _, h, _ in batches.outputs():
        moments.add(h)
    _, vectors = np.linalg.eigh(moments.products)  # by ascending eigenvalue
    return origin, vectors[:, : len(origin) - dim]
