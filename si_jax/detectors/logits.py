"""Detectors that read the logits alone."""

import jax
import jax.numpy as jnp

from si_jax.detectors.base import Inputs, Plan, State
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


def energy(model: Model, *, temperature: float = 1.0) -> Plan:
    """T logsumexp(logits / T), the negative free energy (Liu et al., NeurIPS 2020, eq. 4).

    Raises:
        ValueError: if the temperature is not positive.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature (={temperature}) must be positive and finite")

    def compute(inputs: Inputs, state: State):
        logits = inputs.forward.logits / temperature
        return {"score": temperature * jax.nn.logsumexp(logits, axis=-1)}

    return Plan(compute, {"temperature": temperature})


def gen(model: Model, *, gamma: float = 0.1, top: int = 100) -> Plan:
    """Minus the generalised entropy of the largest probabilities (Liu et al., CVPR 2023).

    `-sum_j p_j^gamma (1 - p_j)^gamma` over the `top` largest softmax probabilities `p_j` (all of
    them where there are fewer classes).

    Args:
        model: the network.
        gamma: exponent; the paper's 0.1.
        top: number of probabilities, the paper's `M` = 100.

    Raises:
        ValueError: if `gamma` is not in (0, inf) or `top` is no positive whole number.
    """
    if not 0 < gamma < float("inf"):
        raise ValueError(f"gamma (={gamma}) must be positive and finite")
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ValueError(f"top (={top!r}) must be a whole number of at least 1")
    count = min(top, model.num_classes)

    def compute(inputs: Inputs, state: State):
        p, _ = jax.lax.top_k(jax.nn.softmax(inputs.forward.logits), count)
        return {"score": -jnp.sum((p * (1 - p)) ** gamma, axis=-1)}

    return Plan(compute, {"gamma": gamma, "top": top})
