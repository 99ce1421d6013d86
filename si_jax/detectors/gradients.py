"""Detectors that need a backward pass to the image."""

import jax
import jax.numpy as jnp

from si_jax import splitting
from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.options import Positive, Step
from si_jax.model import Model


def odin(model: Model, *, temperature: Positive = 1000.0, step: Step = 0.0014) -> Plan:
    """Largest softmax probability at a high temperature, of an image moved towards its class.

    ODIN (Liang et al., ICLR 2018, section 3; code: facebookresearch/odin): with `y` the predicted
    class and `x` the normalised image, `x' = x - step / std * sign(d CE(f(x) / T, y) / dx)`, and
    the score is `max softmax(f(x') / T)`. As published, the sign of 0 is +1, the step is in units
    of [0, 1] images (hence the division by each channel's deviation), and nothing is clipped.

    Args:
        model: the network.
        temperature: T.
        step: length of the step; 0 for none.
    """

    def compute(inputs: Inputs, state: State):
        def logits_of(images):
            return splitting.forward(model, inputs.variables, images).logits / temperature

        def loss(images):
            logits = logits_of(images)
            labels = jnp.argmax(logits, axis=-1)
            log_p = jax.nn.log_softmax(logits)
            return -jnp.sum(jnp.take_along_axis(log_p, labels[:, None], axis=-1))

        images = inputs.images
        if step:
            sign = jnp.where(jax.grad(loss)(images) >= 0, 1, -1)
            images = images - step / jnp.asarray(model.std, images.dtype) * sign
        return {"score": jnp.max(jax.nn.softmax(logits_of(images)), axis=-1)}

    return Plan(compute, {"temperature": temperature, "step": step}, forward_only=False)
