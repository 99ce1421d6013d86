"""Times of the input pipeline, for `scripts/benchmark.py data`."""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from si_jax.data import digits, sources
from si_jax.data.folders import from_folder
from si_jax.data.image_set import ImageSet, MissingSet, subset
from si_jax.data.pipeline import batches
from si_jax.data.tfds_sets import from_tfds

TFDS_SETS = (("cifar10", "test"), ("cifar100", "test"), ("svhn_cropped", "test"))
"""Those that are timed where they are prepared."""


@contextlib.contextmanager
def image_sets(
    folder: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None
) -> Iterator[dict[str, ImageSet]]:
    """Sources to time: name -> set.

    Args:
        folder: a folder of images; None for small PNG and JPEG files that are made for the while.
        data_dir: directory of TFDS sets, of which those of `TFDS_SETS` that are prepared are
            taken.

    Raises:
        ValueError: if `folder` holds no images, or `data_dir` is given and holds no such set.
    """
    sets = {"digits, arrays": sources.from_arrays("digits", *digits.load("test"))}
    with tempfile.TemporaryDirectory() as scratch:
        if folder is not None:
            sets[f"folder {folder}"] = from_folder(folder)
        else:
            for kind, side in (("png", 32), ("jpg", 32), ("jpg", 256)):
                path = Path(scratch, f"{kind}{side}")
                make_folder(path, kind, side)
                sets[f"folder, {kind.upper()} {side}x{side}"] = from_folder(path)
        prepared = {}
        if data_dir is not None:
            for name, split in TFDS_SETS:
                with contextlib.suppress(MissingSet):
                    prepared[f"TFDS, {name}/{split}"] = from_tfds(
                        name, split, data_dir, fetch=False
                    )
            if not prepared:
                names = ", ".join(name for name, _ in TFDS_SETS)
                raise ValueError(f"{data_dir} holds none of {names}: prepare one of them there")
        yield sets | prepared


def time_pipeline(
    sets: Mapping[str, ImageSet],
    transform: Callable[[np.ndarray], np.ndarray],
    *,
    workers: Sequence[int],
    limit: int,
    batch_size: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Images/s of decoding, transforming and batching, with nothing done to the batches.

    Args:
        sets: name -> set.
        transform: as for `si_jax.data.pipeline.batches`.
        workers: numbers of threads to try.
        limit: images of each set.
        batch_size: rows of a batch.
        repeats: passes over each set, of which the median counts.

    Returns:
        For each set `"source"`, `"images"` and `"images_per_second"`, one for each of `workers`.
    """
    sets = {name: subset(images, limit) for name, images in sets.items()}
    jobs = [(name, count) for name in sets for count in workers]
    seconds: dict[tuple[str, int], list[float]] = {job: [] for job in jobs}
    with tqdm(total=(repeats + 1) * len(jobs), desc="data", unit="pass", leave=False) as bar:
        for repeat in range(repeats + 1):  # the first pass warms the caches up and is not counted
            for job in jobs:
                name, count = job
                began = time.perf_counter()
                for _ in batches(sets[name], transform, batch_size, workers=count):
                    pass
                if repeat:
                    seconds[job].append(time.perf_counter() - began)
                bar.update()
    return [
        {
            "source": name,
            "images": len(images),
            "images_per_second": [
                len(images) / statistics.median(seconds[name, count]) for count in workers
            ],
        }
        for name, images in sets.items()
    ]


def make_folder(path: Path, kind: str, side: int, count: int = 200) -> None:
    """Write smooth random images, which compress as photographs rather than as noise do."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (max(2, side // 8), max(2, side // 8), 3), np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        image.save(path / f"{number:04d}.{kind}")
