"""What S&I-C reads of every image of a case: one pass over the network for all ablations."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from si_jax.data.image_set import ImageSet
from si_jax.data.pipeline import batches, shown
from si_jax.detectors import default_options
from si_jax.detectors.si_c.readings import Channels, batched, reader, select_channels
from study.cases import Case

Readings = Mapping[str, np.ndarray]
"""Reading's name -> float32 array with a row for each image."""


@dataclass(frozen=True)
class CaseReadings:
    """What the densities are of, and the readings of each test set and of each calibration set."""

    channels: Channels
    sets: Mapping[str, Readings]
    draws: tuple[Readings, ...]


def read_case(case: Case, sets: Mapping[str, ImageSet], *, batch_size: int = 64) -> CaseReadings:
    """The readings of all sets of a case; a `ValueError` where the network has none."""
    everything = reader(case.model, max_channels=default_options("si-c")["max_channels"])
    run = batched(everything, case.model)

    def read(image_set: ImageSet) -> Readings:
        made = batches(
            image_set, case.resolved.preprocessing, batch_size, image_shape=case.model.image_shape
        )
        parts = [
            run(case.model.prepare_images(batch.readable[0]), batch_size=batch_size)
            for batch in shown(made, image_set, f"readings of {case.network}")
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    draws = tuple(map(read, case.draws))
    assert everything.channels is not None, "all components are read"
    return CaseReadings(everything.channels, {n: read(s) for n, s in sets.items()}, draws)


def by_tap(density: np.ndarray, channels: Channels) -> np.ndarray:
    """(N, channels) densities -> (N, taps), the mean over each tap's channels."""
    taps = range(len(channels.taps))
    return np.stack([density[:, channels.tap == tap].mean(axis=1) for tap in taps], axis=1)


def fewer_channels(channels: Channels, count: int) -> tuple[np.ndarray, Channels]:
    """The channels that S&I-C would draw if it could have `count` of them, and their places."""
    numbers = np.bincount(channels.tap, minlength=len(channels.taps))
    shapes = {tap: (1, int(n)) for tap, n in zip(channels.taps, numbers, strict=True)}
    places = select_channels(shapes, count).index
    chosen = Channels(
        channels.taps, channels.index[places], channels.tap[places], channels.positions[places]
    )
    return places, chosen
