"""Finished runs, read from their directories and checked."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.files import BROKEN, read_arrays
from si_jax.evaluation import metrics
from si_jax.evaluation.scoring import PREDICTION
from si_jax.evaluation.store import META, Store
from si_jax.reporting import extremes

Arrays = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]

REQUIRED: dict[str, type | tuple[type, ...]] = {
    "results": dict,
    "averages": dict,
    "groups": dict,
    "counts": dict,
    "model": dict,
    "settings": dict,
    "in_distribution": str,
    "benchmark": str,
    "protocol": str,
    "preprocessing": str,
    "checkpoint": str,
    "seed": int,
    "accuracy": (float, int, type(None)),
}
"""What `results.json` must hold, and of which type."""


@dataclass(frozen=True)
class Run:
    """A finished evaluation.

    Attributes:
        name: what a comparison calls it.
        results: the content of `results.json`.
        arrays: set -> detector -> name -> array with a row for each image; empty if not loaded.
        picks: the images that look most and least in-distribution; empty if there are none.
    """

    name: str
    results: Mapping[str, Any]
    arrays: Arrays = field(default_factory=dict, repr=False)
    picks: extremes.Extremes = field(default_factory=dict, repr=False)

    @property
    def detectors(self) -> list[str]:
        """The detectors, in the order of the tables."""
        return list(self.results["results"])

    @property
    def known(self) -> str:
        """Name of the in-distribution set."""
        return self.results["in_distribution"]

    @property
    def ood_sets(self) -> list[str]:
        """Names of the out-of-distribution sets."""
        return list(self.results["groups"])

    def scores(self, image_set: str, detector: str) -> np.ndarray:
        """(n,) scores of a set's images."""
        return self.arrays[image_set][detector]["score"]


def load(directory: str | Path, *, scores: bool = True) -> Run:
    """Read a run from its directory.

    Args:
        directory: where `scripts/evaluate.py` wrote it.
        scores: whether to read the score files and thumbnails too, not `results.json` alone.

    Raises:
        ValueError: if this is no run directory, `results.json` is broken, or a score file is
            missing, broken, or of another computation than `results.json`.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is no run directory: there is no such directory")
    path = directory / "results.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} is no run directory: it holds no results.json, which a finished"
            " scripts/evaluate.py leaves"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}): evaluate again to write it anew") from None
    if problem := _problem(results):
        raise ValueError(f"{path} is no result of scripts/evaluate.py: {problem}")
    name = directory.resolve().name
    if not scores:
        return Run(name, results)
    arrays = _arrays(results, Store(directory / "scores"))
    picks = extremes.load(directory)
    _check_picks(picks, arrays, directory)
    return Run(name, results, arrays, picks)


def load_several(directories: Sequence[str | Path]) -> list[Run]:
    """Read the results of several runs, without their scores, under names that differ.

    Raises:
        ValueError: as for `load`; or if a directory is given twice.
    """
    paths = [Path(directory).resolve() for directory in directories]
    if len(set(paths)) < len(paths):
        twice = next(d for d, p in zip(directories, paths, strict=True) if paths.count(p) > 1)
        raise ValueError(f"{twice} is given twice: a comparison needs runs that differ")
    found = [load(directory, scores=False) for directory in directories]
    depth = 1
    while len({p.parts[-depth:] for p in paths}) < len(paths):
        depth += 1
    names = ["/".join(path.parts[-depth:]) for path in paths]
    return [replace(run, name=name) for run, name in zip(found, names, strict=True)]


def _problem(results: Any) -> str:
    """What is wrong with the content of `results.json`; '' if nothing."""
    if not isinstance(results, dict):
        return "it holds no object"
    for key, kind in REQUIRED.items():
        if key not in results:
            return f"it lacks {key!r}"
        if not isinstance(results[key], kind) or isinstance(results[key], bool):
            return f"{key!r} is of the wrong type"
    if not results["results"]:
        return "it holds no detector"
    groups, known = results["groups"], results["in_distribution"]
    for name in (known, *groups):
        if not isinstance(results["counts"].get(name), int):
            return f"'counts' lacks the set {name!r}"
    for key in ("name", "parameters"):
        if key not in results["model"]:
            return f"'model' lacks {key!r}"
    for detector, rows in results["results"].items():
        if not isinstance(rows, dict) or set(rows) != set(groups):
            return f"the sets of detector {detector!r} are not those of 'groups'"
        averages = results["averages"].get(detector)
        if not isinstance(averages, dict) or set(averages) != set(groups.values()):
            return f"the averages of detector {detector!r} are not those of 'groups'"
        for name, row in (rows | averages).items():
            if not isinstance(row, dict) or not all(
                _is_number(row.get(m)) for m in metrics.METRICS
            ):
                return f"not all metrics of {detector!r} on {name!r} are numbers"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _arrays(results: Mapping[str, Any], store: Store) -> Arrays:
    known = results["in_distribution"]
    arrays = {
        name: {detector: _read(store.path(detector, name)) for detector in results["results"]}
        for name in (known, *results["groups"])
    }
    for name, found in arrays.items():
        for detector, file in list(found.items()):
            other = len(file["score"]) != results["counts"][name]
            if not other and name != known:
                pair = arrays[known][detector]["score"], file["score"]
                try:
                    auroc = metrics.auroc(*pair)
                except ValueError:
                    auroc = math.nan
                other = not abs(auroc - results["results"][detector][name]["auroc"]) < 1e-6
            if other:
                raise ValueError(
                    f"{store.path(detector, name)} is of another computation than results.json:"
                    " evaluate again into the same directory"
                )
        predicted = store.path(PREDICTION, name)
        if predicted.is_file() and PREDICTION not in found:
            file = _read(predicted)
            first = next(iter(found.values()))
            if np.array_equal(file["index"], first["index"]):
                found[PREDICTION] = file
    return arrays


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: evaluate again into the same directory")
    try:
        arrays = {k: v for k, v in read_arrays(path).items() if k not in META}
        whole = arrays["score"].ndim == 1 and arrays["index"].shape == arrays["score"].shape
    except BROKEN:
        whole = False
    if not whole:
        raise ValueError(f"{path} is no score file: evaluate again into the same directory")
    return arrays


def _check_picks(picks: extremes.Extremes, arrays: Arrays, directory: Path) -> None:
    for (name, detector, _), found in picks.items():
        file = arrays.get(name, {}).get(detector)
        if file is None or not _holds(file, found):
            raise ValueError(
                f"{directory / extremes.FILE} is of another computation than the scores: delete it"
                " for a report without images, or evaluate again"
            )


def _holds(file: Mapping[str, np.ndarray], picks: Sequence[extremes.Pick]) -> bool:
    """Whether a score file gives these images these scores."""
    indices, scores = file["index"], file["score"]
    wanted = np.array([pick.index for pick in picks])
    rows = np.minimum(np.searchsorted(indices, wanted), len(indices) - 1)
    expected = np.array([pick.score for pick in picks]).astype(scores.dtype)
    return bool((indices[rows] == wanted).all() and (scores[rows] == expected).all())
