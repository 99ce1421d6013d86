"""Train a classifier: cross-entropy, SGD with Nesterov momentum, random crops and flips.

The images stay on the devices as uint8 for the whole run, and each batch is split over all
devices. What a step draws depends on the seed and on its number alone, so a run that is
resumed goes on exactly as it would have.
"""

import dataclasses
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8
from tqdm import tqdm

from si_jax.checks import check_least
from si_jax.model import Model
from si_jax.training.augmentation import augment
from si_jax.training.training_run import TrainingRun

REFRESH = 10  # steps between two looks at the loss
EVALUATION_BATCH = 500


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
        label_smoothing: share of the target that is spread evenly over the classes.
        ema: decay per step of the moving average of the weights that is returned and evaluated
            in place of the last weights; 0 for none.
        crop_padding: pixels of zero padding before the random crop.
        flip: whether half of the images are mirrored.
        bfloat16: whether the network computes in bfloat16; weights, statistics and the loss stay
            float32.
        seed: seed of the data order and of the augmentation.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    ema: float = 0.0
    crop_padding: int = 4
    flip: bool = True
    bfloat16: bool = False
    seed: int = 0

    def __post_init__(self):
        check_least(1, epochs=self.epochs, batch_size=self.batch_size)
        for name in ("warmup", "momentum", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} (={getattr(self, name)}) must be in [0, 1)")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate (={self.learning_rate}) must be positive")
        for name in ("weight_decay", "crop_padding"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} (={getattr(self, name)}) must not be negative")


Labelled = tuple[UInt8[np.ndarray, "m height width channels"], Int[np.ndarray, "m"]]
"""Images in the model's input size and their class indices."""


def train(
    model: Model,
    images: UInt8[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, "n"],
    recipe: Recipe,
    *,
    held_out: Labelled | None = None,
    directory: str | os.PathLike | None = None,
) -> Model:
    """The model with trained weights.

    Args:
        model: the network and the weights to start from; its `__call__` takes `train`.
        images: training images in the model's input size.
        labels: class indices.
        recipe: how to train.
        held_out: images and labels on which each epoch is evaluated; nothing is chosen by them.
        directory: where the state is saved after each epoch and `log.csv` is written; if it holds
            an unfinished run of the same model, images and recipe, that is resumed. None for none.

    Raises:
        ValueError: if images and labels do not fit the model, there are fewer images than one
            batch, `directory` holds another run, or the loss becomes NaN or infinite; the
            directory then keeps the last good epoch.
    """
    images, labels = _checked(model, images, labels)
    steps_per_epoch = len(images) // recipe.batch_size
    if not steps_per_epoch:
        raise ValueError(
            f"batch_size (={recipe.batch_size}) exceeds the number of images ({len(images)})"
        )
    run = TrainingRun(directory, model, recipe, images, labels)
    optimiser = _optimiser(recipe, recipe.epochs * steps_per_epoch)
    replicated, split = _placements(recipe.batch_size)
    state = run.restore(_initial_state(model, optimiser, recipe))
    state, images, labels = jax.device_put((state, images, labels), replicated)
    placed = None if held_out is None else _checked(model, *held_out)
    placed = jax.device_put(placed, replicated)
    step = jax.jit(partial(_step, model, optimiser, recipe), donate_argnums=0)
    evaluate = jax.jit(partial(_evaluate, model))

    done = run.epochs_done * steps_per_epoch
    with tqdm(
        total=recipe.epochs * steps_per_epoch, initial=done, desc="training", unit="step"
    ) as bar:
        for epoch in range(run.epochs_done, recipe.epochs):
            start = time.perf_counter()
            order = np.random.default_rng([recipe.seed, epoch]).permutation(len(images))
            order = order.astype(np.int32)
            totals = jax.device_put(np.zeros(2, np.float32), replicated)  # loss and correct
            for i in range(steps_per_epoch):
                batch = order[i * recipe.batch_size : (i + 1) * recipe.batch_size]
                batch = jax.device_put(batch, split)
                state, totals = step(state, totals, images, labels, batch)
                if (i + 1) % REFRESH == 0 or i + 1 == steps_per_epoch:
                    loss, correct = (float(x) / (i + 1) for x in np.asarray(totals))
                    _check_loss(loss, epoch, recipe, run)
                    accuracy = correct / recipe.batch_size
                    bar.update(epoch * steps_per_epoch + i + 1 - bar.n)
                    bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}")
            row = {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy}
            if placed is not None:
                row |= _held_out(evaluate, _result(state, recipe), *placed)
                _check_loss(row["held_out_loss"], epoch, recipe, run)
            row["seconds"] = time.perf_counter() - start
            run.save(epoch + 1, state, row)
    return dataclasses.replace(model, variables=jax.device_get(_result(state, recipe)))


