"""One call that converts a published checkpoint, saves it, and compares what is read again."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from si_jax.data.directories import check_new
from si_jax.model import Model
from si_jax.weights.checkpoint import load_model, save_checkpoint
from si_jax.weights.convert import convert_torch


@dataclass(frozen=True)
class Converted:
    """A finished conversion. `print` tells what was converted and how exactly it is read again.

    Attributes:
        model: the network as it was saved.
        path: its checkpoint directory.
        logits: the least and the greatest logit of random input.
        difference: the largest difference between those logits and the reloaded network's.
    """

    model: Model
    path: Path
    logits: tuple[float, float]
    difference: float

    def __str__(self) -> str:
        model, card = self.model, self.model.card
        low, high = self.logits
        lines = [
            f"model         {model.name}, {model.num_classes} classes",
            f"parameters    {model.num_parameters:,}",
            f"input         {model.input_size[0]}x{model.input_size[1]}",
            f"normalisation {card['normalisation']}: mean {model.mean}, deviation {model.std}",
            f"weights       {len(jax.tree.leaves(model.variables))} arrays, equal after reloading",
            f"logits        of random input from {low:.3g} to {high:.3g},",
            f"              after reloading within {self.difference:.1g}",
        ]
        lines += [f"note          {note}" for note in card["notes"]]
        return "\n".join([*lines, f"saved         {self.path}"])


def convert_checkpoint(
    name: str,
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    input_size: tuple[int, int] | None = None,
    normalisation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    part: str | None = None,
) -> Converted:
    """Convert a published checkpoint into a directory that `si_jax.load_model` reads.

    The directory is read again: its weights must equal the converted ones, and the logits of random
    images must agree but for rounding, as the network is compiled anew. If they do not, nothing is
    left behind.

    Args:
        name: an architecture such as `"resnet34"`; the file must hold that very network.
        source: the file, see `si_jax.weights.convert.convert_torch`.
        out: checkpoint directory to write; it must not exist.
        input_size: height and width of the images in pixels; None for the architecture's.
        normalisation: what the network was trained with: cifar10, cifar100, imagenet or half; None
            for the architecture's.
        mean: mean of each channel in [0, 1] units, in place of `normalisation`.
        std: standard deviation of each channel, likewise.
        part: which of several networks in the file: a key, or a prefix of names.

    Raises:
        ValueError: if `out` exists, as `convert_torch`, or if what is read again differs.
        OSError: if a file cannot be written.
    """
    check_new(out)
    model = convert_torch(
        name,
        Path(source),
        input_size=input_size,
        normalisation=normalisation,
        mean=mean,
        std=std,
        part=part,
    )
    images = np.random.default_rng(0).normal(size=(2, *model.image_shape)).astype(np.float32)
    expected = model.logits(images, batch_size=2)
    path = save_checkpoint(out, model)
    try:
        difference = _difference(path, model, images, expected)
    except BaseException:
        shutil.rmtree(path)
        raise
    return Converted(model, path, (float(expected.min()), float(expected.max())), difference)


def _difference(path: Path, model: Model, images: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference between the logits of the saved and of the converted network."""
    saved = load_model(path)
    same = jax.tree.map(np.array_equal, dict(saved.variables), dict(model.variables))
    difference = float(np.abs(saved.logits(images, batch_size=2) - expected).max())
    if not all(jax.tree.leaves(same)) or not difference <= 1e-4 * np.abs(expected).max():
        raise ValueError(f"{path} was not the network once read again, and has been removed")
    return difference
