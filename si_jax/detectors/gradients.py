"""Detectors that use gradients, by the image or by the weights."""

from typing import Literal

import jax
import jax.numpy as jnp

from si_jax import splitting
from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.options import Positive, Step
from si_jax.integration import cross_entropy
from si_jax.model import Model

Weights = Literal["head", "all"]


def odin(model: Model, *, temperature: Positive = 1000.0, step: Step = 0.0014) -> Plan:
    """Softmax probability of an image moved towards its class (Liang et al., ICLR 2018).

    ODIN, section 3 (code: facebookresearch/odin): with `y` the predicted class and `x` the
    normalised image, `x' = x - step / std * sign(d CE(f(x) / T, y) / dx)`, and the score is `max
    softmax(f(x') / T)`. As published, the sign of 0 is +1, the step is in units of [0, 1] images
    (hence the division by each channel's deviation), and nothing is clipped.

    Args:
        temperature: T.
        step: length of the step; 0 for none.
    """
    return _moved(model, temperature, step, lambda gradient: True)


def i_odin(model: Model, *, temperature: Positive = 1000.0, step: Step = 0.0014) -> Plan:
    """ODIN that moves the one value with the largest gradient (Regmi, 2025, arXiv 2411.10794).

    i-ODIN (code: OpenOOD's `iodin`); options as for `odin`.
    """

    def largest(gradient):
        flat = jnp.abs(gradient).reshape(gradient.shape[0], -1)  # len() of a symbolic batch fails
        chosen = jnp.arange(flat.shape[-1])[None] == jnp.argmax(flat, axis=-1)[:, None]
        return chosen.reshape(gradient.shape)

    return _moved(model, temperature, step, largest)


def gradnorm(model: Model, *, temperature: Positive = 1.0, parameters: Weights = "head") -> Plan:
    """L1 norm of the gradient of KL(uniform || softmax) (Huang et al., NeurIPS 2021, section 3).

    GradNorm, by the weights. For the head's weights in closed form, as the gradient is the outer
    product of the features `h` and `(p - 1/C) / T`: `sum_i |h_i| * sum_j |p_j - 1/C| / T`. The
    published code (deeplearning-wisc/gradnorm_ood) leaves out the factor `1/C`, which changes no
    order. With `parameters="all"` the norm is over all of the network's weights (table 4 of the
    paper), one backward pass for each image.

    Args:
        temperature: T.
        parameters: `head` or `all`.
    """

    def head_norm(out):
        p = jax.nn.softmax(out.logits / temperature)
        distance = jnp.sum(jnp.abs(p - 1 / p.shape[-1]), axis=-1) / temperature
        return jnp.sum(jnp.abs(out.features), axis=-1) * distance

    def divergence(logits):
        return -jnp.mean(jax.nn.log_softmax(logits / temperature))

    return _norm(head_norm, divergence, jnp.abs, parameters == "all")


def grad_uncertainty(model: Model, *, parameters: Weights = "head") -> Plan:
    """Squared gradient norm of the loss of all classes at once (Lee & AlRegib, ICIP 2020).

    By the weights (code: pytorch-ood's `GradUncertainty`): the loss is the cross-entropy with all
    classes, `-sum_j log p_j`, `p` the softmax, whose gradient by the logits is `C p - 1`: it
    vanishes where the network is undecided. For the weights and the bias of a linear head the
    squared norm is `(||h||^2 + 1) ||C p - 1||^2`; that of all weights is one backward pass for each
    image. The paper trains a classifier of all layers' norms on out-of-distribution images, here
    they are added; pytorch-ood's default is `all`.

    Args:
        parameters: `head` or `all`.
    """

    def head_norm(out):
        excess = out.logits.shape[-1] * jax.nn.softmax(out.logits) - 1
        squares = jnp.sum(excess**2, axis=-1)
        return (jnp.sum(out.features**2, axis=-1) + 1) * squares

    def loss(logits):
        return -jnp.sum(jax.nn.log_softmax(logits))

    return _norm(head_norm, loss, jnp.square, parameters == "all")


def _norm(head_norm, loss, size, whole: bool) -> Plan:
    """The norm for the head, or for the `whole` network: the sum of the `size` of its gradients."""

    def by_all_weights(inputs: Inputs):
        rest = dict(inputs.variables)
        trained = {"params": rest.pop("params")} if "params" in rest else rest

        def of_image(trained, image):
            variables = {**rest, **trained}
            return loss(splitting.forward(inputs.model, variables, image[None]).logits)

        def norm(image):
            gradient = jax.grad(of_image)(trained, image)
            return sum(jnp.sum(size(g)) for g in jax.tree.leaves(gradient))

        return jax.lax.map(norm, inputs.images)  # one by one: a gradient is a network

    def compute(inputs: Inputs, state: State):
        return {"score": by_all_weights(inputs) if whole else head_norm(inputs.forward)}

    return Plan(compute, shared_forward=not whole)


def _moved(model: Model, temperature: float, step: float, chosen) -> Plan:
    """ODIN, where `chosen(gradient)` says which values of the image are moved."""

    def compute(inputs: Inputs, state: State):
        def forward(images):
            out = splitting.forward(model, inputs.variables, images)
            return splitting.Forward(out.logits / temperature, out.features, {})

        def loss(images):
            out = forward(images)
            return jnp.sum(cross_entropy(out, jnp.argmax(out.logits, axis=-1)))

        images = inputs.images
        if step:
            gradient = jax.grad(loss)(images)
            sign = jnp.where(chosen(gradient), jnp.where(gradient >= 0, 1, -1), 0)
            length = jnp.broadcast_to(step / jnp.asarray(model.std, images.dtype), images.shape)
            images = images - length * sign
        return {"score": jnp.max(jax.nn.softmax(forward(images).logits), axis=-1)}

    return Plan(compute, shared_forward=False)
