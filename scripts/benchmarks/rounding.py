"""How far scores depend on the shape of a batch; for `scripts/benchmark.py rounding`.

Another batch size, or a batch split over other devices, is another program, whose sums run in
another order. The bundled digits network is scored in several ways, each detector fitted once.
"""

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import jax
import numpy as np

from si_jax.data import digits
from si_jax.detectors import DETECTORS, make_detector
from si_jax.detectors.fitting import Batches
from si_jax.evaluation.scoring import Scorer
from si_jax.weights.checkpoint import load_model

WAYS = {"batches of 5": (1, 5), "2 devices": (2, 16), "8 devices": (8, 16)}
"""What is compared with one device and batches of 16: number of devices, and batch size."""

FIT = 500
"""Digits that detectors are fitted on."""


def measure(names: Sequence[str], images: int) -> list[dict[str, Any]]:
    """Score images in each of the ways.

    Args:
        names: keys of `si_jax.detectors.DETECTORS`.
        images: how many; two thirds are digits, the others letters.

    Returns:
        For each detector `"name"`, for each of `WAYS` the largest difference of a score from that
        of one device and batches of 16, relative to the score, and as `"spread"` the largest of all
        differences relative to the standard deviation of the scores.

    Raises:
        ValueError: if there is no such detector.
    """
    if unknown := [name for name in names if name not in DETECTORS]:
        raise ValueError(
            f"there is no detector {unknown[0]!r}: choose among {', '.join(DETECTORS)}"
        )
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:  # for it to have eight devices
        return pool.submit(_measure, tuple(names), images).result()


def _measure(names, images):
    jax.config.update("jax_num_cpu_devices", 8)
    return compare(names, images, WAYS)


def compare(
    names: Sequence[str], images: int, ways: Mapping[str, tuple[int, int]]
) -> list[dict[str, Any]]:
    """`measure` in this very process, in other `ways`."""
    devices = jax.local_devices()
    model = load_model("digits")
    letters = images // 3
    some = np.concatenate([digits.load("test")[0][: images - letters], digits.letters(letters)])
    training, labels = (array[:FIT] for array in digits.load("train"))
    batches = Batches(lambda: [(training, labels)], model, keep=True)
    states: dict[str, Any] = {}

    def scores(count, batch_size):
        with mock.patch.object(jax, "local_devices", lambda: devices[:count]):
            detectors = {name: make_detector(name, model, batch_size=batch_size) for name in names}
            for name, detector in detectors.items():
                if name in states:
                    detector.load_state(states[name])
                elif detector.needs_fit:
                    states[name] = detector.fit_batches(batches).check_fitted()
            return {name: rows["score"] for name, rows in Scorer(detectors)(some).items()}

    expected = scores(1, 16)
    found = {way: scores(*how) for way, how in ways.items()}
    rows = []
    for name, plain in expected.items():
        plain = plain.astype(np.float64)
        differences = {way: np.abs(other[name] - plain) for way, other in found.items()}
        scale = np.maximum(np.abs(plain), np.finfo(np.float32).tiny)
        largest = max(difference.max() for difference in differences.values())
        rows.append(
            {
                "name": name,
                **{way: float((one / scale).max()) for way, one in differences.items()},
                "spread": float(largest / plain.std()),
            }
        )
    return rows
