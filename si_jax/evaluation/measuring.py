"""What the scores of a job's sets tell: metrics, their averages and intervals, the accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from si_jax.evaluation import bootstrap, metrics
from si_jax.evaluation.calibration import PROBABILITIES, calibration_error
from si_jax.evaluation.job import Job
from si_jax.evaluation.metrics import METRICS
from si_jax.evaluation.results import Rows
from si_jax.evaluation.scoring import PREDICTION

Arrays = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
"""Set -> detector -> name -> array with a row for each image."""

TOLD_TIES = 0.01
"""Share of a set's scores that may tie at the threshold of FPR95 without being told."""


def measure(job: Job, arrays: Arrays) -> dict[str, Any]:
    """How well each detector tells the sets apart, and how good the classifier is.

    Args:
        job: what was scored.
        arrays: all that the job's sets were given by its detectors and by `PREDICTION`.

    Returns:
        Fields of `si_jax.evaluation.results.Results`: `results`, `averages`, `ties`, `accuracy`,
        `calibration_error`, and with shifted sets `shifted` and `full_spectrum`.
    """
    id_arrays = arrays[job.id_set.name]
    correct = _correct(id_arrays[PREDICTION])
    pairs, rows = _measured(job, arrays, [job.id_set.name])
    return {
        "results": rows,
        "averages": _by_group(rows, job.groups),
        "ties": {detector: told for detector, sets in pairs.items() if (told := _ties(sets))},
        "accuracy": _accuracy(id_arrays[PREDICTION]),
        "calibration_error": {
            name: calibration_error(id_arrays[name]["score"], correct)
            for name, d in job.detectors.items()
            if d.name in PROBABILITIES and correct is not None
        },
        **_full_spectrum(job, arrays),
    }


def _measured(job: Job, arrays: Arrays, id_names: Sequence[str]) -> tuple[dict, Rows]:
    """Detector -> OOD set -> scores of the in-distribution sets and of it; and the metrics."""
    by_set = [_correct(arrays[name][PREDICTION]) for name in id_names]
    labelled = [one for one in by_set if one is not None]
    correct = np.concatenate(labelled) if len(labelled) == len(by_set) else None
    pairs = {}
    for detector in job.detectors:
        scores = np.concatenate([arrays[name][detector]["score"] for name in id_names])
        pairs[detector] = {
            s.name: (scores, arrays[s.name][detector]["score"]) for s in job.ood_sets.values()
        }
    rows = {
        detector: {name: metrics.evaluate(*pair, correct) for name, pair in sets.items()}
        for detector, sets in pairs.items()
    }
    return pairs, rows


def _full_spectrum(job: Job, arrays: Arrays) -> dict[str, Any]:
    """What is measured with shifted sets as in-distribution (Yang et al., IJCV 2023)."""
    shifted = [s.name for s in job.shifted_sets.values()]
    if not shifted:
        return {}
    _, rows = _measured(job, arrays, [job.id_set.name, *shifted])
    return {
        "shifted": {name: _accuracy(arrays[name][PREDICTION]) for name in shifted},
        "full_spectrum": {"results": rows, "averages": _by_group(rows, job.groups)},
    }


def _by_group(rows: Rows, groups: Mapping[str, str]) -> Rows:
    """Detector -> group -> metric -> mean over the group's sets."""
    return {detector: averages(row, groups) for detector, row in rows.items()}


def averages(
    rows: Mapping[str, Mapping[str, float]], groups: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Group -> metric -> mean over the group's sets."""
    means: dict[str, dict[str, float]] = {}
    for group in dict.fromkeys(groups[name] for name in rows):
        members = [row for name, row in rows.items() if groups[name] == group]
        means[group] = {m: float(np.mean([row[m] for row in members])) for m in members[0]}
    return means


def intervals(
    job: Job,
    arrays: Arrays,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Bootstrap confidence intervals of what `measure` gives.

    Args:
        job: what was evaluated.
        arrays: as for `measure`.
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        `{"intervals": {detector: {ood_set: {metric: [low, high]}}}, "average_intervals": the same
        by group, "bootstrap": ...}`, JSON to go beside the results.
    """
    id_arrays = arrays[job.id_set.name]
    correct = _correct(id_arrays[PREDICTION])
    chosen = [
        name
        for name, metric in METRICS.items()
        if metric.report and (correct is not None or not metric.needs_correct)
    ]
    options: dict[str, Any] = {
        "metrics": chosen,
        "resamples": resamples,
        "seed": seed,
        "correct": correct,
    }
    measured: dict[str, dict[str, Any]] = {}
    means: dict[str, dict[str, Any]] = {}
    for detector in job.detectors:
        # one seed for all sets, so that the same in-distribution images are drawn for each of them
        drawn = {
            s.name: bootstrap.draws(
                id_arrays[detector]["score"], arrays[s.name][detector]["score"], **options
            )
            for s in job.ood_sets.values()
        }
        measured[detector] = bootstrap.intervals(drawn)
        means[detector] = bootstrap.intervals(bootstrap.means(drawn, job.groups))
    return {
        "intervals": measured,
        "average_intervals": means,
        "bootstrap": {"resamples": resamples, "seed": seed, "level": 0.95},
    }


def _ties(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, int]:
    """Set -> how many of its scores tie at the threshold of FPR95, where they are many."""
    tied = {name: metrics.tied_at_threshold(*pair) for name, pair in pairs.items()}
    return {name: n for name, n in tied.items() if n > TOLD_TIES * len(pairs[name][1])}


def _correct(predicted: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Which images are classified correctly; None where not all have a label."""
    if not (predicted["label"] >= 0).all():
        return None
    return predicted["score"] == predicted["label"]


def _accuracy(predicted: Mapping[str, np.ndarray]) -> float | None:
    labelled = predicted["label"] >= 0
    if not labelled.any():
        return None
    return float(np.mean(predicted["score"][labelled] == predicted["label"][labelled]))
