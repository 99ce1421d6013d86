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
