"""Train a classifier: cross-entropy, SGD with Nesterov momentum, random crops and flips.

The images stay on the devices as uint8 for the whole run, and each batch is split over all
devices. What a step draws depends on the seed and on its number alone, so a run that is
resumed goes on exactly as it would have.
"""

import dataclasses
import json
import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from si_jax.checks import check_least
from si_jax.data.files import write_text
from si_jax.model import Model
from si_jax.networks.programs import compiled
from si_jax.weights import saved

REFRESH = 10  # steps between two looks at the loss
EVALUATION_BATCH = 500
COLUMNS = ("epoch", "loss", "accuracy", "held_out_loss", "held_out_accuracy", "seconds")
Images = UInt8[np.ndarray, "n height width channels"]
Labels = Int[np.ndarray, "n"]
Batch = UInt8[Array, "batch height width channels"]


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


class State(BaseModel):
    """What a saved state is of, and the log: a row for each epoch that is done."""

    model_config = ConfigDict(title="state of a training", strict=True, allow_inf_nan=False)

    run: dict[str, Any]
    log: list[dict[str, float]]


class Run:
    """The directory of a training, if any: its state after the last epoch, and `log.csv`."""

    def __init__(self, directory, model: Model, recipe: Recipe, images, labels):
        self.directory = None if directory is None else Path(directory).resolve()
        self.log: list[dict[str, Any]] = []
        facts = {
            "model": model.name,
            "options": model.card.get("options", {}),
            "num_classes": model.num_classes,
            "normalisation": [model.mean, model.std],
            "starts_from": saved.weights_hash(dict(model.variables)),
            "images": saved.weights_hash([images, labels]),
            **dataclasses.asdict(recipe),
        }
        self.facts = json.loads(json.dumps(facts))

    def restore(self, state: Any) -> Any:
        """The state after the last epoch that was saved; `state` itself, if there is none."""
        if self.directory is None or not os.path.lexists(self.directory):
            return state
        if not (kept := self._saved()):
            names = {path.name for path in self.directory.glob("[!.]*")}
            if not self.directory.is_dir() or names - {"state", "log.csv"}:
                raise ValueError(f"{self.directory} is no training run: choose another directory")
            return state
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, state))
        try:
            if not saved.check_sums(kept[-1]):
                raise ValueError(f"its file {saved.SUMS} is missing")
            card = saved.read_card(kept[-1] / "state.json", State)
            different = [key for key, value in self.facts.items() if card.run.get(key) != value]
            arrays = {} if different else saved.read_arrays(kept[-1] / "arrays")
            found = [arrays[name] for name in sorted(arrays)]
            if not different and [x.shape for x in found] != [x.shape for x in leaves]:
                raise ValueError("other versions of its packages wrote it")
        except ValueError as error:
            advice = "remove it to begin again"
            raise ValueError(f"{self.directory} cannot be resumed ({error}): {advice}") from None
        if different:
            raise ValueError(
                f"{self.directory} holds another run, which differs in {', '.join(different)}:"
                " choose another directory, or remove that one to begin again"
            )
        self.log = card.log
        return jax.tree.unflatten(structure, found)

    def save(self, state: Any, row: dict[str, Any]) -> None:
        """Keep the state after one more epoch, and the epoch's row of the log."""
        self.log.append(row)
        if self.directory is None:
            return
        rows = [[f"{one[k]:.6g}" if k in one else "" for k in COLUMNS] for one in self.log]
        write_text(self.directory / "log.csv", "\n".join(map(",".join, [COLUMNS, *rows])) + "\n")
        arrays = {f"{i:05d}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
        older = self._saved()
        name = f"{len(self.log):06d}"
        with saved.saving(self.directory / "state" / name, saved.SUMS) as hidden:
            saved.write_arrays(hidden / "arrays", arrays)
            content = {"run": self.facts, "log": self.log}
            write_text(hidden / "state.json", json.dumps(content, indent=2) + "\n")
        for path in older:
            shutil.rmtree(path)

    def _saved(self) -> list[Path]:
        return sorted((self.directory / "state").glob("[0-9]*")) if self.directory else []


def train(
    model: Model,
    images: Images,
    labels: Labels,
    recipe: Recipe,
    *,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    directory: str | os.PathLike | None = None,
) -> Model:
    """The model with trained weights; each epoch is evaluated on `held_out`, which chooses nothing.

    The state is saved in `directory` after each epoch; an unfinished run of the same model, images
    and recipe that lies there is resumed.
    """
    images, labels = _checked(model, images, labels)
    size = recipe.batch_size
    steps = len(images) // size  # of an epoch
    if not steps:
        raise ValueError(f"batch_size (={size}) exceeds the number of images ({len(images)})")
    run = Run(directory, model, recipe, images, labels)
    optimiser = _optimiser(recipe, recipe.epochs * steps)
    replicated, split = _placements(size)
    state = run.restore(_initial_state(model, optimiser, recipe))
    state, images, labels = jax.device_put((state, images, labels), replicated)
    placed = None if held_out is None else _checked(model, *held_out)
    placed = jax.device_put(placed, replicated)
    step: Any = jax.jit(
        partial(_step, model, optimiser, recipe), donate_argnums=0, out_shardings=replicated
    )
    program = None
    evaluate, kept = jax.jit(partial(_evaluate, model)), "average" if recipe.ema else "variables"

    done, total = len(run.log) * steps, recipe.epochs * steps
    with tqdm(total=total, initial=done, desc="training", unit="step") as bar:
        for epoch in range(len(run.log), recipe.epochs):
            start = time.perf_counter()
            order = np.random.default_rng([recipe.seed, epoch]).permutation(len(images))
            order = order.astype(np.int32)
            totals = jax.device_put(np.zeros(2, np.float32), replicated)  # loss and correct
            for i in range(steps):
                batch = jax.device_put(order[i * size : (i + 1) * size], split)
                program = program or compiled(step, state, totals, images, labels, batch)
                state, totals = program(state, totals, images, labels, batch)
                if (i + 1) % REFRESH == 0 or i + 1 == steps:
                    loss, correct = (float(x) / (i + 1) for x in np.asarray(totals))
                    _check_loss(loss, epoch, recipe, run)
                    accuracy = correct / size
                    bar.update(epoch * steps + i + 1 - bar.n)
                    bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}")
            row = {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy}
            if placed is not None:
                row |= _held_out(evaluate, state[kept], *placed)
                _check_loss(row["held_out_loss"], epoch, recipe, run)
            row["seconds"] = time.perf_counter() - start
            run.save(state, row)
    return dataclasses.replace(model, variables=jax.device_get(state[kept]))


