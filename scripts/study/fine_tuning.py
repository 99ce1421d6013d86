"""Fine-tune a network of any framework, as it computes at inference: Adam on the cross-entropy.

Small and plain: no augmentation, no checkpoints, statistics of a BatchNorm stay as they are. The
recipe with all of that, for this library's own networks, is `si_jax.training.training`.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int, UInt8
from tqdm import trange

from si_jax import splitting
from si_jax.model import Model


def fine_tune(
    model: Model,
    images: UInt8[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, "n"],
    *,
    steps: int = 300,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> Model:
    """The model with its trainable weights fitted to labelled images.

    Args:
        model: the network and the weights to start from; trainable are those under `"params"` in
            its variables, or all of them where there is no such key.
        images: training images in the model's input size.
        labels: class indices.
        steps: number of steps.
        batch_size: images per step, drawn with replacement.
        learning_rate: Adam's at the start; it falls to zero as a half cosine.
        seed: seed of the batches.

    Raises:
        ValueError: if images and labels do not fit, or the loss becomes NaN or infinite.
    """
    images = model.check(images)
    if len(images) != len(labels):
        raise ValueError(f"labels (={len(labels)}) must be one for each of {len(images)} images")
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    params, rest = _parts(model.variables)
    state = optimiser.init(params)
    rng = np.random.default_rng(seed)
    loss = np.float32(0)
    step = jax.jit(partial(_step, model, optimiser), donate_argnums=(0, 1))
    with trange(steps, desc="fine-tuning", unit="step", delay=2) as bar:
        for _ in bar:
            rows = rng.integers(0, len(images), batch_size)
            params, state, loss = step(params, state, rest, images[rows], labels[rows])
    if not np.isfinite(loss):
        raise ValueError(f"the loss is {loss} after {steps} steps: lower learning_rate")
    return dataclasses.replace(model, variables=_whole(model, jax.device_get(params), rest))


def _parts(variables: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Trainable weights, as copies, and the others."""
    own = "params" in variables
    params = variables["params"] if own else variables
    rest = {k: v for k, v in variables.items() if k != "params"} if own else {}
    return jax.tree.map(jnp.array, params), rest


def _whole(model: Model, params: Any, rest: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**rest, "params": params} if "params" in model.variables else params


def _step(model, optimiser, params, state, rest, images, labels):
    def objective(params):
        logits = splitting.forward(
            model, _whole(model, params, rest), model.normalise(images)
        ).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradient = jax.value_and_grad(objective)(params)
    updates, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss
