"""The main tables of the study of S&I-C: the calibrated forms among all other detectors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.image_set import UnreadableImage
from si_jax.detectors import DETECTORS, Detector, make_detector
from si_jax.evaluation import benchmark, bootstrap, fitting
from si_jax.evaluation.store import Store
from si_jax.model import Model
from study import measures
from study.sets import Case

FORMS = ("hinge", "sum")
CALIBRATED = ("si-c", "si-c-forward")
"""The detectors that are evaluated in each of `FORMS`, as `<name>-<form>`; one fit serves all."""

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    **{name: {f"{name}-{form}": {"form": form} for form in FORMS} for name in CALIBRATED},
    "lts": {"lts": {}, "lts-85": {"percentile": 85.0}},
    "nci": {"nci": {}, "nci-0.01": {"alpha": 0.01}},
    "mahalanobis": {"mahalanobis": {}, "mahalanobis-normalised": {"normalise": True}},
    "relative-mahalanobis": {
        "relative-mahalanobis": {},
        "relative-mahalanobis-normalised": {"normalise": True},
    },
}
"""Detector -> label -> options, where the defaults are not all that is compared."""

YARDSTICK = "msp"
"""What differences are taken from; always evaluated."""

Scores = Mapping[str, Mapping[str, np.ndarray]]
"""Set -> detector -> (N,) scores."""


def check_names(names: Sequence[str]) -> None:
    """Raise a ValueError if a detector is unknown or there is none."""
    if not names or (unknown := [name for name in names if name not in DETECTORS]):
        given = ", ".join(map(repr, unknown)) if names else "nothing"
        raise ValueError(f"detectors: {given}: choose among {', '.join(DETECTORS)}")


def evaluate(
    case: Case,
    names: Sequence[str],
    directory: Path,
    *,
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
) -> tuple[dict[str, Any], Scores]:
    """Fit, score and measure the detectors on a case; what is stored is not computed again.

    A detector that cannot be made, fitted or scored on this network is left out and named.

    Args:
        case: network and sets.
        names: keys of `DETECTORS`; `msp` is added.
        directory: where fits and scores are kept.
        resamples: bootstrap draws.
        seed: their seed.
        batch_size: images per batch; None for each detector's default.

    Returns:
        What `si_jax.evaluation.benchmark.evaluate` returns, with more: `"failures"` (detector ->
        reason),
        `"intervals"` (detector -> set or group -> metric -> [low, high]) and `"over_msp"`
        (detector -> group -> metric -> [difference, low, high]), all fractions; and the scores.

    Raises:
        ValueError: if an image cannot be read.
    """
    names = tuple(dict.fromkeys((*names, YARDSTICK)))
    detectors, failures = make(names, case.model, batch_size)
    failures |= _fit(case, detectors, directory / "fits")
    detectors = {name: d for name, d in detectors.items() if name not in failures}
    store = Store(directory / "scores")
    try:
        report, arrays = benchmark.evaluate(case.job(detectors), store)
    except UnreadableImage:
        raise
    except ValueError:
        unfit = _each(detectors, lambda one: benchmark.evaluate(case.job(one), store))
        failures |= unfit
        detectors = {name: d for name, d in detectors.items() if name not in unfit}
        report, arrays = benchmark.evaluate(case.job(detectors), store)
    scores = {
        image_set: {name: by_detector[name]["score"] for name in detectors}
        for image_set, by_detector in arrays.items()
    }
    return dict(report) | {"failures": failures} | _compare(
        case, scores, report, resamples, seed
    ), scores


def make(
    names: Sequence[str], model: Model, batch_size: int | None = None
) -> tuple[dict[str, Detector], dict[str, str]]:
    """The detectors in each of their `VARIANTS`; and for those that cannot be made, the reason."""
    detectors, failures = {}, {}
    for name in names:
        variants: dict[str, dict[str, Any]] = VARIANTS.get(name, {name: {}})
        for label, options in variants.items():
            try:
                detectors[label] = make_detector(name, model, batch_size=batch_size, **options)
            except ValueError as error:
                failures[label] = str(error)
    return detectors, failures


def _fit(case: Case, detectors: Mapping[str, Detector], directory: Path) -> dict[str, str]:
    """Fit in place; returns why some cannot be. A fit of S&I-C serves all of its forms."""
    shared = {f"{n}-{form}": f"{n}-{FORMS[0]}" for n in CALIBRATED for form in FORMS[1:]}
    own = {name: d for name, d in detectors.items() if name not in shared}

    def fit(some: Mapping[str, Detector]) -> None:
        fitting.fit_detectors(
            some,
            case.draws[0],
            case.resolved.preprocessing,
            facts=case.job({}).score_facts,
            directory=directory,
        )

    failures = {}
    try:
        fit(own)
    except UnreadableImage:
        raise
    except ValueError:
        failures = _each({n: d for n, d in own.items() if d.needs_fit}, fit)
    for name, source in shared.items():
        if source in failures:
            failures[name] = failures[source]
        elif name in detectors:
            detectors[name].load_state(detectors[source].check_fitted())
    return failures


def _each(detectors: Mapping[str, Detector], run) -> dict[str, str]:
    """Which detectors `run` refuses one by one, and why."""
    failures = {}
    for name, detector in detectors.items():
        try:
            run({name: detector})
        except UnreadableImage:
            raise
        except ValueError as error:
            failures[name] = str(error)
    return failures


def _compare(case: Case, scores: Scores, report, resamples: int, seed: int) -> dict[str, Any]:
    id_scores, means = scores[case.id_set.name], report["averages"]
    draws = {
        name: measures.drawn(
            id_scores[name],
            {image_set: scores[image_set][name] for image_set in case.ood_sets},
            case.groups,
            resamples=resamples,
            seed=seed,
        )
        for name in id_scores
    }
    rival = draws[YARDSTICK], means[YARDSTICK]
    return {
        "intervals": {name: bootstrap.intervals(rows) for name, rows in draws.items()},
        "over_msp": {
            name: measures.differences(rows, rival[0], means[name], rival[1])
            for name, rows in draws.items()
        },
        "bootstrap": {"resamples": resamples, "seed": seed, "level": 0.95},
    }
