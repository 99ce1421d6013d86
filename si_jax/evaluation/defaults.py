"""A benchmark's network."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from si_jax.data.benchmarks import BENCHMARKS, Benchmark
from si_jax.model import Model
from si_jax.weights.checkpoint import build_model, find_checkpoint, load_model
from si_jax.weights.convert import convert_torch
from si_jax.weights.torch_modules import torch_model

CHECKPOINTS = {"digits": "digits", "cifar100": "cifar100_resnet20"}
"""Benchmark -> the bundled checkpoint that was trained on it."""


def benchmark_table(benchmark: str | os.PathLike | None) -> Benchmark | None:
    """A benchmark of `BENCHMARKS`; None for custom data: a folder, or None for sets given apart."""
    if benchmark in BENCHMARKS:
        return BENCHMARKS[str(benchmark)]
    if benchmark is not None and not Path(benchmark).expanduser().is_dir():
        known = ", ".join(BENCHMARKS)
        raise ValueError(f"unknown dataset {benchmark!r}: choose one of {known}, or give a folder")
    return None


def resolve_checkpoint(
    benchmark: str | os.PathLike | None,
    checkpoint: str | os.PathLike | None = None,
    architecture: str | None = None,
) -> str | os.PathLike:
    """The checkpoint to load, which is there; arguments and errors as for `benchmark_model`."""
    table = benchmark_table(benchmark)
    checkpoint = checkpoint or (None if table is None else CHECKPOINTS.get(table.name))
    if checkpoint is None:
        raise ValueError(
            f"no checkpoint for {benchmark or 'custom data'} comes with the package: give the"
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
        benchmark: a key of `si_jax.data.benchmarks.BENCHMARKS`; or a folder of custom data, or
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
    table = benchmark_table(benchmark)
    if torch is not None:
        options: dict[str, Any] = {"input_size": input_size, "mean": mean, "std": std, "part": part}
        model = torch_model(torch, checkpoint, **options)
        return dataclasses.replace(model, precision=precision), str(checkpoint or torch)
    checkpoint = resolve_checkpoint(benchmark, checkpoint, architecture)
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
    if table is not None and model.num_classes != table.num_classes:
        raise ValueError(
            f"checkpoint {name} has {model.num_classes} classes, but {table.name} has"
            f" {table.num_classes}: choose a checkpoint that was trained on {table.name}"
        )
    return dataclasses.replace(model, precision=precision), name
