"""What an evaluation measured, as `results.json` holds it: one typed record with a version."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binom

from si_jax.data.files import fields_problem
from si_jax.data.image_set import ImageSet
from si_jax.evaluation import metrics
from si_jax.evaluation.job import Job
from si_jax.evaluation.metrics import METRICS, PROBABILITIES
from si_jax.evaluation.store import PREDICTION, Arrays

SCHEMA = 2  # version of the record; files without one are of version 1, and can be read

Number = int | float
Rows = dict[str, dict[str, dict[str, Number]]]  # detector -> set or group -> metric -> a fraction
Intervals = dict[str, dict[str, dict[str, list[Number]]]]  # the same -> [low, high]


@dataclass(frozen=True)
class Results:
    """What an evaluation measured.

    A field with a default may be missing in a file, and a metric in any row of it.

    Attributes:
        results: detector -> out-of-distribution set -> metric -> a fraction.
        averages: detector -> group -> metric -> mean over the group's sets.
        groups: out-of-distribution set -> the group that it is averaged in.
        counts: set -> number of images scored.
        model: `name`, `classes`, `parameters`, `input_size`, `mean`, `std`, `precision`,
            `weights_sha256`.
        settings: detector -> option -> value; under `detector` its name where it has a label.
        in_distribution: name of the in-distribution set.
        benchmark: its name.
        protocol: its name.
        preprocessing: what brings an image to the network's size.
        checkpoint: where the network's weights come from.
        seed: seed of the subsets.
        accuracy: of the classifier on the in-distribution set; None without labels.
        limit: most images of a set; None for all.
        intervals: detector -> set -> metric -> [low, high].
        average_intervals: detector -> group -> metric -> [low, high], of the group's mean.
        bootstrap: how the intervals were drawn: `resamples`, `seed`, `level`.
        ties: detector -> set -> number of images whose score equals the threshold of `fpr95`,
            where that is more than a hundredth of them.
        calibration_error: detector whose score is a probability -> its expected calibration
            error on the in-distribution set, where all of its images have labels.
        shifted: covariate-shifted in-distribution set -> the classifier's accuracy on it, None
            without labels; empty where there is none.
        full_spectrum: `results` and `averages` once more, with the shifted sets counted as
            in-distribution; empty where there is none.
        fit: what detectors were fitted on: `set`, `images`, `detectors`.
        absent: sets of the benchmark that are absent.
        incomplete: groups that lack a set.
        unreadable: set -> names of the images that were left out.
        notes: what else is to be reported of the sets.
        warning: why the results may mean nothing; None where they do.
        device: what they were computed on.
        computed: set -> number of images scored by this run, not found stored.
        seconds: set (and `total`) -> what that took.
        versions: package -> version.
        command: the command line; '' where there was none.
        extra: whatever else a file holds.
    """

    results: Rows
    averages: Rows
    groups: dict[str, str]
    counts: dict[str, int]
    model: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    in_distribution: str
    benchmark: str
    protocol: str
    preprocessing: str
    checkpoint: str
    seed: int
    accuracy: Number | None
    limit: int | None = None
    intervals: dict[str, dict[str, dict[str, list[Number]]]] = field(default_factory=dict)
    average_intervals: dict[str, dict[str, dict[str, list[Number]]]] = field(default_factory=dict)
    bootstrap: dict[str, Number] = field(default_factory=dict)
    ties: dict[str, dict[str, int]] = field(default_factory=dict)
    calibration_error: dict[str, Number] = field(default_factory=dict)
    shifted: dict[str, Number | None] = field(default_factory=dict)
    full_spectrum: dict[str, Rows] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    unreadable: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warning: str | None = None
    device: str = ""
    computed: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, Number] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """A field by its name, as the file `results.json` has it."""
        return self.to_json()[name]

    def to_json(self) -> dict[str, Any]:
        """What `results.json` holds."""
        known = {name: getattr(self, name) for name in FIELDS}
        return {"schema": SCHEMA, **known, **self.extra}

    @classmethod
    def from_json(cls, content: Any) -> "Results":
        """The record that a file holds."""
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        content = dict(content)
        schema = content.pop("schema", 1)
        if schema not in range(1, SCHEMA + 1):
            raise ValueError(f"'schema' is {schema!r}, and this version reads up to {SCHEMA}")
        if isinstance(content.get("absent"), dict):  # of older files: set -> what stood in for it
            content["absent"] = list(content["absent"])
        extra = {k: content.pop(k) for k in list(content) if k not in FIELDS}
        if problem := fields_problem(content, cls):
            raise ValueError(problem)
        results = cls(**content, extra=extra)
        for problem in _mismatches(results):
            raise ValueError(problem)
        return results


FIELDS = tuple(one.name for one in dataclasses.fields(Results) if one.name != "extra")
"""The names in `results.json`, in order."""


def _mismatches(results: Results) -> Iterator[str]:
    """How the parts of a record contradict each other."""
    if not results.results:
        yield "it holds no detector"
    for name in (results.in_distribution, *results.groups, *results.shifted):
        if results.counts.get(name, 0) < 1:
            yield f"'counts' lacks the set {name!r}"
    for key, kind in (("name", str), ("parameters", int)):
        if not isinstance(results.model.get(key), kind):
            yield f"'model' lacks {key!r}"
    for key in ("input_size", "mean", "std"):
        if not isinstance(results.model.get(key, []), list):
            yield f"{key!r} of 'model' must be a list"
    yield from _row_problems(results.groups, results.results, results.averages)
    if full := results.full_spectrum:
        if set(full) != {"results", "averages"} or not results.shifted:
            yield "'full_spectrum' must hold 'results' and 'averages', beside 'shifted'"
        if set(full["results"]) != set(results.results):
            yield "the detectors of 'full_spectrum' are others"
        for problem in _row_problems(results.groups, full["results"], full["averages"]):
            yield f"in 'full_spectrum', {problem}"
    for measured in (*results.intervals.values(), *results.average_intervals.values()):
        for intervals in measured.values():
            if any(len(ends) != 2 for ends in intervals.values()):
                yield "'intervals' must be pairs of numbers"
    if results.bootstrap and not {"resamples", "seed"} <= set(results.bootstrap):
        yield "'bootstrap' lacks 'resamples' or 'seed'"


def _row_problems(groups: Mapping[str, str], results: Rows, averages: Rows) -> Iterator[str]:
    """What is wrong with metrics by set and by group."""
    for detector, rows in results.items():
        means = averages.get(detector, {})
        if set(rows) != set(groups):
            yield f"the sets of detector {detector!r} are not those of 'groups'"
        if set(means) != set(groups.values()):
            yield f"the averages of detector {detector!r} are not those of 'groups'"
        for name, row in (rows | means).items():
            if "auroc" not in row or not all(0 <= value <= 1 for value in row.values()):
                yield f"not all metrics of {detector!r} on {name!r} are numbers from 0 to 1"


REPORTED_TIES = 0.01  # share of a set's scores that may tie at FPR95's threshold unreported


def measure(job: Job, arrays: Arrays) -> dict[str, Any]:
    """Fields of `Results`: how well each detector separates the sets, and the classifier."""
    known = arrays[job.found.test.name]
    correct = _correct(known[PREDICTION])
    ties: dict[str, dict[str, int]] = {}
    for detector, name, inside, outside in _pairs(job, arrays):
        if (tied := metrics.tied_at_threshold(inside, outside)) > REPORTED_TIES * len(outside):
            ties.setdefault(detector, {})[name] = tied
    fields: dict[str, Any] = {
        **_rows(job, arrays),
        "ties": ties,
        "accuracy": _accuracy(known[PREDICTION]),
        "calibration_error": {
            name: metrics.calibration_error(known[name]["score"], correct)
            for name, d in job.detectors.items()
            if d.name in PROBABILITIES and correct is not None
        },
    }
    if shifted := [images.name for images in job.found.shifted]:
        # the full spectrum (Yang et al., IJCV 2023)
        fields["shifted"] = {name: _accuracy(arrays[name][PREDICTION]) for name in shifted}
        fields["full_spectrum"] = _rows(job, arrays, shifted)
    return fields


def _pairs(job: Job, arrays: Arrays, shifted: Sequence[str] = ()) -> Iterator[tuple]:
    """Detector, OOD set, the scores in distribution (and shifted), and those of the OOD set."""
    for detector in job.detectors:
        names = (job.found.test.name, *shifted)
        known = np.concatenate([arrays[name][detector]["score"] for name in names])
        for name in job.groups:
            yield detector, name, known, arrays[name][detector]["score"]


def _rows(job: Job, arrays: Arrays, shifted: Sequence[str] = ()) -> dict[str, Rows]:
    """Metrics by set and by group, with these sets as in-distribution too."""
    predicted = [arrays[name][PREDICTION] for name in (job.found.test.name, *shifted)]
    correct = _correct({k: np.concatenate([p[k] for p in predicted]) for k in ("score", "label")})
    results: Rows = {detector: {} for detector in job.detectors}
    for detector, name, inside, outside in _pairs(job, arrays, shifted):
        results[detector][name] = metrics.evaluate(inside, outside, correct)
    averages = {d: metrics.averages(rows, job.groups) for d, rows in results.items()}
    return {"results": results, "averages": averages}


def intervals(job: Job, arrays: Arrays, *, resamples: int = 200, seed: int = 0) -> dict[str, Any]:
    """Fields of `Results`: bootstrap confidence intervals of what `measure` gives."""
    correct = _correct(arrays[job.found.test.name][PREDICTION])
    chosen = [name for name in metrics.measurable(correct) if METRICS[name].report]
    options: dict[str, Any] = {"metrics": chosen, "resamples": resamples, "seed": seed}
    drawn: dict[str, dict] = {detector: {} for detector in job.detectors}
    # one seed for all sets, so that the same in-distribution images are drawn for each of them
    for detector, name, inside, outside in _pairs(job, arrays):
        drawn[detector][name] = metrics.draws(inside, outside, correct=correct, **options)
    means = {detector: metrics.averages(rows, job.groups) for detector, rows in drawn.items()}
    return {
        "intervals": {d: metrics.intervals(rows) for d, rows in drawn.items()},
        "average_intervals": {d: metrics.intervals(rows) for d, rows in means.items()},
        "bootstrap": {"resamples": resamples, "seed": seed, "level": 0.95},
    }


def _right(predicted: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether the class is predicted correctly of each image that has a label."""
    return (predicted["score"] == predicted["label"])[predicted["label"] >= 0]


