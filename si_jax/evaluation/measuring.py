"""What the scores of a job's sets show: metrics, their averages and intervals, the accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binom

from si_jax.data.image_set import ImageSet
from si_jax.evaluation import bootstrap, metrics
from si_jax.evaluation.job import Job
from si_jax.evaluation.metrics import METRICS, PROBABILITIES, calibration_error
from si_jax.evaluation.results import Rows
from si_jax.evaluation.store import PREDICTION

Arrays = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
"""Set -> detector -> name -> array with a row for each image."""

REPORTED_TIES = 0.01
"""Share of a set's scores that may tie at the threshold of FPR95 without being reported."""


def measure(job: Job, arrays: Arrays) -> dict[str, Any]:
    """Fields of `Results`: how well each detector separates the sets, and the classifier."""
    id_arrays = arrays[job.id_set.name]
    correct = _correct(id_arrays[PREDICTION])
    pairs, rows = _measured(job, arrays, [job.id_set.name])
    return {
        "results": rows,
        "averages": _by_group(rows, job.groups),
        "ties": {detector: many for detector, sets in pairs.items() if (many := _ties(sets))},
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


def intervals(job: Job, arrays: Arrays, *, resamples: int = 200, seed: int = 0) -> dict[str, Any]:
    """Fields of `Results`: bootstrap confidence intervals of what `measure` gives."""
    id_arrays = arrays[job.id_set.name]
    correct = _correct(id_arrays[PREDICTION])
    chosen = [
        name
        for name, metric in METRICS.items()
        if metric.report and (correct is not None or not metric.needs_correct)
    ]
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "correct": correct}
    measured: dict[str, dict[str, Any]] = {}
    means: dict[str, dict[str, Any]] = {}
    for detector in job.detectors:
        # one seed for all sets, so that the same in-distribution images are drawn for each of them
        drawn = {
            s.name: bootstrap.draws(
                id_arrays[detector]["score"],
                arrays[s.name][detector]["score"],
                metrics=chosen,
                **options,
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
    return {name: n for name, n in tied.items() if n > REPORTED_TIES * len(pairs[name][1])}


def _correct(predicted: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Which images are classified correctly; None where not all have a label."""
    if not (predicted["label"] >= 0).all():
        return None
    return predicted["score"] == predicted["label"]


def _accuracy(predicted: Mapping[str, np.ndarray]) -> float | None:
    correct, count = _correct_of(predicted)
    return correct / count if count else None


def _correct_of(predicted: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """How many images are classified correctly, of how many with a label."""
    has_label = predicted["label"] >= 0
    return int((predicted["score"] == predicted["label"])[has_label].sum()), int(has_label.sum())


def chance_warning(predicted: Mapping[str, np.ndarray], classes: int) -> str | None:
    """A warning where a classifier is not better than chance, by a binomial test at 0.1 %."""
    correct, count = _correct_of(predicted)
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
