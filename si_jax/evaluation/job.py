"""What is evaluated on what: a network, its detectors, and the sets of images."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from si_jax.checks import check_least
from si_jax.data.benchmarks import BENCHMARKS, Benchmark, OodSet, Resolved
from si_jax.data.image_set import ImageSet, subset
from si_jax.detectors import DETECTORS, Detector, default_options, make_detector, si
from si_jax.evaluation.store import PREDICTION, check_names, model_facts
from si_jax.model import Model
from si_jax.weights.checkpoint import build_model, find_checkpoint, load_model
from si_jax.weights.convert import convert_torch
from si_jax.weights.torch_modules import torch_model


@dataclass(frozen=True)
class Job:
    """What is evaluated on what: detectors by their labels, and the sets that were found."""

    model: Model
    detectors: Mapping[str, Detector]
    found: Resolved
    skip_unreadable: bool = False

    @property
    def sets(self) -> tuple[ImageSet, ...]:
        """All sets: in-distribution, out-of-distribution, shifted."""
        return (self.found.test, *(o.images for o in self.found.ood), *self.found.shifted)

    @property
    def groups(self) -> dict[str, str]:
        """Out-of-distribution set -> the group in which it is averaged."""
        return {o.name: o.group for o in self.found.ood}

    @property
    def facts(self) -> dict[str, str]:
        """The names of benchmark, protocol and preprocessing."""
        names = ("benchmark", "protocol", "preprocessing")
        return {name: str(getattr(self.found, name)) for name in names}

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Label -> the detector's settings; with its name, as `detector`, where that is another."""
        return {
            label: ({} if label == d.name else {"detector": d.name}) | d.settings
            for label, d in self.detectors.items()
        }

    @functools.cached_property
    def score_facts(self) -> dict[str, Any]:
        """What determines the scores beside detector and images, for the keys of stored files."""
        scale = {"scale": self.model.scale} if self.model.scale else {}
        transform = str(self.found.preprocessing)
        return {**self.facts, "transform": transform, **scale, **model_facts(self.model)}


DEFAULT = ("si-c", "si-z", "gaia-z", "msp", "max-logit", "energy")
"""Detectors; where there are no training images, those of them that need none."""

EVERY = "*"
"""In place of a detector's label: options for all detectors that take them."""

Detectors = Sequence[str] | Mapping[str, str | tuple[str, Mapping[str, Any]]]
"""Names of detectors; or label -> name, or name and options: `{"lts-85": ("lts", {"percentile":
85})}`."""

Options = Mapping[str, Mapping[str, Any]] | None  # label -> option -> value


def labelled(detectors: Detectors) -> dict[str, tuple[str, dict[str, Any]]]:
    """Label -> name and options of each detector; a name is its own label."""
    check_names(detectors, "detector")
    if not isinstance(detectors, Mapping):
        detectors = {name: name for name in detectors}
    found = {}
    for label, value in detectors.items():
        match (value, {}) if isinstance(value, str) else value:
            case (str(name), Mapping() as options):
                found[label] = (name, dict(options))
            case _:
                raise ValueError(f"detector {label!r} (={value!r}): give a name or (name, options)")
    if unknown := [name for name, _ in found.values() if name not in DETECTORS]:
        names = ", ".join(map(repr, unknown))
        raise ValueError(f"unknown detector {names}: choose among {', '.join(DETECTORS)}")
    for label, (name, _) in found.items():
        if label == PREDICTION or (label != name and label in DETECTORS):
            raise ValueError(f"{label!r} means something else than {name}: choose another label")
    return found


def make_detectors(
    detectors: Detectors, model: Model, *, options: Options = None, batch_size: int | None = None
) -> dict[str, Detector]:
    """Label -> detector; `options` are by label, under `EVERY` for all that take them."""
    options, chosen = dict(options or {}), labelled(detectors)
    common = options.pop(EVERY, {})
    if unknown := [label for label in options if label not in chosen]:
        raise ValueError(f"an option is set for {', '.join(unknown)}, which is not evaluated")
    for key in common:
        if not any(key in default_options(name) for name, _ in chosen.values()):
            names = ", ".join(chosen)
            raise ValueError(f"none of {names} takes the option {key.replace('_', '-')}")
    made = {}
    for label, (name, given) in chosen.items():
        more = dict(options.get(label, {}))
        if twice := given.keys() & more.keys():
            raise ValueError(f"the option {min(twice)} of {label} is given twice: choose one")
        shared = {k: v for k, v in common.items() if k in default_options(name)}
        made[label] = make_detector(name, model, batch_size=batch_size, **shared | given | more)
    return made


