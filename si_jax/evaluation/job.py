"""What is evaluated on what: a network, its detectors, and the sets of images."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from si_jax.data.image_set import ImageSet
from si_jax.detectors import DETECTORS, Detector, default_options, make_detector
from si_jax.evaluation.keys import model_facts
from si_jax.evaluation.scorer import PREDICTION
from si_jax.evaluation.store import check_distinct, check_names
from si_jax.model import Model


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
