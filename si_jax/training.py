"""Train a classifier: plain cross-entropy, SGD with Nesterov momentum, crops and flips."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, UInt8
from tqdm import tqdm

from si_jax.model import Model


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; the remainder of an epoch is left out.
        learning_rate: peak of the schedule (linear warm-up, then cosine to zero).
        warmup: share of the steps spent warming up.
        momentum: Nesterov momentum.
        weight_decay: on kernels alone, not on norms and biases.
        crop_padding: pixels of zero padding before the random crop.
        flip: whether half of the images are mirrored.
        seed: seed of the data order and of the augmentation.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop_padding: int = 4
    flip: bool = True
    seed: int = 0


def train(
    model: Model,
    images: UInt8[np.ndarray, "n height width 3"],
    labels: Int[np.ndarray, "n"],
    recipe: Recipe,
) -> Model:
    """The model with trained weights.

    Args:
        model: the network and the weights to start from; its `__call__` takes `train`.
        images: training images in the model's input size.
        labels: class indices.
        recipe: how to train.

    Raises:
        ValueError: if images and labels do not fit the model, there are fewer images than one
            batch, or the loss becomes NaN.
    """
    images, labels = model.check(images), np.asarray(labels)
    if labels.shape != (len(images),) or not 0 <= labels.min() <= labels.max() < model.num_classes:
        raise ValueError(
            f"labels (shape {labels.shape}, values {labels.min()} to {labels.max()}) must be one"
            f" class index below {model.num_classes} for each of the {len(images)} images"
        )
    steps_per_epoch = len(images) // recipe.batch_size
    if not steps_per_epoch:
        raise ValueError(
            f"batch_size (={recipe.batch_size}) exceeds the number of images ({len(images)})"
        )
    optimiser = _optimiser(recipe, recipe.epochs * steps_per_epoch)
    variables = jax.device_put(dict(model.variables))
    state = (variables, optimiser.init(variables["params"]))
    step = jax.jit(partial(_step, model, optimiser, recipe), donate_argnums=0)
    images, labels = jax.device_put(images), jax.device_put(labels)
    key = jax.random.key(recipe.seed)
    with tqdm(total=recipe.epochs, desc="training", unit="epoch") as bar:
        for epoch in range(recipe.epochs):
            order = np.random.default_rng([recipe.seed, epoch]).permutation(len(images))
            total = 0.0
            for i in range(steps_per_epoch):
                batch = order[i * recipe.batch_size : (i + 1) * recipe.batch_size]
                step_key = jax.random.fold_in(key, epoch * steps_per_epoch + i)
                state, loss, correct = step(state, images[batch], labels[batch], step_key)
                total += float(correct)
            if not np.isfinite(float(loss)):
                raise ValueError(
                    f"the loss became {float(loss)} in epoch {epoch + 1}: lower the learning rate"
                )
            accuracy = total / (steps_per_epoch * recipe.batch_size)
            bar.set_postfix(loss=f"{float(loss):.3f}", accuracy=f"{accuracy:.1%}")
            bar.update()
    return dataclasses.replace(model, variables=jax.device_get(state[0]))


def accuracy(
    model: Model,
    images: UInt8[np.ndarray, "n height width 3"],
    labels: Int[np.ndarray, "n"],
) -> float:
    """Share of images whose largest logit is that of their label."""
    return float(np.mean(np.argmax(model.logits(images), axis=-1) == labels))


def _optimiser(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, max(1, round(recipe.warmup * steps)), steps
    )

    def is_kernel(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay, mask=is_kernel),
        optax.sgd(schedule, recipe.momentum, nesterov=True),
    )


def _step(model, optimiser, recipe, state, images, labels, key):
    (variables, optimiser_state) = state
    crop_key, dropout_key = jax.random.split(key)
    images = model.normalise(augment(images, crop_key, recipe.crop_padding, recipe.flip))

    def loss_of(params):
        logits, updates = model.module.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), (logits, updates)

    gradient = jax.value_and_grad(loss_of, has_aux=True)
    (loss, (logits, updates)), grads = gradient(variables["params"])
    changes, optimiser_state = optimiser.update(grads, optimiser_state, variables["params"])
    variables = {
        **variables,
        **updates,
        "params": optax.apply_updates(variables["params"], changes),
    }
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
    return (variables, optimiser_state), loss, correct


def augment(
    images: UInt8[Array, "batch height width 3"], key: Array, padding: int, flip: bool
) -> UInt8[Array, "batch height width 3"]:
    """Random crops of the zero-padded images, and mirrored halves."""
    count, height, width, channels = images.shape
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(crop_key, (count, 2), 0, 2 * padding + 1)

    def crop(image: Array, corner: Array) -> UInt8[Array, "height width 3"]:
        return jax.lax.dynamic_slice(image, (*corner, 0), (height, width, channels))

    images = jax.vmap(crop)(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
