"""Detectors that compare an image's features or logits with those of training images.

`react` and `knn` keep the features of at most `max_images` fitting images, 4 bytes a number (50000
images of 512 features are 100 MB), drawn at random with a fixed seed where there are more. The
others keep running sums, however many images there are.
"""

from collections.abc import Iterable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from si_jax.detectors.base import Batches, Inputs, Plan, State, forward_batches
from si_jax.detectors.head import head_bias, head_logits, num_features
from si_jax.detectors.options import Count, Percentile, Range
from si_jax.model import Model

BANK_CHUNK = 2048  # training features compared with a batch at a time
LEAST = 1e-300  # what a mean probability of 0 is taken for


def react(
    model: Model,
    *,
    percentile: Annotated[float, Range("[0, 100]")] = 90.0,
    threshold: float | None = None,
    max_images: Count = 50_000,
) -> Plan:
    """ReAct: energy of the features cut off at a threshold (Sun et al., NeurIPS 2021, section 3).

    Args:
        model: the network.
        percentile: the threshold is this percentile of all features of the fitting images.
        threshold: the threshold itself; then nothing is fitted.
        max_images: fitting images whose features are kept to find the percentile.

    Raises:
        ValueError: if the head is not linear.
    """
    num_features(model)

    def fit(batches: Batches) -> State:
        kept = reservoir((h for _, h, _ in forward_batches(model, batches)), max_images)
        return {"threshold": np.float32(np.percentile(kept, percentile))}

    def compute(inputs: Inputs, state: State):
        limit = state["threshold"] if threshold is None else threshold
        h = jnp.minimum(inputs.forward.features, limit)
        logits = head_logits(model, inputs.variables, h)
        return {"score": jax.nn.logsumexp(logits, axis=-1)}

    settings = {"percentile": percentile, "threshold": threshold, "max_images": max_images}
    return Plan(compute, settings, fit=fit if threshold is None else None)


def dice(model: Model, *, percentile: Percentile = 90.0) -> Plan:
    """DICE: energy by the head's weights that contribute most (Sun & Li, ECCV 2022, section 3).

    A weight's contribution is itself times the mean of its feature over the fitting images; those
    above the percentile of all contributions are kept, the others set to 0 (as in the published
    code, deeplearning-wisc/dice).

    Raises:
        ValueError: if the head is not linear.
    """
    num_features(model)

    def fit(batches: Batches) -> State:
        total, count = 0.0, 0
        for _, h, _ in forward_batches(model, batches):
            total, count = total + h.sum(axis=0, dtype=np.float64), count + len(h)
        weights = np.asarray(model.head_weights(model.variables), np.float64)
        contribution = (total / count)[:, None] * weights
        return {"kept": contribution > np.percentile(contribution, percentile)}

    def compute(inputs: Inputs, state: State):
        weights = jnp.where(state["kept"], model.head_weights(inputs.variables), 0)
        logits = head_logits(model, inputs.variables, inputs.forward.features, weights)
        return {"score": jax.nn.logsumexp(logits, axis=-1)}

    return Plan(compute, {"percentile": percentile}, fit=fit)


def knn(model: Model, *, k: Count = 50, max_images: Count = 50_000) -> Plan:
    """Minus the distance to the k-th nearest training feature (Sun et al., ICML 2022, section 3).

    Features are divided by their Euclidean norm first. The published code
    (deeplearning-wisc/knn-ood) gives the squared distance, which changes no order. The fitting
    images' features are compared in chunks.

    Args:
        model: the network.
        k: which neighbour; the published 50.
        max_images: fitting images whose features are kept.

    Raises:
        ValueError: by the fit, if `k` is larger than the number of fitting images.
    """

    def fit(batches: Batches) -> State:
        bank = reservoir((_unit(h) for _, h, _ in forward_batches(model, batches)), max_images)
        if len(bank) < k:
            raise ValueError(f"k (={k}) must be at most the number of fitting images, {len(bank)}")
        return {"bank": bank}

    def compute(inputs: Inputs, state: State):
        return {"score": -kth_distance(_unit(inputs.forward.features), state["bank"], k)}

    return Plan(compute, {"k": k, "max_images": max_images}, fit=fit)


