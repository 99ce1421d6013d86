"""Detectors that read the logits alone."""

import jax
import jax.numpy as jnp

from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.options import Count, Positive
from si_jax.detectors.probabilities import log_probabilities
from si_jax.model import Model


def msp(model: Model) -> Plan:
    """Largest softmax probability (Hendrycks & Gimpel, ICLR 2017, section 2)."""

    def compute(inputs: Inputs, state: State):
        return {"score": jnp.max(jax.nn.softmax(inputs.forward.logits), axis=-1)}

    return Plan(compute)


def max_logit(model: Model) -> Plan:
    """Largest logit (Hendrycks et al., ICML 2022, section 3)."""

    def compute(inputs: Inputs, state: State):
        return {"score": jnp.max(inputs.forward.logits, axis=-1)}

    return Plan(compute)


def entropy(model: Model) -> Plan:
    """Minus the entropy of the softmax, `sum_j p_j log p_j` (Hendrycks & Gimpel, ICLR 2017)."""

    def compute(inputs: Inputs, state: State):
        log_p = jax.nn.log_softmax(inputs.forward.logits)
        return {"score": jnp.sum(jnp.exp(log_p) * log_p, axis=-1)}

    return Plan(compute)


def energy(model: Model, *, temperature: Positive = 1.0) -> Plan:
    """T logsumexp(logits / T), the negative free energy (Liu et al., NeurIPS 2020, eq. 4)."""

    def compute(inputs: Inputs, state: State):
        logits = inputs.forward.logits / temperature
        return {"score": temperature * jax.nn.logsumexp(logits, axis=-1)}

    return Plan(compute, {"temperature": temperature})


def gen(model: Model, *, gamma: Positive = 0.1, top: Count = 100) -> Plan:
    """Minus the generalised entropy of the largest probabilities (Liu et al., CVPR 2023).

    `-sum_j p_j^gamma (1 - p_j)^gamma` over the `top` largest softmax probabilities `p_j` (all of
    them where there are fewer classes).

    Args:
        model: the network.
        gamma: exponent; the paper's 0.1.
        top: number of probabilities, the paper's `M` = 100.
    """
    count = min(top, model.num_classes)

    def compute(inputs: Inputs, state: State):
        log_p, _ = jax.lax.top_k(log_probabilities(inputs.forward.logits), count)
        log_rest = jnp.log(-jnp.expm1(log_p))  # of 1 - p
        return {"score": -jnp.sum(jnp.exp(gamma * (log_p + log_rest)), axis=-1)}

    return Plan(compute, {"gamma": gamma, "top": top})
