"""What S&I-C reads of every image of a case, computed once and kept in files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from si_jax.batching import Batched
from si_jax.data.image_set import ImageSet
from si_jax.data.pipeline import batches, shown
from si_jax.detectors import DETECTORS, default_options
from si_jax.detectors.si_c.channels import Channels, select_channels
from si_jax.detectors.si_c.readings import Reader, batched, reader
from si_jax.evaluation.keyed_files import read_keyed, write_keyed
from si_jax.evaluation.keys import key_of
from si_jax.evaluation.store import escaped
from si_jax.weights.variables import weights_hash
from study.sets import Case

Readings = Mapping[str, np.ndarray]
"""Reading's name -> float32 array with a row for each image."""


@dataclass(frozen=True)
class CaseReadings:
    """All that the ablations of a case need.

    Attributes:
        channels: what the densities are of.
        id: readings of the in-distribution test images.
        ood: set -> readings of its images.
        draws: readings of each calibration set.
        key: hash of all that determines them.
    """

    channels: Channels
    id: Readings
    ood: Mapping[str, Readings]
    draws: tuple[Readings, ...]
    key: str


def read_case(case: Case, directory: Path, *, batch_size: int = 64) -> CaseReadings:
    """The readings of all sets of a case, from their files where they are stored.

    Args:
        case: network and sets.
        directory: where they are kept, as `<directory>/<set>.npz`.
        batch_size: images per batch.

    Raises:
        ValueError: if the network cannot be read, as `si_jax.detectors.si_c.readings.reader`; or an
            image cannot be.
    """
    everything = reader(case.model, max_channels=default_options("si-c")["max_channels"])
    channels = everything.channels
    assert channels is not None, "all components are read"
    run = batched(everything, case.model)
    facts = case.job({}).score_facts | {"reader": _facts(everything, channels)}
    keys, read = [], {}
    for image_set in (*case.draws, case.id_set, *case.ood_sets.values()):
        keys.append(key_of({**facts, "set": image_set.fingerprint}))
        path = directory / f"{escaped(image_set.name)}.npz"
        stored = read_keyed(path, keys[-1])
        if stored is None:
            stored = _read(run, case, image_set, batch_size)
            write_keyed(path, keys[-1], stored)
        read[image_set.name] = stored
    return CaseReadings(
        channels=channels,
        id=read[case.id_set.name],
        ood={name: read[name] for name in case.ood_sets},
        draws=tuple(read[image_set.name] for image_set in case.draws),
        key=key_of({"readings": keys}),
    )


def by_tap(density: np.ndarray, channels: Channels) -> np.ndarray:
    """Mean over each tap's channels.

    Args:
        density: (N, D).
        channels: what they are of.

    Returns:
        (N, taps).
    """
    taps = range(len(channels.taps))
    return np.stack([density[:, channels.tap == tap].mean(axis=1) for tap in taps], axis=1)


def fewer_channels(channels: Channels, count: int) -> tuple[np.ndarray, Channels]:
    """The channels that S&I-C would draw if it could have `count` of them.

    Returns:
        Their places among all channels read, and what they are.

    Raises:
        ValueError: if `count` is below the number of taps.
    """
    numbers = np.bincount(channels.tap, minlength=len(channels.taps))
    shapes = {tap: (1, int(n)) for tap, n in zip(channels.taps, numbers, strict=True)}
    places = select_channels(shapes, count).index
    chosen = Channels(
        channels.taps, channels.index[places], channels.tap[places], channels.positions[places]
    )
    return places, chosen


def _read(run: Batched, case: Case, image_set: ImageSet, batch_size: int) -> dict[str, np.ndarray]:
    def parts() -> Iterator[dict[str, np.ndarray]]:
        made = batches(
            image_set, case.resolved.preprocessing, batch_size, image_shape=case.model.image_shape
        )
        for batch in shown(made, image_set, f"readings of {case.network.name}"):
            images, _ = batch.readable
            yield run.batch(case.model.check(images), batch_size=batch_size)

    read = list(parts())
    return {name: np.concatenate([part[name] for part in read]) for name in read[0]}


def _facts(everything: Reader, channels: Channels) -> dict[str, object]:
    return {
        "version": DETECTORS["si-c"].version,
        "channels": weights_hash(channels.index),
        "taps": channels.taps,
        "inner": everything.inner,
        "engine": everything.engine,
    }
