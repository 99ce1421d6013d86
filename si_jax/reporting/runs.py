"""Finished runs: what is kept of them in their directories, read again and checked."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from si_jax.data.files import READ_ERRORS, read_arrays, read_json, write_atomically, write_text
from si_jax.data.image_set import ImageSet
from si_jax.evaluation import metrics
from si_jax.evaluation.results import Results
from si_jax.evaluation.store import PREDICTION, Arrays, Scores, chunk_path, load_scores
from si_jax.reporting import report

RESULTS = "results.json"
THUMBNAILS = "thumbnails.npz"  # so that a report shows images without having the sets at hand
REMEDY = "delete it for a report without images, or evaluate again"
COUNT = 6  # images at either end of the scores
SIDE = 96  # pixels, the longer side of a thumbnail


Thumbnails = Mapping[str, Mapping[int, UInt8[np.ndarray, "height width 3"]]]
"""Set -> index of an image -> its small copy."""


@dataclass(frozen=True)
class Run:
    """A finished evaluation. `print` shows its tables, and so does a notebook.

    Attributes:
        name: what a comparison calls it.
        results: the content of `results.json`, a `si_jax.evaluation.results.Results`.
        arrays: set -> detector -> name -> array with a row for each image; empty if not loaded.
        thumbnails: set -> index of an image -> its small copy; empty if none were kept.
        saved: the files that were written of it, `results.json` first; empty if none were.
    """

    name: str
    results: Results
    arrays: Arrays = field(default_factory=dict, repr=False)
    thumbnails: Thumbnails = field(default_factory=dict, repr=False)
    saved: tuple[Path, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return report.text(self.results)

    def _repr_html_(self) -> str:
        shown = report.metric_tables(self.results, ("auroc", "fpr95"))
        notes = [f"{name}: {value}" for name, value in report.summary(self.results)]
        notes += report.warnings(self.results) + report.tie_notes(self.results)
        table = vars(report.PAGES.get_template("macros.html").module)["table"]
        return "".join([*map(table, shown), *(f"<p>{escape(note)}</p>" for note in notes)])

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
        header, *rows = report.csv_rows(self.results)
        return pandas.DataFrame(rows, columns=header)

    @property
    def detectors(self) -> list[str]:
        """The detectors, in the order of the tables."""
        return list(self.results.results)

    @property
    def id_set(self) -> str:
        """Name of the in-distribution set."""
        return self.results.in_distribution

    @property
    def ood_sets(self) -> list[str]:
        """Names of the out-of-distribution sets."""
        return list(self.results.groups)

    def scores(self, image_set: str, detector: str) -> np.ndarray:
        """(n,) scores of a set's images."""
        return self.arrays[image_set][detector]["score"]

    def threshold(self, detector: str) -> np.floating:
        """The score that keeps 95 % of the in-distribution images, as `metrics.fpr95` has it."""
        scores = np.sort(self.scores(self.id_set, detector))
        return scores[round(0.05 * len(scores))]


def write(results: Results, directory: Path) -> list[Path]:
    """Write `results.json` and `results.csv`; returns their paths."""
    table = io.StringIO()
    for row in report.csv_rows(results):
        csv.writer(table).writerow(f"{v:.6f}" if isinstance(v, float) else v for v in row)
    content = json.dumps(results.to_json(), indent=2, allow_nan=False) + "\n"
    paths = [directory / RESULTS, directory / "results.csv"]
    for path, text in zip(paths, (content, table.getvalue()), strict=True):
        write_text(path, text)
    return paths


def directory_of(path: str | Path) -> Path:
    """The directory of a finished run, or that which holds the file of one."""
    path = Path(path)
    directory = path.parent if path.is_file() else path
    if not directory.is_dir():
        raise ValueError(f"{path} is no run directory: there is no such directory")
    if (directory / RESULTS).is_file():
        return directory
    what = "a file of no run: beside it lies" if path.is_file() else "no run directory: it holds"
    raise ValueError(f"{path} is {what} no results.json, which a finished si-jax evaluate leaves")


def load(directory: str | Path, *, scores: bool = True) -> Run:
    """A run from its directory, or a file in it; with `scores`, score files and thumbnails too."""
    directory = directory_of(directory)
    path = directory / RESULTS
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}): evaluate again to write it anew") from None
    try:
        results = Results.from_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is no result of si-jax evaluate: {error}") from None
    called = directory.resolve().name
    if not scores:
        return Run(called, results)
    arrays = _arrays(results, directory / "scores")
    run = Run(called, results, arrays, load_thumbnails(directory))
    for name, found in arrays.items() if run.thumbnails else ():
        picked = {index for detector in run.detectors for index, _ in extremes(found[detector])}
        if not picked <= run.thumbnails.get(name, {}).keys():
            path = directory / THUMBNAILS
            raise ValueError(f"{path} is of another computation than the scores: {REMEDY}")
    return run


