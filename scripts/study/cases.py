"""The networks and image sets of the study of S&I-C: what is calibrated on, and what is tested."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from si_jax.data import benchmarks
from si_jax.data.image_set import ImageSet, subset, take
from si_jax.model import Model
from si_jax.weights.checkpoint import load_model


@dataclasses.dataclass(frozen=True)
class Case:
    """One network under one protocol.

    Attributes:
        network: its name in tables and paths.
        dataset: the benchmark.
        checkpoint: where the network is.
        model: the network in the protocol's image size.
        resolved: the benchmark as it was found.
        test: in-distribution test images, all of them.
        draws: calibration sets of equal size that share no image, as many as there are images for.
        note: what stands in for the training split, or `""`.
    """

    network: str
    dataset: str
    checkpoint: str
    model: Model
    resolved: benchmarks.Resolved
    test: ImageSet
    draws: tuple[ImageSet, ...]
    note: str

    @property
    def name(self) -> str:
        """Network and protocol, also as a path."""
        return f"{self.network}/{self.resolved.protocol}"

    @property
    def groups(self) -> dict[str, str]:
        """Name of the out-of-distribution set -> `"far"` or `"near"`."""
        return {o.name: o.group for o in self.resolved.ood}


def load_networks(texts: Sequence[str]) -> dict[str, tuple[str, str, Model]]:
    """Name -> data set, checkpoint and model of the networks given as `DATASET=CHECKPOINT`.

    Raises:
        ValueError: if a text is of another form, a network is given twice, a data set or
            checkpoint is unknown, or the two differ in their number of classes.
    """
    networks: dict[str, tuple[str, str, Model]] = {}
    for number, text in enumerate(texts, start=1):
        dataset, equals, checkpoint = text.partition("=")
        if not (dataset and equals and checkpoint):
            raise ValueError(f"network {text}: write it as DATASET=CHECKPOINT")
        if dataset not in benchmarks.BENCHMARKS:
            known = ", ".join(benchmarks.BENCHMARKS)
            raise ValueError(f"network {text}: unknown dataset {dataset!r}: choose one of {known}")
        if text in texts[: number - 1]:
            raise ValueError(f"network {text} is given twice")
        model, classes = load_model(checkpoint), benchmarks.BENCHMARKS[dataset].num_classes
        if model.num_classes != classes:
            raise ValueError(
                f"network {text}: the checkpoint has {model.num_classes} classes, but {dataset} has"
                f" {classes}"
            )
        name = f"{dataset}-{Path(checkpoint).resolve().name}"
        name = f"{name}-{number}" if name in networks else name
        networks[name] = (dataset, checkpoint, model)
    return networks


def prepare(
    network: str,
    dataset: str,
    checkpoint: str,
    model: Model,
    resolved: benchmarks.Resolved,
    *,
    calibration: int,
    seeds: int,
    seed: int,
) -> Case:
    """Draw what is calibrated on: at most `seeds` sets of at most `calibration` images.

    Where there is no training split, a random half of the test set takes its place, and the other
    half is the in-distribution test set.
    """
    rng = np.random.default_rng(seed)
    test, source, note = resolved.test, resolved.train, ""
    if source is None:
        order, half = rng.permutation(len(test)), len(test) // 2
        note = (
            f"{resolved.benchmark}_train is absent: half of {test.name} ({half} images, drawn"
            f" at random) calibrates, and the other {len(test) - half} are the in-distribution test"
            " set"
        )
        source = _part(test, order[:half], f"{test.name}_calibration_half")
        test = _part(test, order[half:], f"{test.name}_test_half")
    size = min(calibration, len(source))
    order = rng.permutation(len(source))
    draws = tuple(
        _part(source, order[k * size : (k + 1) * size], f"calibration-{k}")
        for k in range(min(seeds, len(source) // size))
    )
    # the protocol decides the size; every architecture here pools globally and takes any
    model = dataclasses.replace(model, input_size=resolved.preprocessing.crop)
    return Case(network, dataset, checkpoint, model, resolved, test, draws, note)


def test_sets(case: Case, limit: int | None, seed: int) -> Mapping[str, ImageSet]:
    """Name -> images that are tested, the in-distribution ones first; at most `limit` of each."""
    sets = {case.test.name: case.test, **{o.name: o.images for o in case.resolved.ood}}
    return {name: subset(images, limit, seed) for name, images in sets.items()}


def _part(image_set: ImageSet, indices: np.ndarray, name: str) -> ImageSet:
    return dataclasses.replace(take(image_set, np.sort(indices)), name=name)