def vim(model: Model, *, dim: Count | None = None) -> Plan:
    """ViM: energy minus the scaled norm of the features outside their principal subspace.

    Wang et al., CVPR 2022, section 4 (code: haoqiwang/vim): features are taken relative to
    `o = -pinv(W^T) b`, the subspace is spanned by the first `dim` eigenvectors of their second
    moment, and the scale is the mean largest logit over the mean residual norm of the fitting
    images. These are run through the network once; the features of all of them are held in memory
    for the while, 4 bytes a number.

    Args:
        model: the network.
        dim: dimension of the principal subspace; None for the published rule, 1000 for at least
            2048 features, 512 for at least 768, half of them otherwise.

    Raises:
        ValueError: if `dim` is out of range, the head is not linear, or the fitting images do not
            leave the subspace.
    """
    features = num_features(model)
    if dim is None:
        dim = 1000 if features >= 2048 else 512 if features >= 768 else features // 2
    if not 1 <= dim < features:
        raise ValueError(f"dim (={dim}) must be from 1 to {features - 1}, one less than features")

    def fit(batches: Batches) -> State:
        weights = np.asarray(model.head_weights(model.variables), np.float64)
        bias = np.asarray(head_bias(model, model.variables), np.float64)
        origin = -np.linalg.pinv(weights.T) @ bias
        moment, logit = np.zeros((features, features)), 0.0
        parts = []
        for logits, h, _ in forward_batches(model, batches):
            centred = h - origin
            moment += centred.T @ centred
            logit += logits.max(axis=-1).sum(dtype=np.float64)
            parts.append(h)
        _, vectors = np.linalg.eigh(moment)  # by ascending eigenvalue
        rest = vectors[:, : features - dim]
        residual, norm = 0.0, 0.0
        for h in parts:
            residual += np.linalg.norm((h - origin) @ rest, axis=-1).sum()
            norm += np.linalg.norm(h - origin, axis=-1).sum()
        if residual <= 1e-6 * norm:
            raise ValueError(
                f"dim (={dim}): the fitting images' features span no further dimension; give more"
                " images or a smaller dim"
            )
        return {
            "rest": rest.astype(np.float32),
            "origin": (origin @ rest).astype(np.float32),
            "alpha": np.float32(logit / residual),
        }

    def compute(inputs: Inputs, state: State):
        out = inputs.forward
        with jax.default_matmul_precision("highest"):
            residual = jnp.linalg.norm(out.features @ state["rest"] - state["origin"], axis=-1)
        return {"score": jax.nn.logsumexp(out.logits, axis=-1) - state["alpha"] * residual}

    return Plan(compute, {"dim": dim}, fit=fit)


def kl_matching(model: Model) -> Plan:
    """Minus the smallest KL(softmax || d_c) (Hendrycks et al., ICML 2022).

    `d_c` is the mean softmax of the fitting images that are classified as `c`; classes to which
    none of them is assigned are left out. No labels are needed. The paper fits on held-out images.
    """

    def fit(batches: Batches) -> State:
        classes = model.num_classes
        totals, counts = np.zeros((classes, classes)), np.zeros(classes, int)
        for logits, _, _ in forward_batches(model, batches):
            e = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
            predicted = logits.argmax(axis=-1)
            np.add.at(totals, predicted, e / e.sum(axis=-1, keepdims=True))
            counts += np.bincount(predicted, minlength=classes)
        present = counts > 0
        means = totals[present] / counts[present, None]
        return {"log_means": np.log(np.maximum(means, LEAST)).astype(np.float32)}

    def compute(inputs: Inputs, state: State):
        log_p = jax.nn.log_softmax(inputs.forward.logits)

        def divergence(log_mean):
            return jnp.sum(jnp.exp(log_p) * (log_p - log_mean), axis=-1)

        return {"score": -jnp.min(jax.lax.map(divergence, state["log_means"]), axis=0)}

    return Plan(compute, fit=fit)


def reservoir(
    parts: Iterable[Float[np.ndarray, "rows columns"]], capacity: int, seed: int = 0
) -> Float[np.ndarray, "kept columns"]:
    """All rows of the parts, or `capacity` of them drawn evenly; not by how they are parted."""
    rng = np.random.default_rng(seed)
    kept, seen = [], 0
    for part in parts:
        for row in part:
            if seen < capacity:
                kept.append(np.array(row))
            elif (slot := int(rng.random() * (seen + 1))) < capacity:
                kept[slot] = np.array(row)
            seen += 1
    return np.stack(kept)


def kth_distance(
    x: Float[Array, "batch features"], bank: Float[Array, "images features"], k: int
) -> Float[Array, "batch"]:
    """Euclidean distance of unit vectors to the k-th nearest of others.

    The neighbours are found by their cosines, chunk by chunk, and their distances computed from
    the differences, which are exact also where they are tiny.
    """
    chunk = min(BANK_CHUNK, len(bank))
    padded = jnp.pad(bank, ((0, -len(bank) % chunk), (0, 0)))

    def step(best, part):
        index, vectors = part
        with jax.default_matmul_precision("highest"):
            cosine = jnp.where(index < len(bank), x @ vectors.T, -jnp.inf)
        indices = jnp.broadcast_to(index, cosine.shape)
        cosine, indices = (
            jnp.concatenate(pair, axis=-1) for pair in zip(best, (cosine, indices), strict=True)
        )
        cosine, chosen = jax.lax.top_k(cosine, k)
        return (cosine, jnp.take_along_axis(indices, chosen, axis=-1)), None

    parts = (
        jnp.arange(len(padded)).reshape(-1, chunk),
        padded.reshape(-1, chunk, bank.shape[-1]),
    )
    start = (jnp.full((len(x), k), -jnp.inf, x.dtype), jnp.zeros((len(x), k), parts[0].dtype))
    (_, nearest), _ = jax.lax.scan(step, start, parts)

    def squared(indices):
        return jnp.sum((x - bank[indices]) ** 2, axis=-1)

    return jnp.sqrt(jnp.max(jax.lax.map(squared, nearest.T), axis=0))


def _unit(h):
    """Features divided by their norm, on either side of the jit boundary."""
    xp = np if isinstance(h, np.ndarray) else jnp
    return h / (xp.sqrt((h * h).sum(axis=-1, keepdims=True)) + 1e-10)
