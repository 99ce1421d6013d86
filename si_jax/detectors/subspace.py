"""Detectors that measure how far the features leave the subspace of training images."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.fitting import Batches, Moments, unit
from si_jax.detectors.gaussians import whitening
from si_jax.detectors.head import head_logits, num_features
from si_jax.detectors.options import Count
from si_jax.detectors.probabilities import log_probabilities
from si_jax.model import Model


def vim(model: Model, *, dim: Count | None = None) -> Plan:
    """ViM: energy minus the scaled norm of the features outside their principal subspace.

    Wang et al., CVPR 2022, section 4 (code: haoqiwang/vim): features are taken relative to
    `o = -pinv(W^T) b`, the subspace is spanned by the first `dim` eigenvectors of their second
    moment, and the scale is the mean largest logit over the mean residual norm of the fitting
    images. These are run through the network once; their logits and features are kept for the
    while, 4 bytes a number.

    Args:
        model: the network.
        dim: dimension of the principal subspace; None for the published rule, 1000 for at least
            2048 features, 512 for at least 768, half of them otherwise.

    Raises:
        ValueError: if `dim` is out of range, the head is not linear, or the fitting images do not
            leave the subspace or have negative largest logits.
    """
    dim = _dimension(model, dim)

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
                f"dim (={dim}): the fitting images' features span no further dimension; give more"
                " images or a smaller dim"
            )
        if logit <= 0:
            raise ValueError(
                f"the mean largest logit of the fitting images is {logit / count:.3g}, and ViM's"
                " scale, which is in proportion to it, would turn its scores round: add a constant"
                " to the head's bias, which changes no prediction, or use 'residual'"
            )
        return {**_state(origin, rest), "alpha": np.float32(logit / residual)}

    def compute(inputs: Inputs, state: State):
        residual = _residual(inputs.forward.features, state)
        energy = jax.nn.logsumexp(inputs.forward.logits, axis=-1)
        return {"score": energy - state["alpha"] * residual}

    return Plan(compute, {"dim": dim}, fit=fit)


def residual(model: Model, *, dim: Count | None = None) -> Plan:
    """Residual: minus the norm of the features outside their principal subspace.

    The part of ViM that knows nothing of the classes (Wang et al., CVPR 2022, section 4.1);
    options and errors as for `vim`.
    """
    dim = _dimension(model, dim)

    def fit(batches: Batches) -> State:
        return _state(*_subspace(model, dim, batches))

    def compute(inputs: Inputs, state: State):
        return {"score": -_residual(inputs.forward.features, state)}

    return Plan(compute, {"dim": dim}, fit=fit)


def pnml(model: Model) -> Plan:
    """pNML: minus the regret of the predictive normalised maximum likelihood.

    Bibas et al., NeurIPS 2021, theorem 2 (code: kobybibas/pnml_ood_detection): with `u` the
    features divided by their norm, `p` the softmax that the head gives for `u`, and `U` the fitting
    images' `u`, `x = u' (U' U)^+ u` says how little these span its direction, and the regret is
    `log(sum_c p_c / (p_c + (1 - p_c) p_c^k)) / log(classes)` with `k = x / (1 + x)`. The sum less 1
    is computed, without cancellation. As published, what lies outside the span of `U` counts
    nothing.

    Raises:
        ValueError: if the head is not linear.
    """
    num_features(model)

    def fit(batches: Batches) -> State:
        products = sum(u.T @ u for u in (unit(h.astype(float)) for _, h, _ in batches.outputs()))
        return {"whiten": whitening(products).astype(np.float32)}

    def compute(inputs: Inputs, state: State):
        u = unit(inputs.forward.features)
        with jax.default_matmul_precision("highest"):
            x = jnp.sum((u @ state["whiten"]) ** 2, axis=-1, keepdims=True)
        k = x / (1 + x)
        log_p = log_probabilities(head_logits(model, inputs.variables, u))
        rest = -jnp.expm1(log_p)  # 1 - p
        term = jax.nn.sigmoid((1 - k) * log_p - jnp.log(rest))  # p / (p + (1 - p) p^k)
        beyond_one = jnp.sum(term * rest * -jnp.expm1(k * log_p), axis=-1)
        return {"score": -jnp.log1p(beyond_one) / np.log(model.num_classes)}

    return Plan(compute, fit=fit)


def _dimension(model: Model, dim: int | None) -> int:
    features = num_features(model)
    if dim is None:
        dim = 1000 if features >= 2048 else 512 if features >= 768 else features // 2
    if not 1 <= dim < features:
        raise ValueError(f"dim (={dim}) must be from 1 to {features - 1}, one less than features")
    return dim


def _subspace(
    model: Model, dim: int, batches: Batches
) -> tuple[Float[np.ndarray, "features"], Float[np.ndarray, "features rest"]]:
    """The origin, and an orthonormal basis of what the principal subspace leaves out."""
    weights = np.asarray(model.head_weights(model.variables), np.float64)
    bias = np.asarray(model.head_bias(model.variables), np.float64)
    origin = -np.linalg.pinv(weights.T) @ bias
    moments = Moments(origin)
    for _, h, _ in batches.outputs():
        moments.add(h)
    _, vectors = np.linalg.eigh(moments.products)  # by ascending eigenvalue
    return origin, vectors[:, : len(origin) - dim]


def _state(origin: np.ndarray, rest: np.ndarray) -> dict[str, np.ndarray]:
    return {"rest": rest.astype(np.float32), "origin": (origin @ rest).astype(np.float32)}


def _residual(h: Float[Array, "batch features"], state: State) -> Float[Array, "batch"]:
    with jax.default_matmul_precision("highest"):
        return jnp.linalg.norm(h @ state["rest"] - state["origin"][None], axis=-1)