def accuracy(model: Model, images: Images, labels: Labels) -> float:
    """Share of images whose largest logit is that of their label."""
    return float(np.mean(np.argmax(model.logits(images), axis=-1) == labels))


def _checked(model: Model, images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    images, labels = model.prepare_images(images), np.asarray(labels)
    lowest, largest = (labels.min(), labels.max()) if labels.size else (-1, -1)
    if labels.shape != (len(images),) or not 0 <= lowest <= largest < model.num_classes:
        span = f", values {lowest} to {largest}" if labels.size else ""
        raise ValueError(
            f"labels (shape {labels.shape}{span}) must be one class index below"
            f" {model.num_classes} for each of the {len(images)} images"
        )
    return images, labels.astype(np.int32)


def _check_loss(loss: float, epoch: int, recipe: Recipe, run: Run) -> None:
    if not np.isfinite(loss):
        kept = f"; the weights after epoch {len(run.log)} are kept in {run.directory}"
        raise ValueError(
            f"the loss became {loss} in epoch {epoch + 1}: lower the learning rate"
            f" (={recipe.learning_rate}){kept if run.directory and run.log else ''}"
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


def _optimiser(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, max(1, round(recipe.warmup * steps)), max(2, steps)
    )
    kernels = partial(jax.tree.map, lambda x: x.ndim > 1)
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay, mask=kernels),
        optax.sgd(lambda step: schedule(step.astype(jnp.float32)), recipe.momentum, nesterov=True),
    )


def augment(images: Batch, key: Array, padding: int, flip: bool) -> Batch:
    """Random crops of the images in a margin of `padding` zeros, half of them mirrored."""
    count, height, width, channels = images.shape
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(crop_key, (count, 2), 0, 2 * padding + 1)

    def crop(image: Array, corner: Array) -> UInt8[Array, "height width channels"]:
        return jax.lax.dynamic_slice(image, (*corner, 0), (height, width, channels))

    images = jax.vmap(crop)(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


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
        done = state["step"].astype(jnp.float32)
        decay = jnp.minimum(recipe.ema, (1 + done) / (10 + done))
        average = optax.incremental_update(variables, average, 1 - decay)
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
    moved = {"variables": variables, "optimiser": optimiser_state, "average": average}
    totals = totals + jnp.stack([loss, correct.astype(jnp.float32)])
    return {"step": state["step"] + 1, **moved}, totals


def _evaluate(model, variables, images, labels):
    """The sum of the losses, and how many images are classified correctly."""
    logits = model.module.apply(variables, model.normalise(images), **model.call_kwargs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses), jnp.sum(jnp.argmax(logits, axis=-1) == labels)


def _held_out(evaluate, variables, images: Array, labels: Array) -> dict[str, float]:
    """Mean loss and accuracy."""
    batches = [slice(i, i + EVALUATION_BATCH) for i in range(0, len(images), EVALUATION_BATCH)]
    parts = [evaluate(variables, images[batch], labels[batch]) for batch in batches]
    loss, accuracy = np.array(jax.device_get(parts), float).sum(axis=0) / len(images)
    return {"held_out_loss": float(loss), "held_out_accuracy": float(accuracy)}
