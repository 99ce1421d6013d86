"""What scoring a set holds in memory, against the number of its images; for `scripts/benchmark.py`.

Each set is scored in a process of its own, with a tiny network, from a source that makes its images
up as they are asked for.
"""

import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from si_jax.checks import check_least
from si_jax.data.image_set import ImageSet
from si_jax.detectors import make_detector
from si_jax.evaluation.scoring import Scorer, score_set
from si_jax.weights.checkpoint import build_model

SIDE = 8  # pixels
BATCH = 256


def measure(counts: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
    """Score sets of different sizes.

    Args:
        counts: images of each set.
        names: the detectors, which must need no fit.

    Returns:
        For each set `"images"`, `"start_bytes"` (resident before the first image is read, JAX and
        the compiled programs included), `"peak_bytes"` (the most that was resident), `"files"` and
        `"largest_file_bytes"` (score files), and `"seconds"`.

    Raises:
        ValueError: if a count is not positive, or a detector needs a fit.
        OSError: if this system does not say what a process holds (Linux does).
    """
    for count in counts:
        check_least(1, images=count)
    _resident()
    rows = []
    for count in tqdm(counts, desc="memory", unit="set"):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            rows.append(pool.submit(score_made_up, count, tuple(names)).result())
    return rows


def made_up(count: int) -> ImageSet:
    """A set of `count` images, each made when it is asked for."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)

    def load(index: int) -> tuple[np.ndarray, int]:
        return noise + np.uint8(index % 251), index % 5

    return ImageSet("drawn", count, f"drawn {count}", load, lambda index: f"drawn[{index}]")


def score_made_up(count: int, names: Sequence[str]) -> dict[str, Any]:
    """One row of `measure`, of this very process."""
    model = build_model(
        "resnet8", 5, seed=0, input_size=(SIDE, SIDE), widths=(4, 6, 8), blocks=(1, 1, 1)
    )
    detectors = {name: make_detector(name, model, batch_size=BATCH) for name in names}
    scorer = Scorer(detectors)
    images = np.zeros((BATCH, *model.image_shape), np.uint8)
    for group in (images, images[:8], images[:1]):
        scorer(group)  # compiles
    start = _resident()["VmRSS"]
    with tempfile.TemporaryDirectory() as scratch:
        scored = score_set(
            scorer,
            made_up(count),
            lambda image: image,
            facts={},
            directory=Path(scratch),
            batch_size=BATCH,
        )
        sizes = [path.stat().st_size for path in Path(scratch).rglob("*.npz")]
    assert all(len(arrays["score"]) == count for arrays in scored.arrays.values())
    peak = _resident()["VmHWM"]
    return {
        "images": count,
        "start_bytes": start,
        "peak_bytes": peak,
        "files": len(sizes),
        "largest_file_bytes": max(sizes),
        "seconds": scored.seconds,
    }


def _resident() -> dict[str, int]:
    """Bytes of this process that are (`VmRSS`), and at most were (`VmHWM`), in memory.

    `resource.getrusage` would give a child its parent's peak.
    """
    path = Path("/proc/self/status")
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise OSError(f"{path} cannot be read: memory can be measured on Linux alone") from error
    fields = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")}
