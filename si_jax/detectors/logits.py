"""Detectors that read the logits alone, or learn how those of in-distribution images behave."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from si_jax.detectors.base import Plan, State, of_logits
from si_jax.detectors.fitting import Batches, check_labels, reservoir
from si_jax.detectors.options import Count, Positive
from si_jax.model import Model

LEAST = 1e-300  # what a mean probability of 0 is taken for
TEMPERATURES = (0.5, 20.0)
"""Between which the temperature is looked for."""


def msp(model: Model) -> Plan:
    """Largest softmax probability (Hendrycks & Gimpel, ICLR 2017, section 2)."""
    return of_logits(lambda logits, state: jnp.max(jax.nn.softmax(logits), axis=-1))


def max_logit(model: Model) -> Plan:
    """Largest logit (Hendrycks et al., ICML 2022, section 3)."""
    return of_logits(lambda logits, state: jnp.max(logits, axis=-1))


def entropy(model: Model) -> Plan:
    """Minus the entropy of the softmax, `sum_j p_j log p_j` (Hendrycks & Gimpel, ICLR 2017)."""

    def score(logits, state):
        log_p = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    return of_logits(score)


def energy(model: Model, *, temperature: Positive = 1.0) -> Plan:
    """`T logsumexp(logits / T)`, the negative free energy (Liu et al., NeurIPS 2020, eq. 4)."""
    return of_logits(lambda x, state: temperature * jax.nn.logsumexp(x / temperature, axis=-1))


def gen(model: Model, *, gamma: Positive = 0.1, top: Count = 100) -> Plan:
    """Minus the generalised entropy of the largest probabilities (Liu et al., CVPR 2023).

    `-sum_j p_j^gamma (1 - p_j)^gamma` over the `top` largest softmax probabilities `p_j` (all of
    them where there are fewer classes).

    Args:
        gamma: exponent; the paper's 0.1.
        top: number of probabilities, the paper's `M` = 100.
    """
    count = min(top, model.num_classes)

    def score(logits, state):
        log_p, _ = jax.lax.top_k(log_probabilities(logits), count)
        log_rest = jnp.log(-jnp.expm1(log_p))  # of 1 - p
        return -jnp.sum(jnp.exp(gamma * (log_p + log_rest)), axis=-1)

    return of_logits(score)


def temperature_scaling(model: Model, *, max_images: Count = 50_000) -> Plan:
    """Largest softmax probability, calibrated (Guo et al., ICML 2017, section 4.2).

    The temperature T minimises the mean negative log-likelihood of `softmax(logits / T)` over the
    fitting images. These must be held out: on images that the network was trained on it is right
    more often than on others, and T comes out too small; on images that are all classified right,
    it is the least that is looked at, 0.5 (the largest is 20). The score is a probability; how well
    it is calibrated, the metric `calibration_error` measures.

    Args:
        max_images: fitting images whose logits are kept, drawn at random where there are more.
    """

    def fit(batches: Batches) -> State:
        def rows():
            for logits, _, labels in batches.outputs():
                check_labels(labels, model.num_classes)
                yield np.concatenate([logits, labels[:, None]], axis=-1, dtype=np.float64)

        kept = reservoir(rows(), max_images)
        logits, labels = kept[:, :-1], kept[:, -1:].astype(int)
        right = np.take_along_axis(logits, labels, axis=-1)[:, 0]

        def loss(log_t):
            scaled = logits / np.exp(log_t)
            return np.mean(logsumexp(scaled, axis=-1) - right / np.exp(log_t))

        low, high = np.log(TEMPERATURES)
        best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
        return {"temperature": np.float32(np.exp(best.x))}

    return of_logits(lambda x, s: jnp.max(jax.nn.softmax(x / s["temperature"]), axis=-1), fit)


def kl_matching(model: Model) -> Plan:
    """Minus the divergence from the classes' mean softmax (Hendrycks et al., ICML 2022).

    `-min_c KL(softmax || d_c)`, where `d_c` is the mean softmax of the fitting images that are
    classified as `c`; classes to which none of them is assigned are left out. No labels are needed.
    The paper fits on held-out images.
    """

    def fit(batches: Batches) -> State:
        classes = model.num_classes
        totals, counts = np.zeros((classes, classes)), np.zeros(classes, int)
        for logits, _, _ in batches.outputs():
            predicted = logits.argmax(axis=-1)
            np.add.at(totals, predicted, softmax(logits.astype(np.float64), axis=-1))
            counts += np.bincount(predicted, minlength=classes)
        present = counts > 0
        means = totals[present] / counts[present, None]
        return {"log_means": np.log(np.maximum(means, LEAST)).astype(np.float32)}

    def score(logits, state):
        log_p = log_probabilities(logits)

        def divergence(log_mean):
            return jnp.sum(jnp.exp(log_p) * (log_p - log_mean[None]), axis=-1)

        return -jnp.min(jax.lax.map(divergence, state["log_means"]), axis=0)

    return of_logits(score, fit)


def log_probabilities(logits: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
    """Log-softmax that is exact also for a probability that float32 rounds to 1.

    The largest one's logarithm is `-log1p(sum of the others relative to it)`, never 1 less what is
    left.
    """
    top = jnp.argmax(logits, axis=-1)[:, None]
    relative = logits - jnp.take_along_axis(logits, top, axis=-1)
    others = jnp.arange(logits.shape[-1])[None] != top
    rest = jax.nn.logsumexp(jnp.where(others, relative, -jnp.inf), axis=-1, keepdims=True)
    return relative - jax.nn.softplus(rest)