def load_several(directories: Sequence[str | Path]) -> list[Run]:
    """Read the results of several runs, without their scores, under names that differ."""
    paths = [directory_of(directory).resolve() for directory in directories]
    if len(set(paths)) < len(paths):
        twice = next(d for d, p in zip(directories, paths, strict=True) if paths.count(p) > 1)
        raise ValueError(f"{twice} is given twice: a comparison needs runs that differ")
    runs = [load(directory, scores=False) for directory in directories]
    depth = 1
    while len({p.parts[-depth:] for p in paths}) < len(paths):
        depth += 1
    names = ["/".join(path.parts[-depth:]) for path in paths]
    return [replace(one, name=name) for one, name in zip(runs, names, strict=True)]


def _arrays(results: Results, directory: Path) -> Arrays:
    """The scores of all sets, which are those that the results were measured of."""
    id_set = results.in_distribution
    arrays: dict[str, dict[str, Scores]] = {
        name: {detector: load_scores(directory, detector, name) for detector in results.results}
        for name in (id_set, *results.groups)
    }
    for name, found in arrays.items():
        for detector, scores in found.items():
            auroc = expected = 0.0
            if name != id_set:
                expected = results.results[detector][name]["auroc"]
                try:
                    auroc = metrics.auroc(arrays[id_set][detector]["score"], scores["score"])
                except ValueError:
                    auroc = math.nan
            if len(scores["score"]) != results.counts[name] or not abs(auroc - expected) < 1e-6:
                raise ValueError(
                    f"{scores.paths[0].parent} is of another computation than results.json:"
                    " evaluate again into the same directory"
                )
        if PREDICTION not in found and chunk_path(directory, PREDICTION, name).is_file():
            predicted = load_scores(directory, PREDICTION, name)
            if np.array_equal(predicted["index"], next(iter(found.values()))["index"]):
                found[PREDICTION] = predicted
    return arrays


def extremes(scored: Mapping[str, np.ndarray]) -> list[tuple[int, float]]:
    """Index and score of the images that look most in-distribution, then of those that least do."""
    order = [np.argsort(by, kind="stable")[:COUNT] for by in (-scored["score"], scored["score"])]
    return [(int(scored["index"][i]), float(scored["score"][i])) for i in np.concatenate(order)]


def save_thumbnails(
    directory: Path, arrays: Arrays, sets: Sequence[ImageSet], transform: Callable
) -> None:
    """Write small copies of the extreme images of every set by every detector, each image once."""
    rows: list[tuple[ImageSet, int]] = []
    for images in sets:
        scored = [one for name, one in arrays[images.name].items() if name != PREDICTION]
        found = [index for one in scored for index, _ in extremes(one)]
        rows += [(images, index) for index in dict.fromkeys(found)]
    content: dict[str, Any] = {
        "image": np.stack([_thumbnail(images.load(i)[0], transform) for images, i in rows]),
        "pick_set": np.array([images.name for images, _ in rows]),
        "pick_index": np.array([index for _, index in rows]),
        "pick_row": np.arange(len(rows)),
    }
    write_atomically(directory / THUMBNAILS, lambda file: np.savez_compressed(file, **content))


def _thumbnail(image: np.ndarray, transform: Callable) -> np.ndarray:
    """An image as the network gets it, as RGB and small; numbers but uint8 by their range."""
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = (255 * (image.astype(np.float64) - low) / max(high - low, 1e-30)).astype(np.uint8)
    image = image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, axis=-1)
    small = Image.fromarray(transform(image))
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small)


def load_thumbnails(directory: Path) -> Thumbnails:
    """What `save_thumbnails` wrote; empty where there is no such file."""
    path = directory / THUMBNAILS
    if not path.is_file():
        return {}
    kept: dict[str, dict[int, np.ndarray]] = {}
    try:
        arrays = read_arrays(path)
        columns = (arrays[f"pick_{name}"].tolist() for name in ("set", "index", "row"))
        for image_set, index, row in zip(*columns, strict=True):
            kept.setdefault(image_set, {})[index] = arrays["image"][row]
    except READ_ERRORS as error:
        raise ValueError(f"{path} is broken ({error}): {REMEDY}") from None
    return kept
