"""The networks and image sets of the study of S&I-C: what is calibrated on, and what is tested."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from si_jax.data import benchmarks, sources
from si_jax.data.image_set import ImageSet
from si_jax.detectors import Detector
from si_jax.evaluation.job import Job
from si_jax.model import Model
from si_jax.weights.checkpoint import load_model


@dataclasses.dataclass(frozen=True)
class Network:
    """A classifier: its name in tables and paths, benchmark, checkpoint and model."""

    name: str
    dataset: str
    checkpoint: str
    model: Model


@dataclasses.dataclass(frozen=True)
class Case:
    """One network under one protocol, its sets cut to size.

    Attributes:
        network: the classifier.
        model: the same in the protocol's image size.
        resolved: the benchmark as it was found.
        id_set: in-distribution test images.
        ood_sets: name -> out-of-distribution images.
        draws: calibration sets of equal size that share no image, as many as there are images for;
            the detectors are fitted on the first.
        note: what stands in for the training split, or `""`.
    """

    network: Network
    model: Model
    resolved: benchmarks.Resolved
    id_set: ImageSet
    ood_sets: Mapping[str, ImageSet]
    draws: tuple[ImageSet, ...]
    note: str

    @property
    def name(self) -> str:
        """Network and protocol, also as a path."""
        return f"{self.network.name}/{self.resolved.protocol}"

    @property
    def groups(self) -> dict[str, str]:
        """Name of the out-of-distribution set -> `"far"` or `"near"`."""
        return {o.name: o.group for o in self.resolved.ood}

    def job(self, detectors: Mapping[str, Detector]) -> Job:
        """The evaluation of detectors on these sets."""
        return Job(
            model=self.model,
            detectors=detectors,
            id_set=self.id_set,
            ood_sets=self.ood_sets,
            groups=self.groups,
            transform=self.resolved.preprocessing,
            facts={
                "benchmark": self.network.dataset,
                "protocol": self.resolved.protocol,
                "preprocessing": str(self.resolved.preprocessing),
            },
        )


def load_networks(texts: Sequence[str]) -> list[Network]:
    """Open the networks given as `DATASET=CHECKPOINT`.

    Their names are those of data set and checkpoint, with as many of the checkpoint's parent
    directories as it takes to tell them apart.

    Raises:
        ValueError: if a text is of another form, a network is given twice, a data set or
            checkpoint is unknown, or the two differ in their number of classes.
    """
    pairs = []
    for text in texts:
        dataset, equals, checkpoint = text.partition("=")
        if not (dataset and equals and checkpoint):
            raise ValueError(f"network {text}: write it as DATASET=CHECKPOINT")
        if dataset not in benchmarks.BENCHMARKS:
            known = ", ".join(benchmarks.BENCHMARKS)
            raise ValueError(f"network {text}: unknown dataset {dataset!r}: choose one of {known}")
        if (pair := (dataset, checkpoint)) in pairs:
            raise ValueError(f"network {text} is given twice")
        pairs.append(pair)
    if not pairs:
        raise ValueError("networks: give at least one DATASET=CHECKPOINT")
    networks = []
    for (dataset, checkpoint), name in zip(pairs, _names(pairs), strict=True):
        model, classes = load_model(checkpoint), benchmarks.BENCHMARKS[dataset].num_classes
        if model.num_classes != classes:
            raise ValueError(
                f"network {dataset}={checkpoint}: the checkpoint has {model.num_classes}"
                f" classes, but {dataset} has {classes}"
            )
        networks.append(Network(name, dataset, checkpoint, model))
    return networks


def prepare(
    network: Network,
    resolved: benchmarks.Resolved,
    *,
    limit: int | None = None,
    calibration: int = 5000,
    seeds: int = 3,
    seed: int = 0,
) -> Case:
    """Cut the sets of a benchmark to size, and draw what is calibrated on.

    Where there is no training split, a random half of the test set takes its place, and the other
    half is the in-distribution test set.

    Args:
        network: the classifier.
        resolved: its benchmark.
        limit: most images of a test set; None for all.
        calibration: most calibration images.
        seeds: most calibration sets.
        seed: seed of all draws.
    """
    rng = np.random.default_rng(seed)
    test, source, note = resolved.test, resolved.train, ""
    if source is None:
        order, half = rng.permutation(len(test)), len(test) // 2
        note = (
            f"{resolved.benchmark.train.name} is absent: half of {test.name} ({half} images, drawn"
            f" at random) calibrates, and the other {len(test) - half} are the in-distribution test"
            " set"
        )
        name = test.name
        source = _renamed(sources.take(test, np.sort(order[:half])), f"{name}_calibration_half")
        test = _renamed(sources.take(test, np.sort(order[half:])), f"{name}_test_half")
    size = min(calibration, len(source))
    order = rng.permutation(len(source))
    draws = tuple(
        _renamed(
            sources.take(source, np.sort(order[k * size : (k + 1) * size])), f"calibration-{k}"
        )
        for k in range(min(seeds, len(source) // size))
    )
    return Case(
        network=network,
        # the protocol decides the size; every architecture here pools globally and takes any
        model=dataclasses.replace(network.model, input_size=resolved.preprocessing.crop),
        resolved=resolved,
        id_set=sources.subset(test, limit, seed),
        ood_sets={o.name: sources.subset(o.images, limit, seed) for o in resolved.ood},
        draws=draws,
        note=note,
    )


def _renamed(image_set: ImageSet, name: str) -> ImageSet:
    return dataclasses.replace(image_set, name=name)


def _names(pairs: Sequence[tuple[str, str]]) -> list[str]:
    paths = [Path(checkpoint).resolve().parts for _, checkpoint in pairs]
    depth = 1
    while True:
        names = [
            "-".join((dataset, *parts[-depth:]))
            for (dataset, _), parts in zip(pairs, paths, strict=True)
        ]
        if len(set(names)) == len(names) or depth >= max(map(len, paths)):
            return names
        depth += 1