def make_job(
    model: Model,
    sets: Resolved,
    detectors: Detectors | None = None,
    options: Options = None,
    *,
    limit: int | None = None,
    fit_limit: int | None = 10_000,
    seed: int = 0,
    batch_size: int | None = None,
    scale: str | None = None,
    skip_unreadable: bool = False,
) -> Job:
    """What `si_jax.evaluate` evaluates on what; its arguments, and what it raises."""
    check_least(1, limit=limit, fit_limit=fit_limit)
    check_classes(model.name, model, sets.benchmark, sets.num_classes)
    # the protocol decides the size; every architecture here pools globally and takes any
    model = changed(model, input_size=sets.preprocessing.crop, scale=scale or model.scale)
    kept = options or {}
    names = applicable(model, kept) if detectors is None else detectors
    made = make_detectors(names, model, options=options, batch_size=batch_size)
    unfitted = [label for label, detector in made.items() if detector.needs_fit]
    if unfitted and sets.train is None:
        why = f"must be fitted on training images, which are absent: {sets.train_absent}"
        if asked := [label for label in unfitted if detectors is not None or label in kept]:
            raise ValueError(f"{', '.join(asked)} {why}")
        for label in unfitted:
            print(f"{label} is left out: it {why}", file=sys.stderr)
            del made[label]
    found = dataclasses.replace(
        sets,
        test=subset(sets.test, limit, seed),
        train=sets.train and subset(sets.train, fit_limit, seed),
        ood=tuple(OodSet(o.name, o.group, subset(o.images, limit, seed)) for o in sets.ood),
        shifted=tuple(subset(images, limit, seed) for images in sets.shifted),
    )
    job = Job(model, made, found, skip_unreadable)
    check_names([image_set.name for image_set in job.sets])
    return job


def check_classes(called: str, model: Model, benchmark: str, classes: int) -> None:
    """Check that a network has as many classes as a benchmark."""
    if model.num_classes != classes:
        raise ValueError(
            f"{called} has {model.num_classes} classes, but {benchmark} has {classes}: choose one"
            f" that was trained on {benchmark}"
        )


def changed(model: Model, **fields: Any) -> Model:
    """The model with other fields; itself where they are as they were, as making one traces it."""
    others = {name: value for name, value in fields.items() if getattr(model, name) != value}
    return dataclasses.replace(model, **others) if others else model


def applicable(model: Model, kept: Container[str]) -> list[str]:
    """`DEFAULT`, less zero-deflation where it gives all images one score; but for `kept`."""
    names = []
    for name in DEFAULT:
        if name in ("si-z", "gaia-z") and name not in kept and si.constant(model, name):
            print(f"{name} is left out: no ReLU lies behind its taps", file=sys.stderr)
        else:
            names.append(name)
    return names


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
) -> Callable[[], tuple[Model, str]]:
    """What loads a network for a benchmark, and says what a report calls its checkpoint.

    It is not loaded at once, so that a mistake in a name is told before sets are looked for.

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
    checkpoint = checkpoint or (None if torch or table is None else CHECKPOINTS.get(table.name))
    name, is_file = str(checkpoint or torch), checkpoint is not None and Path(checkpoint).is_file()
    options: dict[str, Any] = {"mean": mean, "std": std, "part": part}
    of_file = {**options, "normalisation": normalisation}
    given = [key for key, value in of_file.items() if value is not None and not is_file]
    make: Callable[[], Model]
    if torch is not None:
        make = functools.partial(torch_model, torch, checkpoint, input_size=input_size, **options)
    elif checkpoint is None:
        raise ValueError(
            f"no checkpoint for {benchmark or 'custom data'} comes with the package: give one's"
            " directory, a PyTorch file and its architecture, or train one with si-jax train"
        )
    elif given:
        raise ValueError(
            f"{', '.join(given)}: only a file of another framework needs that; {name} says itself"
            " how it was trained"
        )
    elif not architecture and (is_file or name == "random"):
        why = " is a file, so it" if is_file else ""
        raise ValueError(f"checkpoint (={name!r}){why} needs an architecture")
    elif is_file:
        make = functools.partial(convert_torch, str(architecture), Path(checkpoint), **of_file)
    elif name == "random":
        if table is None:
            raise ValueError("checkpoint (='random') is for benchmarks, which say how many classes")
        make = functools.partial(build_model, str(architecture), table.num_classes, seed=seed)
        name = f"random weights of seed {seed}"
    else:
        make = functools.partial(load_model, find_checkpoint(checkpoint))

    def load() -> tuple[Model, str]:
        model = make()
        if not (torch or is_file) and architecture not in (None, model.name):
            raise ValueError(f"checkpoint {name} is a {model.name}, not a {architecture}")
        if table is not None and not torch:
            check_classes(f"checkpoint {name}", model, table.name, table.num_classes)
        return changed(model, precision=precision), name

    return load
