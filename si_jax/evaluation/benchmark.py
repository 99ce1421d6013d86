"""A whole evaluation: every detector on a benchmark's sets, as one record of results."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from si_jax import cli
from si_jax.data.image_set import ImageSet
from si_jax.detectors import DETECTORS, Detector, default_options, make_detector
from si_jax.evaluation import bootstrap, metrics
from si_jax.evaluation.calibration import PROBABILITIES, calibration_error
from si_jax.evaluation.keys import model_facts
from si_jax.evaluation.metrics import METRICS
from si_jax.evaluation.processes import Processes
from si_jax.evaluation.results import Results, Rows
from si_jax.evaluation.scorer import PREDICTION, Scorer, prediction
from si_jax.evaluation.scoring import score_set, score_share
from si_jax.evaluation.store import Store, check_distinct, check_names
from si_jax.model import Model

Arrays = dict[str, dict[str, dict[str, np.ndarray]]]
"""Set -> detector -> name -> array with a row for each image."""

TOLD_TIES = 0.01
"""Share of a set's scores that may tie at the threshold of FPR95 without being told."""


@dataclass(frozen=True)
class Job:
    """What is evaluated on what.

    Attributes:
        model: the classifier.
        detectors: name -> detector of that model.
        id_set: in-distribution images, with labels where the accuracy is to be known.
        ood_sets: name -> out-of-distribution images.
        groups: name of the OOD set -> the group it is averaged in, such as `"far"`.
        transform: a decoded image -> an image in the model's input size.
        facts: what else names this evaluation: `benchmark`, `protocol` and `preprocessing`, each a
            text.
        shifted_sets: name -> in-distribution images that look otherwise. Where there are some, all
            is measured a second time with them counted as in-distribution: the full spectrum.
    """

    model: Model
    detectors: Mapping[str, Detector]
    id_set: ImageSet
    ood_sets: Mapping[str, ImageSet]
    groups: Mapping[str, str]
    transform: Callable[[np.ndarray], np.ndarray]
    facts: Mapping[str, str] = field(default_factory=dict)
    shifted_sets: Mapping[str, ImageSet] = field(default_factory=dict)

    @property
    def sets(self) -> tuple[ImageSet, ...]:
        """All sets: in-distribution, out-of-distribution, shifted."""
        return (self.id_set, *self.ood_sets.values(), *self.shifted_sets.values())

    @functools.cached_property
    def score_facts(self) -> dict[str, Any]:
        """What determines the scores beside detector and images, for the keys of stored files."""
        return {**self.facts, "transform": str(self.transform), **model_facts(self.model)}


def check_detectors(names: Sequence[str]) -> None:
    """Refuse names that are not in `si_jax.DETECTORS`.

    Raises:
        ValueError: naming them.
    """
    if unknown := [name for name in names if name not in DETECTORS]:
        raise ValueError(
            f"unknown detector {', '.join(map(repr, unknown))}: choose among {', '.join(DETECTORS)}"
        )


