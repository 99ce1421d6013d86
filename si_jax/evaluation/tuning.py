"""Choose a detector's options on validation images made from the in-distribution ones.

No test set takes part: the images are a part of the training split that the detector is not fitted
on, and the out-of-distribution ones are made of them.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped
from tqdm import tqdm

from si_jax.checks import check_choice, check_least
from si_jax.data import benchmarks, pipeline, preprocessing, sources
from si_jax.data.benchmarks import BENCHMARKS
from si_jax.data.image_set import ImageSet, UnreadableImage, subset, take
from si_jax.data.synthetic import PATCHES, shuffled
from si_jax.detectors import DETECTORS, Detector, default_options, make_detector
from si_jax.detectors.options import convert_all
from si_jax.evaluation import metrics
from si_jax.evaluation.job import benchmark_model
from si_jax.evaluation.scoring import Scorer
from si_jax.evaluation.store import check_names
from si_jax.model import Model

_PERCENTILES = {"percentile": (65, 70, 75, 80, 85, 90, 95)}
_WINDOWS = {"low": (60, 65, 70, 75, 80, 85, 90), "high": (85, 90, 95, 99)}
_STEPS = {"preset": ("published", "published-defaults")}

GRIDS: dict[str, dict[str, tuple]] = {
    "si-z": _STEPS,
    "si-a": {**_STEPS, "select": (0.9, 1.0)},
    "energy": {"temperature": (1, 10, 100, 1000)},
    "odin": {"temperature": (1, 10, 100, 1000), "step": (0.0014, 0.0028)},
    "gen": {"gamma": (0.01, 0.1, 0.5, 1, 2, 5, 10), "top": (10, 50, 100, 200, 500, 1000)},
    "i-odin": {"temperature": (1, 10, 100, 1000), "step": (0.0014, 0.0028)},
    "react": {"percentile": (85, 90, 95, 99)},
    "vra": {"low": (10, 30, 50, 60, 70), "high": (85, 90, 95, 99)},
    **dict.fromkeys(("ash-p", "ash-b", "ash-s", "scale", "lts"), _PERCENTILES),
    **dict.fromkeys(("adascale-a", "adascale-l"), _WINDOWS),
    "rankfeat": {"stages": (1, 2)},
    "dice": {"percentile": (10, 30, 50, 70, 90)},
    "knn": {"k": (50, 100, 200, 500, 1000)},
    "nnguide": {"k": (1, 10, 50, 100)},
    "relation": {"power": (1, 2, 4, 6, 8)},
    "nci": {"alpha": (0.0001, 0.001, 0.01, 0.1)},
    "mahalanobis": {"normalise": (False, True)},
    "relative-mahalanobis": {"normalise": (False, True)},
    "openmax": {"tail": (10, 20, 30, 40, 50), "alpha": (1, 3, 5, 10, 15, 20)},
    "mcm": {"temperature": (0.01, 0.1, 0.5, 1, 10)},
    "grad-uncertainty": {"parameters": ("head", "all")},
    "cfood": {"share": (0.001, 0.005, 0.01, 0.05)},
    "gram": {"orders": (1, 3, 5, 10)},
    "nac": {"alpha": (1, 10, 100, 1000), "bins": (50, 500), "least": (10, 50, 500)},
    "gmm": {"reg": (1e-6, 1e-4, 1e-2)},
    "vim": {"dim": (256, 1000)},
    "residual": {"dim": (256, 1000)},
}
"""Detector -> option -> values, mostly those of OpenOOD v1.5 (Zhang et al., 2023)."""


@dataclass(frozen=True)
class Trial:
    """One choice of options, and its AUROC, a fraction, on each validation set."""

    options: Mapping[str, Any]
    auroc: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean AUROC over the validation sets."""
        return float(np.mean(list(self.auroc.values())))


def candidates(
    name: str, grid: Mapping[str, Sequence[Any]] | None = None
) -> Iterator[dict[str, Any]]:
    """Every combination of a grid (`GRIDS[name]` by default), the detector's defaults first."""
    grid = GRIDS.get(name) if grid is None else grid
    if not grid:
        raise ValueError(f"detector {name!r} has no grid; those that have: {', '.join(GRIDS)}")
    known = default_options(name)
    if unknown := [option for option in grid if option not in known]:
        raise ValueError(f"detector {name!r} does not take the option {', '.join(unknown)}")
    default = {option: known[option] for option in grid}
    yield default
    for values in itertools.product(*grid.values()):
        options = convert_all(DETECTORS[name].build, dict(zip(grid, values, strict=True)))
        if options != default:
            yield options