def _correct(predicted: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Which images are classified correctly; None where not all have a label."""
    right = _right(predicted)
    return right if len(right) == len(predicted["label"]) else None


def _accuracy(predicted: Mapping[str, np.ndarray]) -> float | None:
    right = _right(predicted)
    return float(right.mean()) if len(right) else None


def chance_warning(predicted: Mapping[str, np.ndarray], classes: int) -> str | None:
    """A warning where a classifier is not better than chance, by a binomial test at 0.1 %."""
    right = _right(predicted)
    correct, count = int(right.sum()), len(right)
    most = binom.ppf(0.999, count, 1 / classes) if count else 0  # of one that guesses
    if correct > most or most == count:  # or too few images to say
        return None
    return (
        f"the accuracy is {correct / count:.2%}, near chance for {classes} classes: labels,"
        " normalisation and weights do not belong together, and the scores below mean nothing"
    )


def order_note(images: ImageSet, predicted: Mapping[str, np.ndarray]) -> list[str]:
    """Say what the accuracy would be under the other order of numbered class folders."""
    labels = predicted["label"]
    if not images.other_labels or (labels < 0).any():
        return []
    other = np.asarray(images.other_labels)[labels]
    taken, text = (float(np.mean(predicted["score"] == truth)) for truth in (labels, other))
    return [
        f"{images.name}: its class folders are numbers and taken in their order, accuracy"
        f" {taken:.2%}; sorted as text (0, 1, 10, ...), as PyTorch's ImageFolder does, it would be"
        f" {text:.2%}"
    ]