def make_detectors(
    names: Sequence[str],
    model: Model,
    *,
    common: Mapping[str, Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int | None = None,
) -> dict[str, Detector]:
    """Name -> detector.

    Args:
        names: keys of `si_jax.DETECTORS`.
        model: the network.
        common: options for those detectors that take them.
        options: detector's name -> options for it alone.
        batch_size: images per batch; None for each detector's default.

    Raises:
        ValueError: as `make_detector`; or if an option is meant for a detector not in `names`, or
            taken by none.
    """
    common, options = common or {}, options or {}
    check_detectors(names)
    if stray := [name for name in options if name not in names]:
        raise ValueError(f"an option is set for {', '.join(stray)}, which is not evaluated")
    for key in common:
        if not any(key in default_options(name) for name in names):
            raise ValueError(f"none of {', '.join(names)} takes the option {key.replace('_', '-')}")
    return {
        name: make_detector(
            name,
            model,
            batch_size=batch_size,
            **{k: v for k, v in common.items() if k in default_options(name)},
            **options.get(name, {}),
        )
        for name in dict.fromkeys(names)
    }


def score_shares(
    job: Job, store: Store, processes: Processes, **options: Any
) -> dict[str, tuple[int, float]]:
    """Score this process's share of all sets, and wait until the others have done theirs.

    Args:
        job: what is evaluated, the same in all processes.
        store: where score files are kept, the same for all.
        processes: all of them.
        **options: as for `si_jax.evaluation.scoring.score_share`.

    Returns:
        Set -> images gone through by all processes, and the seconds of the slowest.

    Raises:
        ValueError: as `evaluate`.
    """
    scorer = _scorer(job)
    done = {
        image_set.name: score_share(
            scorer,
            image_set,
            job.transform,
            facts=job.score_facts,
            store=store,
            processes=processes,
            **options,
        )
        for image_set in job.sets
    }
    shares = processes.gather("scored", done)
    return {
        name: (sum(s[name][0] for s in shares), max(s[name][1] for s in shares)) for name in done
    }


def _scorer(job: Job) -> Scorer:
    """The detectors, and the classifier's prediction beside them."""
    check_job(job)
    size = max(d.batch_size for d in job.detectors.values())
    return Scorer({**job.detectors, PREDICTION: prediction(job.model, size)})


def evaluate(
    job: Job,
    store: Store,
    *,
    batch_size: int = 64,
    workers: int = 4,
    skip_unreadable: bool = False,
    shared: Mapping[str, tuple[int, float]] | None = None,
) -> tuple[Results, Arrays]:
    """Score all sets and measure how well each detector tells them apart.

    Args:
        job: what to evaluate.
        store: where score files are kept; what is there already is not computed again.
        batch_size: images decoded at a time.
        workers: threads that decode.
        skip_unreadable: whether to leave out images that cannot be read; otherwise an error.
        shared: what `score_shares` returned, where several processes have scored the sets.

    Returns:
        The results, with fractions; and set -> detector -> arrays.

    Raises:
        ValueError: if two sets are called alike, or a set or a detector has a name that cannot be
            used, before any image is scored; or as `si_jax.evaluation.scoring.score_set`.
    """
    model, scorer = job.model, _scorer(job)
    began = time.monotonic()
    scored = {}
    for image_set in job.sets:
        scored[image_set.name] = score_set(
            scorer,
            image_set,
            job.transform,
            facts=job.score_facts,
            store=store,
            batch_size=batch_size,
            workers=workers,
            skip_unreadable=skip_unreadable,
        )
        if image_set is job.id_set or image_set.name in job.shifted_sets:
            _check_labels(image_set.name, scored[image_set.name].arrays[PREDICTION], model)
    arrays = {name: one.arrays for name, one in scored.items()}
    id_arrays = arrays[job.id_set.name]
    correct = _correct(id_arrays[PREDICTION])
    pairs, rows = _measured(job, arrays, [job.id_set.name])
    computed = {name: one.computed for name, one in scored.items()}
    seconds = {name: one.seconds for name, one in scored.items()}
    for name, (images, duration) in (shared or {}).items():
        computed[name] += images
        seconds[name] += duration
    results = Results(
        results=rows,
        averages={detector: averages(row, job.groups) for detector, row in rows.items()},
        groups=dict(job.groups),
        counts={name: len(sets[PREDICTION]["score"]) for name, sets in arrays.items()},
        model={
            "name": model.name,
            "classes": model.num_classes,
            "parameters": model.num_parameters,
            "input_size": list(model.input_size),
            "mean": list(model.mean),
            "std": list(model.std),
            "precision": model.precision,
            "weights_sha256": job.score_facts["weights"],
        },
        settings={name: d.settings for name, d in job.detectors.items()},
        in_distribution=job.id_set.name,
        benchmark=job.facts.get("benchmark", ""),
        protocol=job.facts.get("protocol", ""),
        preprocessing=job.facts.get("preprocessing", str(job.transform)),
        checkpoint="",
        seed=0,
        accuracy=_accuracy(id_arrays[PREDICTION]),
        calibration_error={
            name: calibration_error(id_arrays[name]["score"], correct)
            for name, d in job.detectors.items()
            if d.name in PROBABILITIES and correct is not None
        },
        ties={detector: told for detector, sets in pairs.items() if (told := _ties(sets))},
        device=f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        unreadable={name: list(s.unreadable) for name, s in scored.items() if s.unreadable},
        computed=computed,
        seconds={**seconds, "total": time.monotonic() - began},
        versions=cli.versions(),
        **_full_spectrum(job, arrays),
    )
    return results, arrays


def _measured(job: Job, arrays: Arrays, id_names: Sequence[str]) -> tuple[dict, Rows]:
    """Detector -> OOD set -> scores of the in-distribution sets and of it; and the metrics."""
    predicted = [_correct(arrays[name][PREDICTION]) for name in id_names]
    correct = None if any(one is None for one in predicted) else np.concatenate(predicted)
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
    means = {detector: averages(row, job.groups) for detector, row in rows.items()}
    return {
        "shifted": {name: _accuracy(arrays[name][PREDICTION]) for name in shifted},
        "full_spectrum": {"results": rows, "averages": means},
    }


def check_job(job: Job) -> None:
    """Refuse sets and detectors that would share a name, or whose names cannot be used.

    Raises:
        ValueError: naming it.
    """
    names = [image_set.name for image_set in job.sets]
    check_distinct(names)
    check_names(names)
    if PREDICTION in job.detectors:
        raise ValueError(f"no detector may be called {PREDICTION!r}: choose another name")


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
    """Bootstrap confidence intervals of what `evaluate` measured.

    Args:
        job: what was evaluated.
        arrays: the second result of `evaluate`.
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


def chance_warning(accuracy: float | None, classes: int) -> str | None:
    """A warning where a classifier is not clearly better than chance."""
    if accuracy is None or accuracy > 3 / classes + 0.02:
        return None
    return (
        f"the accuracy is {accuracy:.2%}, near chance for {classes} classes: labels, normalisation"
        " and weights do not belong together, and the scores below mean nothing"
    )


def _ties(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, int]:
    """Set -> how many of its scores tie at the threshold of FPR95, where they are many."""
    tied = {name: metrics.tied_at_threshold(*pair) for name, pair in pairs.items()}
    return {name: n for name, n in tied.items() if n > TOLD_TIES * len(pairs[name][1])}


def _check_labels(name: str, predicted: Mapping[str, np.ndarray], model: Model) -> None:
    """Refuse in-distribution labels that are no class of the network's."""
    most = int(predicted["label"].max(initial=-1))
    if most >= model.num_classes:
        raise ValueError(
            f"{name} has the label {most}, but {model.name} has the classes 0 to"
            f" {model.num_classes - 1}: give the labels that it was trained with"
        )


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
