"""Whether decoding and computing overlap while a set is scored; for `scripts/benchmark.py`.

On a CPU both would want the same cores. So JAX's threads are kept to one core and those that decode
to another, as if the first were an accelerator. That must be settled before JAX starts, hence in a
process of its own. Two cores are not two machines, though: where they are two threads of one, or
where other processes want them too, computing takes longer as soon as the second is busy, whatever
it is busy with. So computing is timed beside a busy loop too.
"""

import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

CASES = (("png", 32, "small"), ("jpg", 256, "imagenet"))
"""Format and side of the image files, and to which size they are brought."""


def measure(
    *, images: Sequence[int], batch_size: int, repeats: int, workers: int, model: str
) -> list[dict[str, Any]]:
    """Score folders of image files, and decode alone, and compute alone.

    Args:
        images: how many, for each of `CASES`.
        batch_size: images per batch.
        repeats: repetitions, in each of which all three are timed; the medians count.
        workers: threads that decode.
        model: the architecture, with random weights; its MSP is the score.

    Returns:
        For each case `"source"`, `"images"`, `"decode"`, `"compute"`, `"beside"` (computing while a
        loop keeps the other core busy) and `"all"` (seconds), and `"ratio"`: the last over the
        greater of the first two, with its range.

    Raises:
        OSError: if this system does not let threads be kept to cores, or there is but one core.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if len(cores) < 2:
        raise OSError("two cores are needed, and a system such as Linux that tells them apart")
    context = multiprocessing.get_context("spawn")
    rows = []
    for case, count in zip(CASES, images, strict=True):
        arguments = (*case, count, batch_size, repeats, workers, model, (cores[0], cores[-1]))
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            rows.append(pool.submit(_measure, *arguments).result())
    return rows


def _measure(kind, side, size, count, batch_size, repeats, workers, name, cores):
    os.sched_setaffinity(0, {cores[0]})
    import jax

    jax.block_until_ready(jax.numpy.zeros(8) + 1)  # JAX's threads start here, and stay there
    os.sched_setaffinity(0, {cores[1]})

    from benchmarks.pipeline_speed import make_folder
    from benchmarks.speed import random_model
    from si_jax.batching import PREFETCH
    from si_jax.data.folders import from_folder
    from si_jax.data.pipeline import batches
    from si_jax.data.preprocessing import PREPROCESSING
    from si_jax.detectors import make_detector
    from si_jax.evaluation.scoring import Scorer, score_set

    transform = PREPROCESSING["openood", size]
    model = random_model(name, transform.crop)
    scorer = Scorer({"msp": make_detector("msp", model, batch_size=batch_size)})
    seconds: dict[str, list[float]] = {"decode": [], "compute": [], "beside": [], "all": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "images")
        make_folder(folder, kind, side, count)
        image_set = from_folder(folder)
        image_set.fingerprint  # noqa: B018  reads every file once, as any evaluation does at first

        def decode():
            stream = batches(image_set, transform, batch_size, workers=workers)
            return [batch.images[batch.mask] for batch in stream]

        decoded = decode()
        scorer(decoded[0])

        def compute():
            pending: deque = deque()
            for images in decoded:
                pending.append(scorer.start(images))
                if len(pending) > PREFETCH:
                    pending.popleft()()
            for fetch in pending:
                fetch()

        def together():
            with tempfile.TemporaryDirectory(dir=scratch) as results:
                options = {"batch_size": batch_size, "workers": workers}
                where = {"facts": {}, "directory": Path(results)}
                score_set(scorer, image_set, transform, **where, **options)

        def timed(what, function):
            began = time.perf_counter()
            function()
            seconds[what].append(time.perf_counter() - began)

        for _ in range(repeats):
            timed("decode", decode)
            timed("compute", compute)
            with _busy():
                timed("beside", compute)
            timed("all", together)
    each = np.array([seconds["decode"], seconds["compute"], seconds["all"]])
    ratios = each[2] / each[:2].max(axis=0)
    return {
        "source": f"folder, {kind.upper()} {side}x{side}",
        "images": count,
        **{what: statistics.median(times) for what, times in seconds.items()},
        "ratio": float(np.median(ratios)),
        "ratio_low": float(ratios.min()),
        "ratio_high": float(ratios.max()),
    }


@contextlib.contextmanager
def _busy():
    """A process that keeps the core of this thread busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        try:
            yield
        finally:
            loop.kill()
