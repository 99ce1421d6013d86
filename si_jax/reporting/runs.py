"""Finished runs, read from their directories and checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.files import BrokenArchive, read_arrays
from si_jax.data.json_files import read_json
from si_jax.evaluation import metrics
from si_jax.evaluation.results import Results
from si_jax.evaluation.scorer import PREDICTION
from si_jax.evaluation.store import META, Store
from si_jax.reporting import extremes, facts, report
from si_jax.reporting.files import csv_rows
from si_jax.reporting.pages import html_table

Arrays = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]

RESULTS = "results.json"


@dataclass(frozen=True)
class Run:
    """A finished evaluation. `print` shows its tables, and so does a notebook.

    Attributes:
        name: what a comparison calls it.
        results: the content of `results.json`, a `si_jax.evaluation.results.Results`.
        arrays: set -> detector -> name -> array with a row for each image; empty if not loaded.
        picks: the images that look most and least in-distribution; empty if there are none.
        saved: the files that were written of it, `results.json` first; empty if none were.
    """

    name: str
    results: Mapping[str, Any]
    arrays: Arrays = field(default_factory=dict, repr=False)
    picks: extremes.Extremes = field(default_factory=dict, repr=False)
    saved: tuple[Path, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return report.text(self.results)

    def _repr_html_(self) -> str:
        shown = report.metric_tables(self.results, {m: t for t, m in report.MAIN.items()})
        notes = [*facts.heading(self.results).splitlines(), *facts.tie_notes(self.results)]
        return "".join([*map(html_table, shown), *(f"<p>{escape(note)}</p>" for note in notes)])

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row for each detector and set.

        Its columns are `detector`, `set`, `group`, `images`, and the metrics as fractions.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                'to_pandas needs pandas: pip install "si-jax[pandas]", or read results.csv'
            ) from error
        header, *rows = csv_rows(self.results)
        return pandas.DataFrame(rows, columns=header)

    @property
    def detectors(self) -> list[str]:
        """The detectors, in the order of the tables."""
        return list(self.results["results"])

    @property
    def id_set(self) -> str:
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
        directory: where `si-jax evaluate` wrote it.
        scores: whether to read the score files and thumbnails too, not `results.json` alone.

    Raises:
        ValueError: if this is no run directory, `results.json` is broken, or a score file is
            missing, broken, or of another computation than `results.json`.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is no run directory: there is no such directory")
    path = directory / RESULTS
    if not path.is_file():
        raise ValueError(
            f"{directory} is no run directory: it holds no results.json, which a finished"
            " si-jax evaluate leaves"
        )
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}): evaluate again to write it anew") from None
    try:
        results = Results.from_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is no result of si-jax evaluate: {error}") from None
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
    runs = [load(directory, scores=False) for directory in directories]
    depth = 1
    while len({p.parts[-depth:] for p in paths}) < len(paths):
        depth += 1
    names = ["/".join(path.parts[-depth:]) for path in paths]
    return [replace(one, name=name) for one, name in zip(runs, names, strict=True)]


def _arrays(results: Mapping[str, Any], store: Store) -> Arrays:
    id_set = results["in_distribution"]
    arrays = {
        name: {detector: _read(store.path(detector, name)) for detector in results["results"]}
        for name in (id_set, *results["groups"])
    }
    for name, files in arrays.items():
        for detector, file in list(files.items()):
            other = len(file["score"]) != results["counts"][name]
            if not other and name != id_set:
                pair = arrays[id_set][detector]["score"], file["score"]
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
        if predicted.is_file() and PREDICTION not in files:
            file = _read(predicted)
            first = next(iter(files.values()))
            if np.array_equal(file["index"], first["index"]):
                files[PREDICTION] = file
    return arrays


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: evaluate again into the same directory")
    try:
        arrays = read_arrays(path)
    except (OSError, BrokenArchive):
        arrays = {}
    score, index = (arrays.get(name, np.empty((0, 0))) for name in ("score", "index"))
    whole = score.ndim == 1 and index.shape == score.shape and score.dtype.kind == "f"
    whole = whole and len(score) > 0 and index.dtype.kind == "i"
    arrays = {name: array for name, array in arrays.items() if name not in META}
    if not whole:
        raise ValueError(f"{path} is no score file: evaluate again into the same directory")
    return arrays


def _check_picks(picks: extremes.Extremes, arrays: Arrays, directory: Path) -> None:
    for (name, detector, _), chosen in picks.items():
        file = arrays.get(name, {}).get(detector)
        if file is None or not _holds(file, chosen):
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