def accuracy(
    model: Model,
    images: UInt8[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, "n"],
) -> float:
    """Share of images whose largest logit is that of their label."""
    return float(np.mean(np.argmax(model.logits(images), axis=-1) == labels))


def _checked(model: Model, images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    images, labels = model.prepare_images(images), np.asarray(labels)
    if (
        labels.shape != (len(images),)
        or not len(labels)
        or not 0 <= labels.min() <= labels.max() < model.num_classes
    ):
        span = f", values {labels.min()} to {labels.max()}" if labels.size else ""
        raise ValueError(
            f"labels (shape {labels.shape}{span}) must be one class index below"
            f" {model.num_classes} for each of the {len(images)} images"
        )
    return images, labels.astype(np.int32)


def _check_loss(loss: float, epoch: int, recipe: Recipe, run: TrainingRun) -> None:
    if not np.isfinite(loss):
        raise ValueError(
            f"the loss became {loss} in epoch {epoch + 1}: lower the learning rate"
            f" (={recipe.learning_rate}){run.kept()}"
        )


def _placements(batch_size: int) -> tuple[NamedSharding, NamedSharding]:
    """On every device, and split over them: over as many as divide the batch."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    mesh = Mesh(np.array(devices[:count]), ("batch",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))


def _initial_state(model: Model, optimiser: optax.GradientTransformation, recipe: Recipe) -> dict:
    variables = jax.tree.map(np.asarray, dict(model.variables))
    return {
        "step": np.int32(0),
        "variables": variables,
        "optimiser": jax.device_get(optimiser.init(variables["params"])),
        "average": jax.tree.map(np.copy, variables) if recipe.ema else {},
    }


def _result(state: dict, recipe: Recipe) -> dict[str, Any]:
    return state["average"] if recipe.ema else state["variables"]


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


def _step(model, optimiser, recipe, state, totals, images, labels, batch):
    """One update; `totals` gathers the loss and the number of images classified correctly."""
    module = model.module.clone(dtype=jnp.bfloat16) if recipe.bfloat16 else model.module
    key = jax.random.fold_in(jax.random.key(recipe.seed), state["step"])
    crop_key, dropout_key = jax.random.split(key)
    images, labels = images[batch], labels[batch]
    images = model.normalise(augment(images, crop_key, recipe.crop_padding, recipe.flip))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, model.num_classes), recipe.label_smoothing)
    variables = state["variables"]

    def loss_of(params):
        logits, updates = module.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        logits = logits.astype(jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy(logits, targets)), (logits, updates)

    gradient = jax.value_and_grad(loss_of, has_aux=True)
    (loss, (logits, updates)), grads = gradient(variables["params"])
    changes, optimiser_state = optimiser.update(grads, state["optimiser"], variables["params"])
    params = optax.apply_updates(variables["params"], changes)
    variables = {**variables, **updates, "params": params}
    average = state["average"]
    if recipe.ema:  # a shorter memory at first, or the average would keep the first weights
        decay = jnp.minimum(recipe.ema, (1 + state["step"]) / (10 + state["step"]))
        average = optax.incremental_update(variables, average, 1 - decay)
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
    state = {
        "step": state["step"] + 1,
        "variables": variables,
        "optimiser": optimiser_state,
        "average": average,
    }
    return state, totals + jnp.stack([loss, correct.astype(jnp.float32)])


def _evaluate(model, variables, images, labels, batch, mask):
    logits = model.module.apply(variables, model.normalise(images[batch]), **model.call_kwargs)
    labels = labels[batch]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    return jnp.sum(losses * mask), jnp.sum(correct & mask)


def _held_out(evaluate, variables, images: Array, labels: Array) -> dict[str, float]:
    """Mean loss and accuracy in static batches, the last one padded and masked."""
    count, size = len(images), min(EVALUATION_BATCH, len(images))
    loss = correct = 0.0
    for first in range(0, count, size):
        batch = np.arange(first, first + size, dtype=np.int32)
        part = evaluate(variables, images, labels, np.minimum(batch, count - 1), batch < count)
        loss, correct = loss + float(part[0]), correct + float(part[1])
    return {"held_out_loss": loss / count, "held_out_accuracy": correct / count}
