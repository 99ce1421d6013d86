"""What is evaluated unless one says otherwise: a benchmark's detectors and its network."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from si_jax.data.benchmarks import BENCHMARKS, Benchmark
from si_jax.detectors import Detector, si
from si_jax.evaluation.sets import is_own
from si_jax.model import Model
from si_jax.weights.checkpoint import build_model, find_checkpoint, load_model
from si_jax.weights.convert import convert_torch
from si_jax.weights.torch_modules import torch_model

DETECTORS = ("si-c", "si-z", "gaia-z", "msp", "max-logit", "energy")
"""Detectors; where there are no training images, those of them that need none."""

CHECKPOINTS = {"digits": "digits", "cifar100": "cifar100_resnet20"}
"""Benchmark -> the bundled checkpoint that was trained on it."""


def benchmark_table(name: str | os.PathLike) -> Benchmark:
    """A benchmark of `si_jax.data.benchmarks.BENCHMARKS`.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise ValueError(f"unknown dataset {name!r}: choose one of {known}, or give a folder")
    return BENCHMARKS[str(name)]


def own_or_table(benchmark: str | os.PathLike | None) -> Benchmark | None:
    """A benchmark's table; None for one's own data.

    Raises:
        ValueError: as `benchmark_table`.
    """
    return None if benchmark is None or is_own(benchmark) else benchmark_table(benchmark)


def which_checkpoint(
    benchmark: str | os.PathLike | None,
    checkpoint: str | os.PathLike | None = None,
    architecture: str | None = None,
) -> str | os.PathLike:
    """The checkpoint to load, of which no more is seen here than that it is there.

    Args:
        benchmark: as for `benchmark_model`.
        checkpoint: likewise.
        architecture: likewise.

    Raises:
        ValueError: if there is none, or `architecture` is missing.
    """
    table = own_or_table(benchmark)
    checkpoint = checkpoint or (None if table is None else CHECKPOINTS.get(table.name))
    if checkpoint is None:
        raise ValueError(
            f"no checkpoint for {benchmark or 'data of your own'} comes with the package: give the"
            " directory of a checkpoint, a PyTorch file together with its architecture, or train"
            " one with si-jax train"
        )
    if checkpoint == "random":
        if not architecture:
            raise ValueError("checkpoint (='random') needs an architecture")
        if table is None:
            raise ValueError("checkpoint (='random') is for benchmarks, which say how many classes")
    elif not Path(checkpoint).is_file():
        find_checkpoint(checkpoint)
    elif not architecture:
        raise ValueError(
            f"checkpoint (={str(checkpoint)!r}) is a file, so it needs an architecture"
        )
    return checkpoint


def benchmark_model(
    benchmark: str | os.PathLike | None,
    checkpoint: str | os.PathLike | None = None,
    *,
    architecture: str | None = None,
    torch: str | None = None,
    input_size: int | None = None,
    normalisation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    part: str | None = None,
    seed: int = 0,
    precision: str = "highest",
) -> tuple[Model, str]:
    """A network for a benchmark, and what a report calls its checkpoint.

    Args:
        benchmark: a key of `si_jax.data.benchmarks.BENCHMARKS`; or a folder of one's own data, or
            None for that.
        checkpoint: a bundled name or a checkpoint directory; a file of another framework or
            `"random"` for fresh weights, both with `architecture`; None for the bundled one.
        architecture: of a file or of fresh weights, such as `"resnet34"`.
        torch: a PyTorch network that runs as it is, see `si_jax.weights.torch_modules.torch_model`:
            MODULE:FUNCTION, timm:NAME or transformers:NAME; `checkpoint` is then a file with its
            state dict. What is named so is code that runs.
        input_size: of the images of `torch`, pixels; None for the network's own.
        normalisation: of a file's network: cifar10, cifar100, imagenet or half; None for the
            architecture's.
        mean: mean of each channel in [0, 1] units, in place of `normalisation`.
        std: standard deviation of each channel, likewise.
        part: which of several networks in a file: a key, or a prefix of names.
        seed: seed of fresh weights.
        precision: of matrix products: `"highest"`, `"high"` or `"default"`.

    Raises:
        ValueError: if there is no such checkpoint, none is bundled, `architecture` is missing or
            another than the checkpoint's, or the network has not as many classes as the benchmark.
    """
    table = own_or_table(benchmark)
    if torch is not None:
        options: dict[str, Any] = {"input_size": input_size, "mean": mean, "std": std, "part": part}
        model = torch_model(torch, checkpoint, **options)
        if table is not None:
            check_classes(model, table, torch)
        return dataclasses.replace(model, precision=precision), str(checkpoint or torch)
    checkpoint = which_checkpoint(benchmark, checkpoint, architecture)
    name, is_file = str(checkpoint), Path(checkpoint).is_file()
    file_only: dict[str, Any] = {
        "normalisation": normalisation,
        "mean": mean,
        "std": std,
        "part": part,
    }
    if given := [key for key, value in file_only.items() if value is not None and not is_file]:
        raise ValueError(
            f"{', '.join(given)}: only a file of another framework needs that; {name} says itself"
            " how it was trained"
        )
    if name == "random" and architecture and table is not None:
        model = build_model(architecture, table.num_classes, seed=seed)
        name = f"random weights of seed {seed}"
    elif is_file and architecture:
        model = convert_torch(architecture, Path(checkpoint), **file_only)
    else:
        model = load_model(checkpoint)
        if architecture not in (None, model.name):
            raise ValueError(f"checkpoint {name} is a {model.name}, not a {architecture}")
    if table is not None:
        check_classes(model, table, name)
    return dataclasses.replace(model, precision=precision), name


def check_classes(model: Model, table: Benchmark, checkpoint: str) -> None:
    """Refuse a network that has not as many classes as the benchmark.

    Raises:
        ValueError: telling both numbers.
    """
    if model.num_classes != table.num_classes:
        raise ValueError(
            f"checkpoint {checkpoint} has {model.num_classes} classes, but {table.name} has"
            f" {table.num_classes}: choose a checkpoint that was trained on {table.name}"
        )


def serving(model: Model, kept: Mapping[str, object]) -> list[str]:
    """`DETECTORS`, less zero-deflation where it would give every image the same score.

    Args:
        model: the network.
        kept: names of those that stay all the same.
    """
    return [
        name
        for name in DETECTORS
        if name not in ("si-z", "gaia-z") or name in kept or not si.constant(model, name)
    ]


def without_fits(
    detectors: Mapping[str, Detector], kept: Mapping[str, object]
) -> tuple[dict[str, Detector], list[str]]:
    """The detectors less those that need training images, and the names of those.

    Args:
        detectors: name -> detector.
        kept: names of those that stay all the same.
    """
    needy = [name for name, d in detectors.items() if d.needs_fit and name not in kept]
    return {name: d for name, d in detectors.items() if name not in needy}, needy
