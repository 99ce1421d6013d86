"""A whole evaluation: every detector on a benchmark's sets, as one dictionary of results."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from si_jax.data.image_set import ImageSet
from si_jax.detectors import DETECTORS, Detector, default_options, make_detector
from si_jax.evaluation import metrics
from si_jax.evaluation.scoring import PREDICTION, Scorer, prediction, score_set
from si_jax.evaluation.store import Store
from si_jax.model import Model
from si_jax.weights.variables import weights_hash


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
        facts: what else names this evaluation (benchmark, protocol, seed), as JSON.
    """

    model: Model
    detectors: Mapping[str, Detector]
    id_set: ImageSet
    ood_sets: Mapping[str, ImageSet]
    groups: Mapping[str, str]
    transform: Callable[[np.ndarray], np.ndarray]
    facts: Mapping[str, Any] = field(default_factory=dict)


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
    if unknown := [name for name in names if name not in DETECTORS]:
        raise ValueError(
            f"unknown detector {', '.join(map(repr, unknown))}: choose among {', '.join(DETECTORS)}"
        )
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


def evaluate(
    job: Job,
    store: Store,
    *,
    batch_size: int = 64,
    workers: int = 4,
    skip_unreadable: bool = False,
) -> tuple[dict[str, Any], dict[str, dict[str, dict[str, np.ndarray]]]]:
    """Score all sets and measure how well each detector tells them apart.

    Args:
        job: what to evaluate.
        store: where score files are kept; what is there already is not computed again.
        batch_size: images decoded at a time.
        workers: threads that decode.
        skip_unreadable: whether to leave out images that cannot be read; otherwise an error.

    Returns:
        The results, as JSON, with `results[detector][ood_set][metric]` in fractions; and
        set -> detector -> arrays.
    """
    detectors = {
        **job.detectors,
        PREDICTION: prediction(job.model, max(d.batch_size for d in job.detectors.values())),
    }
    scorer = Scorer(detectors)
    facts = score_facts(job)
    began = time.monotonic()
    scored = {}
    for image_set in (job.id_set, *job.ood_sets.values()):
        scored[image_set.name] = score_set(
            scorer,
            image_set,
            job.transform,
            facts=facts,
            store=store,
            batch_size=batch_size,
            workers=workers,
            skip_unreadable=skip_unreadable,
        )
    arrays = {name: found.arrays for name, found in scored.items()}
    known = arrays[job.id_set.name]
    results = {
        detector: {
            name: metrics.evaluate(
                known[detector]["score"], arrays[image_set.name][detector]["score"]
            )
            for name, image_set in job.ood_sets.items()
        }
        for detector in job.detectors
    }
    report = {
        "results": results,
        "averages": {detector: averages(rows, job.groups) for detector, rows in results.items()},
        "groups": dict(job.groups),
        "accuracy": _accuracy(known[PREDICTION]),
        "in_distribution": job.id_set.name,
        "counts": {name: len(sets[PREDICTION]["score"]) for name, sets in arrays.items()},
        "model": {
            "name": job.model.name,
            "classes": job.model.num_classes,
            "parameters": job.model.num_parameters,
            "input_size": list(job.model.input_size),
            "mean": list(job.model.mean),
            "std": list(job.model.std),
            "precision": job.model.precision,
            "weights_sha256": facts["weights"],
        },
        "settings": {name: d.settings for name, d in job.detectors.items()},
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        "unreadable": {name: list(s.unreadable) for name, s in scored.items() if s.unreadable},
        "computed": {name: found.computed for name, found in scored.items()},
        "seconds": {
            **{name: found.seconds for name, found in scored.items()},
            "total": time.monotonic() - began,
        },
        **job.facts,
    }
    return report, arrays


def score_facts(job: Job) -> dict[str, Any]:
    """What determines the scores beside detector and images, for the keys of stored files."""
    return {
        **job.facts,
        "weights": weights_hash(job.model.variables),
        "mean": job.model.mean,
        "std": job.model.std,
        "head": job.model.head,
        "module": repr(job.model.module),
        "precision": job.model.precision,
        "input_size": job.model.input_size,
    }


def averages(
    rows: Mapping[str, Mapping[str, float]], groups: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Group -> metric -> mean over the group's sets."""
    found: dict[str, dict[str, float]] = {}
    for group in dict.fromkeys(groups[name] for name in rows):
        members = [row for name, row in rows.items() if groups[name] == group]
        found[group] = {m: float(np.mean([row[m] for row in members])) for m in members[0]}
    return found


def intervals(
    job: Job,
    arrays: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
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
        `{"intervals": {detector: {ood_set: {metric: [low, high]}}}, "bootstrap": ...}`, JSON to go
        beside the results.
    """
    chosen = ("auroc", "fpr95", "fpr95_ood_positive", "aupr_in", "aupr_out", "detection_error")
    options = {"metrics": chosen, "resamples": resamples, "seed": seed}
    known = arrays[job.id_set.name]
    return {
        "intervals": {
            detector: {
                image_set.name: {
                    metric: list(ends)
                    for metric, ends in metrics.bootstrap(
                        known[detector]["score"],
                        arrays[image_set.name][detector]["score"],
                        **options,
                    ).items()
                }
                for image_set in job.ood_sets.values()
            }
            for detector in job.detectors
        },
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


def _accuracy(predicted: Mapping[str, np.ndarray]) -> float | None:
    labelled = predicted["label"] >= 0
    if not labelled.any():
        return None
    return float(np.mean(predicted["score"][labelled] == predicted["label"][labelled]))
