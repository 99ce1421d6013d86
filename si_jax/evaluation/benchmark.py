"""A whole evaluation: every detector on a benchmark's sets, as one record of results."""

import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from si_jax import cli
from si_jax.evaluation.job import Job, check_job
from si_jax.evaluation.measuring import Arrays, measure
from si_jax.evaluation.results import Results
from si_jax.evaluation.scoring import (
    PREDICTION,
    Scorer,
    chunk_count,
    prediction,
    score_chunks,
    score_set,
)
from si_jax.model import Model


def score_share(
    job: Job, directory: Path, share: tuple[int, int], *, skip_unreadable: bool = False
) -> None:
    """Score and store every n-th chunk of all sets.

    Args:
        job: what is evaluated.
        directory: where score files are kept.
        share: which of how many shares, from 1 on.
        skip_unreadable: as for `evaluate`.

    Raises:
        ValueError: as `evaluate`.
    """
    scorer, (k, n) = _scorer(job), share
    first = k - 1
    for image_set in job.sets:
        count = chunk_count(image_set)
        score_chunks(
            scorer,
            image_set,
            job.transform,
            range(first, count, n),
            facts=job.score_facts,
            directory=directory,
            skip_unreadable=skip_unreadable,
        )
        first = (first - count) % n


def _scorer(job: Job) -> Scorer:
    """The detectors, and the classifier's prediction beside them."""
    check_job(job)
    size = max(d.batch_size for d in job.detectors.values())
    return Scorer({**job.detectors, PREDICTION: prediction(job.model, size)})


def evaluate(
    job: Job,
    directory: Path,
    *,
    skip_unreadable: bool = False,
) -> tuple[Results, Arrays]:
    """Score all sets and measure how well each detector tells them apart.

    Args:
        job: what to evaluate.
        directory: where score files are kept; what is there already is not computed again.
        skip_unreadable: whether to leave out images that cannot be read; otherwise an error.

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
            directory=directory,
            skip_unreadable=skip_unreadable,
        )
        if image_set is job.id_set or image_set.name in job.shifted_sets:
            _check_labels(image_set.name, scored[image_set.name].arrays[PREDICTION], model)
    arrays = {name: one.arrays for name, one in scored.items()}
    seconds = {name: one.seconds for name, one in scored.items()}
    results = Results(
        **measure(job, arrays),
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
        settings=job.settings,
        in_distribution=job.id_set.name,
        benchmark=job.facts.get("benchmark", ""),
        protocol=job.facts.get("protocol", ""),
        preprocessing=job.facts.get("preprocessing", str(job.transform)),
        checkpoint="",
        seed=0,
        device=f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        unreadable={name: list(s.unreadable) for name, s in scored.items() if s.unreadable},
        computed={name: one.computed for name, one in scored.items()},
        seconds={**seconds, "total": time.monotonic() - began},
        versions=cli.versions(),
    )
    return results, arrays


def chance_warning(accuracy: float | None, classes: int) -> str | None:
    """A warning where a classifier is not clearly better than chance."""
    if accuracy is None or accuracy > 3 / classes + 0.02:
        return None
    return (
        f"the accuracy is {accuracy:.2%}, near chance for {classes} classes: labels, normalisation"
        " and weights do not belong together, and the scores below mean nothing"
    )


def _check_labels(name: str, predicted: Mapping[str, np.ndarray], model: Model) -> None:
    """Refuse in-distribution labels that are no class of the network's."""
    most = int(predicted["label"].max(initial=-1))
    if most >= model.num_classes:
        raise ValueError(
            f"{name} has the label {most}, but {model.name} has the classes 0 to"
            f" {model.num_classes - 1}: give the labels that it was trained with"
        )
