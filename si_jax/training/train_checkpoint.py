"""One call that trains or fine-tunes a network on a data set and saves it as a checkpoint."""

import dataclasses
import datetime
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from si_jax import cli
from si_jax.checks import check_choice
from si_jax.data import training_sets
from si_jax.data.digits import SIZE
from si_jax.data.files import check_new
from si_jax.data.preprocessing import Preprocessing
from si_jax.model import Model
from si_jax.models import NORMALISATIONS
from si_jax.training import training
from si_jax.training.training import Recipe
from si_jax.weights.checkpoint import build_model, load_model, save_checkpoint, with_new_head

DEFAULTS = {
    "digits": ("resnet8", Recipe(epochs=40, batch_size=100, crop_padding=3, flip=False)),
    "cifar10": ("resnet34", Recipe(epochs=100)),
    "cifar100": ("resnet34", Recipe(epochs=100)),
}
"""Data set -> architecture and recipe."""

FINE_TUNING = Recipe(epochs=10, batch_size=64, learning_rate=0.01, weight_decay=0.0)
STORES = ("float32", "bfloat16", "float16")
LICENCES = {
    "digits": "scikit-learn's handwritten digits (UCI, CC BY 4.0), enlarged to 32x32",
    "cifar10": "CIFAR-10 (Krizhevsky, 2009; published without a licence, to be cited)",
    "cifar100": "CIFAR-100 (Krizhevsky, 2009; published without a licence, to be cited)",
}


@dataclass(frozen=True)
class Trained:
    """A finished training: the network as saved, its directory and accuracy; `print` says it."""

    model: Model
    path: Path
    accuracy: float  # a fraction of the held-out images
    images: int  # how many these are
    seconds: float  # of the epochs

    def __str__(self) -> str:
        found = f"accuracy on {self.images} held-out images: {self.accuracy:.2%}"
        return f"{found}, in {self.seconds:.0f} s\nsaved to {self.path}"


def train_checkpoint(
    dataset: str | os.PathLike,
    out: str | os.PathLike,
    *,
    architecture: str | None = None,
    init: str | os.PathLike | None = None,
    new_head: bool = False,
    input_size: int | None = None,
    data_dir: str | os.PathLike | None = None,
    max_gib: float = 8.0,
    store: str = "float32",
    command: str = "",
    **recipe: Any,
) -> Trained:
    """Train a network and save it; the same call goes on with a run that was interrupted.

    Until it has ended, the run's state is kept in `<out>.run`.

    Args:
        dataset: `"digits"`, `"cifar10"`, `"cifar100"` or a folder of images.
        out: checkpoint directory to write; it must not exist.
        architecture: such as `"resnet34"`; None for the data set's own.
        init: checkpoint to start from, in place of `architecture`.
        new_head: whether the head of `init` is replaced by one of zeros.
        input_size: side of the images in pixels; None for the network's.
        data_dir: folder of all data; None for `$SI_JAX_DATA` or `~/.cache/si_jax/data`.
        max_gib: memory that the images may take, in GiB.
        store: dtype of the saved weights: float32, bfloat16 or float16.
        command: the command line, for the card.
        recipe: fields of `si_jax.training.training.Recipe` that differ from the data set's
            `DEFAULTS`, or with `init` from `FINE_TUNING`.

    Raises:
        ValueError: if `out` exists, an argument makes no sense, `init` has other classes than the
            images and keeps its head, the images are absent or too many, or the loss becomes NaN.
        OSError: if a file cannot be written.
    """
    out, dataset = Path(out), str(dataset)
    check_new(out)
    check_choice(STORES, store=store)
    if init and architecture:
        raise ValueError("architecture and init exclude each other: give one of them")
    name, usual = DEFAULTS.get(dataset, (None, Recipe(100)))
    chosen = dataclasses.replace(FINE_TUNING if init else usual, **recipe)
    sets = training_sets.find(dataset, data_dir, seed=chosen.seed)
    model = _start(dataset, sets, architecture or name, init, new_head, input_size, chosen.seed)
    size = model.input_size
    if "crop_padding" not in recipe and size[0] != SIZE:
        chosen = dataclasses.replace(chosen, crop_padding=size[0] // 8)
    # images of the network's size already are left as they are
    transform = Preprocessing(resize=min(size), crop=size)
    images, held_out = (
        training_sets.load(one, transform, (*size, 3), max_gib=max_gib)
        for one in (sets.train, sets.held_out)
    )
    if dataset == "digits" and not init:
        scaled = images[0].reshape(-1, 3) / 255
        mean, std = (tuple(x.round(4).tolist()) for x in (scaled.mean(0), scaled.std(0)))
        model = dataclasses.replace(model, mean=mean, std=std)

    run = out.with_name(out.name + ".run")
    model = training.train(model, *images, chosen, held_out=held_out, directory=run)
    log = (run / "log.csv").read_text()
    seconds = sum(float(line.rsplit(",", 1)[-1]) for line in log.splitlines()[1:])
    # rounded as they are stored, so that the accuracy is theirs
    variables = jax.tree.map(
        lambda x: np.asarray(jax.numpy.asarray(x).astype(store).astype(x.dtype)), model.variables
    )
    model = dataclasses.replace(model, variables=variables)
    accuracy = training.accuracy(model, *held_out)
    devices = jax.local_devices()
    cores = f", {os.cpu_count()} cores" if devices[0].platform == "cpu" else ""
    card = {
        **model.card,
        **{key: list(getattr(model, key)) for key in ("input_size", "mean", "std")},
        "data": LICENCES.get(dataset, sets.name),
        "split": sets.split,
        **({"classes": list(sets.classes)} if sets.classes else {}),
        "accuracy": accuracy,
        "command": command,
        "starts_from": "fresh weights" if init is None else str(init),
        "recipe": dataclasses.asdict(chosen),
        "stored_as": store,
        "seed": chosen.seed,
        "seconds": round(seconds),
        "hardware": f"{len(devices)} x {devices[0].device_kind} ({platform.machine()}{cores})",
        "licence": "that of si_jax for the weights; the data's own terms for the data",
        "versions": cli.versions(),
        "date": datetime.date.today().isoformat(),
    }
    model = dataclasses.replace(model, card=card)
    path = save_checkpoint(out, model, dtype=store)
    (path / "log.csv").write_text(log)
    shutil.rmtree(run)
    return Trained(model, path, accuracy, len(held_out[1]), seconds)


def _start(dataset, sets, architecture, init, new_head, input_size, seed) -> Model:
    """The network to start from: a checkpoint's, or one with fresh weights."""
    size = None if input_size is None else (input_size, input_size)
    if init is None:
        if architecture is None:
            raise ValueError("a folder of images needs an architecture, or a checkpoint as init")
        mean, std = NORMALISATIONS.get(dataset, (None, None))
        classes = sets.num_classes
        return build_model(architecture, classes, seed=seed, input_size=size, mean=mean, std=std)
    model = load_model(init)
    if new_head:
        model = with_new_head(model, sets.num_classes)
    elif model.num_classes != sets.num_classes:
        raise ValueError(
            f"checkpoint {init} has {model.num_classes} classes, but {sets.name} has"
            f" {sets.num_classes}: replace its head by new_head=True"
        )
    return dataclasses.replace(model, input_size=size or model.input_size)
