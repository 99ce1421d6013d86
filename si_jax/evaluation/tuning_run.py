"""Choose a detector's options for a benchmark: one call that finds the images and searches."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from si_jax.checks import check_choice, check_least
from si_jax.data import benchmarks, pipeline, preprocessing, sources
from si_jax.data.benchmarks import BENCHMARKS
from si_jax.data.image_set import ImageSet
from si_jax.evaluation import defaults, tuning
from si_jax.evaluation.store import check_names
from si_jax.model import Model


@dataclass(frozen=True)
class Tuned:
    """A finished search. `print` shows it.

    Attributes:
        detector: its name.
        trials: the best first.
        skipped: options -> why they could not be tried.
        images: number of in-distribution validation images.
    """

    detector: str
    trials: tuple[tuning.Trial, ...]
    skipped: Mapping[str, str]
    images: int

    @property
    def best(self) -> Mapping[str, Any]:
        """The chosen options."""
        return self.trials[0].options

    def __str__(self) -> str:
        sets = ", ".join(self.trials[0].auroc)
        lines = [f"{self.images} validation images; AUROC, % against {sets}; mean"]
        for trial in self.trials:
            row = "  ".join(f"{100 * value:6.2f}" for value in (*trial.auroc.values(), trial.mean))
            lines.append(f"{row}  {tuning.describe(self.detector, trial.options)}")
        lines += [f"left out {options}: {reason}" for options, reason in self.skipped.items()]
        return "\n".join(lines)


def tune_on_benchmark(
    detector: str,
    benchmark: str = "digits",
    model: Model | str | os.PathLike | None = None,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    protocol: str = "published",
    data_dir: str | os.PathLike | None = None,
    ood_root: str | os.PathLike | None = None,
    ood: Mapping[str, str | os.PathLike] | None = None,
    limit: int = 500,
    fit_limit: int = 5000,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tuned:
    """Try a detector's options on a benchmark's training split; no test set is opened.

    Args:
        detector: a key of `si_jax.DETECTORS`.
        benchmark: a key of `si_jax.data.benchmarks.BENCHMARKS`.
        model: the network, or the name or directory of its checkpoint; None for the bundled one.
        grid: option -> values; None for the detector's own in `si_jax.evaluation.tuning.GRIDS`.
        protocol: `"published"` or `"openood"`.
        data_dir: folder of all data; None for `$SI_JAX_DATA` or `~/.cache/si_jax/data`.
        ood_root: folder that holds folders of images; None for `data_dir`.
        ood: name -> folder, `.npz` or `.mat` file of out-of-distribution validation images; noise
            and shuffled patches of the in-distribution ones where there are none.
        limit: in-distribution validation images at most, and of each set of `ood`.
        fit_limit: images to fit on at most, others than those.
        seed: seed of the subsets and of the validation sets.
        batch_size: images per batch; None for the detector's own.

    Raises:
        ValueError: if an argument makes no sense, the training split is absent (`MissingSet`), an
            image of `ood` is also in a test set, or nothing can be tried.
    """
    check_least(1, limit=limit, fit_limit=fit_limit)
    check_names(ood or {})
    next(tuning.candidates(detector, grid))  # refuses before anything is loaded
    table = defaults.benchmark_table(benchmark)
    if table is None:
        raise ValueError(f"benchmark (={benchmark}) must be one of {', '.join(BENCHMARKS)}")
    check_choice(preprocessing.PROTOCOLS, protocol=protocol)
    if not isinstance(model, Model):
        model, _ = defaults.benchmark_model(benchmark, model)
    transform = preprocessing.PREPROCESSING[protocol, table.size]
    train = benchmarks.find(table.train, benchmarks.SearchPaths(data_dir, ood_root)).images

    order = np.random.default_rng(seed).permutation(len(train))
    count = min(limit, len(train) // 2)
    validation, _ = _load(sources.take(train, np.sort(order[:count])), transform)
    fit = _load(sources.take(train, np.sort(order[count : count + fit_limit])), transform)
    ood_images = {}
    tests = _test_sets(benchmark, data_dir, ood_root) if ood else []
    for name, path in (ood or {}).items():
        images = sources.subset(sources.from_path(path, name=name), limit, seed)
        tuning.refuse_test_images(images, tests)
        ood_images[name], _ = _load(images, transform)
    ood_images = ood_images or tuning.validation_ood(validation, seed)
    trials, skipped = tuning.tune(
        detector, model, fit, validation, ood_images, grid=grid, batch_size=batch_size
    )
    return Tuned(detector, tuple(trials), skipped, len(validation))


def _test_sets(benchmark: str, data_dir, ood_root) -> list[ImageSet]:
    """The benchmark's test sets, of all protocols, as far as they are on this machine."""
    tests = {}
    for protocol in preprocessing.PROTOCOLS:
        sets = benchmarks.resolve(
            benchmark, protocol, data_dir, ood_root, allow_missing=True, fetch=False
        )
        for image_set in (sets.test, *(o.images for o in sets.ood)):
            tests[image_set.fingerprint] = image_set
    return list(tests.values())


def _load(image_set: ImageSet, transform) -> tuple[np.ndarray, np.ndarray]:
    """All images of a set and their labels, in memory."""
    parts = [batch.readable for batch in pipeline.batches(image_set, transform, 64)]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)
