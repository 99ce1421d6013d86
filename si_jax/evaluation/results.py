"""What an evaluation measured, as `results.json` holds it: one typed record with a version."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from si_jax.data.files import fields_problem

SCHEMA = 2
"""Version of the record. Files without one are of version 1, and can be read."""

Number = int | float

Rows = dict[str, dict[str, dict[str, Number]]]
"""Detector -> set or group -> metric -> a fraction."""


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
            raise ValueError(
                f"'schema' is {schema!r}, and this version of si_jax reads up to {SCHEMA}"
            )
        if isinstance(content.get("absent"), dict):  # of older files: set -> what stood in for it
            content["absent"] = list(content["absent"])
        extra = {k: content.pop(k) for k in list(content) if k not in FIELDS}
        if problem := fields_problem(content, cls):
            raise ValueError(problem)
        results = cls(**content, extra=extra)
        if problem := _mismatch(results):
            raise ValueError(problem)
        return results


FIELDS = tuple(one.name for one in dataclasses.fields(Results) if one.name != "extra")
"""The names in `results.json`, in order."""


def _mismatch(results: Results) -> str:
    """How the parts of a record contradict each other; '' if they do not."""
    if not results.results:
        return "it holds no detector"
    for name in (results.in_distribution, *results.groups, *results.shifted):
        if results.counts.get(name, 0) < 1:
            return f"'counts' lacks the set {name!r}"
    for key, kind in (("name", str), ("parameters", int)):
        if not isinstance(results.model.get(key), kind):
            return f"'model' lacks {key!r}"
    for key in ("input_size", "mean", "std"):
        if not isinstance(results.model.get(key, []), list):
            return f"{key!r} of 'model' must be a list"
    if problem := _rows_problem(results.groups, results.results, results.averages):
        return problem
    if full := results.full_spectrum:
        if set(full) != {"results", "averages"} or not results.shifted:
            return "'full_spectrum' must hold 'results' and 'averages', beside 'shifted'"
        if set(full["results"]) != set(results.results):
            return "the detectors of 'full_spectrum' are others"
        if problem := _rows_problem(results.groups, full["results"], full["averages"]):
            return f"in 'full_spectrum', {problem}"
    for measured in (*results.intervals.values(), *results.average_intervals.values()):
        for intervals in measured.values():
            if any(len(ends) != 2 for ends in intervals.values()):
                return "'intervals' must be pairs of numbers"
    if results.bootstrap and not {"resamples", "seed"} <= set(results.bootstrap):
        return "'bootstrap' lacks 'resamples' or 'seed'"
    return ""


def _rows_problem(groups: Mapping[str, str], results: Rows, averages: Rows) -> str:
    """What is wrong with metrics by set and by group; '' if nothing."""
    for detector, rows in results.items():
        if set(rows) != set(groups):
            return f"the sets of detector {detector!r} are not those of 'groups'"
        means = averages.get(detector, {})
        if set(means) != set(groups.values()):
            return f"the averages of detector {detector!r} are not those of 'groups'"
        for name, row in (rows | means).items():
            if "auroc" not in row or not all(0 <= value <= 1 for value in row.values()):
                return f"not all metrics of {detector!r} on {name!r} are numbers from 0 to 1"
    return ""