def tune(
    name: str,
    model: Model,
    fit: tuple[np.ndarray, np.ndarray | None],
    validation: Shaped[np.ndarray, "n height width channels"],
    ood: Mapping[str, np.ndarray],
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    batch_size: int | None = None,
) -> tuple[list[Trial], dict[str, str]]:
    """Try all combinations of a detector's options: trials, best first, and why others are not."""
    if not ood:
        raise ValueError("ood is empty: give at least one validation set")
    every = {describe(name, options): options for options in candidates(name, grid)}
    detectors: dict[str, Detector] = {}
    skipped: dict[str, str] = {}
    for label, options in every.items():
        try:
            detector = make_detector(name, model, batch_size=batch_size, **options)
            detectors[label] = detector.fit(*fit) if detector.needs_fit else detector
        except ValueError as error:
            skipped[label] = str(error)
    if not detectors:
        raise ValueError(f"no options of {name!r} can be tried: {next(iter(skipped.values()))}")
    scorer = Scorer(detectors)
    known, others = scorer(validation), {key: scorer(images) for key, images in ood.items()}
    trials = []
    for label in detectors:
        score = known[label]["score"]
        auroc = {key: metrics.auroc(score, found[label]["score"]) for key, found in others.items()}
        trials.append(Trial(every[label], auroc))
    return sorted(trials, key=lambda trial: -trial.mean), skipped


def refuse_test_images(validation: Sequence[ImageSet], tests: Iterable[ImageSet]) -> None:
    """Raise an error if a validation set shares an image with a test set, pixel by pixel."""
    known = {_content(images, i): (images, i) for images in validation for i in range(len(images))}
    known.pop(None, None)  # what cannot be read is like nothing
    for test in tests:
        for i in tqdm(range(len(test)), desc=f"{test.name}: comparing", unit="img", leave=False):
            if same := known.get(_content(test, i)):
                images, index = same
                raise ValueError(
                    f"{images.name}: {images.ident(index)} is also in the test set {test.name}"
                    f" ({test.ident(i)}): give images that are not tested on"
                )


def _content(images: ImageSet, index: int) -> bytes | None:
    """Hash of an image's size and pixels; None if it cannot be read."""
    try:
        pixels = images.load(index)[0]
    except UnreadableImage:
        return None
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def validation_ood(
    images: Shaped[np.ndarray, "n height width channels"], seed: int = 0
) -> dict[str, np.ndarray]:
    """`noise`, drawn from all pixels of in-distribution images, and `shuffled` patches of each."""
    n, height, width, channels = images.shape
    if min(height, width) < PATCHES:
        raise ValueError(f"images ({height}x{width}) are too small for {PATCHES}x{PATCHES} patches")
    rng = np.random.default_rng(seed)
    pixels = images.reshape(-1, channels)
    noise = pixels[rng.integers(len(pixels), size=(n, height, width))]
    return {"noise": noise, "shuffled": np.stack([shuffled(image, rng) for image in images])}


def describe(name: str, options: Mapping[str, Any]) -> str:
    """Options as `si-jax evaluate` takes them behind `--set`."""
    dumped = {k: json.dumps(v, default=str) for k, v in options.items() if not isinstance(v, str)}
    return " ".join(f"{name}.{option}={value}" for option, value in {**options, **dumped}.items())


@dataclass(frozen=True)
class Tuned:
    """A finished search, the best trial first, and why others were skipped; `print` shows it."""

    detector: str
    trials: tuple[Trial, ...]
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
            lines.append(f"{row}  {describe(self.detector, trial.options)}")
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
    next(candidates(detector, grid))  # refuses before anything is loaded
    check_choice(BENCHMARKS, benchmark=benchmark)
    check_choice(preprocessing.PROTOCOLS, protocol=protocol)
    if not isinstance(model, Model):
        model, _ = benchmark_model(benchmark, model)()
    table = BENCHMARKS[benchmark]
    transform = preprocessing.PREPROCESSING[protocol, table.size]
    train = benchmarks.find(table.train, benchmarks.SearchPaths(data_dir, ood_root)).images

    order = np.random.default_rng(seed).permutation(len(train))
    count = min(limit, len(train) // 2)
    validation, _ = _load(take(train, np.sort(order[:count])), transform)
    fit = _load(take(train, np.sort(order[count : count + fit_limit])), transform)
    given = [subset(sources.from_path(p, name=k), limit, seed) for k, p in (ood or {}).items()]
    tests: dict[str, ImageSet] = {}
    for every in preprocessing.PROTOCOLS if given else ():
        sets = benchmarks.resolve(benchmark, every, data_dir, ood_root, allow_missing=True)
        tests |= {x.fingerprint: x for x in (sets.test, *(o.images for o in sets.ood))}
    refuse_test_images(given, tests.values())
    made = {images.name: _load(images, transform)[0] for images in given}
    ood_images = made or validation_ood(validation, seed)
    options: dict[str, Any] = {"grid": grid, "batch_size": batch_size}
    trials, skipped = tune(detector, model, fit, validation, ood_images, **options)
    return Tuned(detector, tuple(trials), skipped, len(validation))


def _load(image_set: ImageSet, transform) -> tuple[np.ndarray, np.ndarray]:
    """All images of a set and their labels, in memory."""
    (batch,) = pipeline.batches(image_set, transform, len(image_set))
    return batch.readable
