"""Which channels' densities S&I-C reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Channels:
    """The D channels whose densities are read.

    `index` are their places among those of all taps together, ascending; `tap` is the number of
    each one's tap, `positions` that of the positions that its density is the mean over.
    """

    taps: tuple[str, ...]
    index: Int[np.ndarray, "channels"]
    tap: Int[np.ndarray, "channels"]
    positions: Int[np.ndarray, "channels"]


def select_channels(
    taps: Mapping[str, Sequence[int]], max_channels: int, seed: int = 0
) -> Channels:
    """All channels, or `max_channels` drawn at random, from each tap in proportion."""
    counts = [shape[-1] for shape in taps.values()]
    if max_channels < len(counts):
        raise ValueError(
            f"max_channels (={max_channels}) must be at least {len(counts)}, the number of taps"
        )
    quotas = counts
    if sum(counts) > max_channels:
        quotas = [max(1, max_channels * n // sum(counts)) for n in counts]
        while sum(quotas) > max_channels:
            quotas[int(np.argmax(quotas))] -= 1
    rng = np.random.default_rng(seed)
    chosen = [
        np.sort(rng.choice(n, quota, replace=False)) if quota < n else np.arange(n)
        for n, quota in zip(counts, quotas, strict=True)
    ]
    starts = np.cumsum([0, *counts[:-1]])
    positions = [int(np.prod(shape[:-1])) for shape in taps.values()]
    return Channels(
        tuple(taps),
        np.concatenate([start + c for start, c in zip(starts, chosen, strict=True)]),
        np.repeat(np.arange(len(counts)), quotas),
        np.repeat(positions, quotas),
    )
