"""What is evaluated on what: a network, its detectors, and the sets of images."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from si_jax.data.image_set import ImageSet
from si_jax.detectors import DETECTORS, Detector, default_options, make_detector
from si_jax.evaluation.keys import model_facts
from si_jax.evaluation.scoring import PREDICTION
from si_jax.evaluation.store import check_distinct, check_names
from si_jax.model import Model


@dataclass(frozen=True)
class Job:
    """What is evaluated on what.

    Attributes:
        model: the classifier.
        detectors: label -> detector of that model.
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

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Label -> the detector's settings; with its name, as `detector`, where that is another."""
        return {
            label: ({} if label == d.name else {"detector": d.name}) | d.settings
            for label, d in self.detectors.items()
        }

    @functools.cached_property
    def score_facts(self) -> dict[str, Any]:
        """What determines the scores beside detector and images, for the keys of stored files."""
        return {**self.facts, "transform": str(self.transform), **model_facts(self.model)}


Detectors = Sequence[str] | Mapping[str, str | tuple[str, Mapping[str, Any]]]
"""Names of detectors; or label -> name, or name and options: `{"lts-85": ("lts", {"percentile":
85})}`."""


def labelled(detectors: Detectors) -> dict[str, tuple[str, dict[str, Any]]]:
    """Label -> name and options of each detector; a name is its own label."""
    if not isinstance(detectors, Mapping):
        check_distinct(detectors, "detector")
        detectors = {name: name for name in detectors}
    found = {}
    for label, value in detectors.items():
        match (value, {}) if isinstance(value, str) else value:
            case (str(name), Mapping() as options):
                found[label] = (name, dict(options))
            case _:
                raise ValueError(f"detector {label!r} (={value!r}): give a name or (name, options)")
    if unknown := [name for name, _ in found.values() if name not in DETECTORS]:
        raise ValueError(
            f"unknown detector {', '.join(map(repr, unknown))}: choose among {', '.join(DETECTORS)}"
        )
    check_names(found, "detector")
    for label, (name, _) in found.items():
        if label != name and label in (*DETECTORS, PREDICTION):
            raise ValueError(f"{label!r} means something else than {name}: choose another label")
    return found


def make_detectors(
    detectors: Detectors,
    model: Model,
    *,
    common: Mapping[str, Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int | None = None,
) -> dict[str, Detector]:
    """Label -> detector; `common` is for those that take it, `options` label -> further options."""
    common, options, chosen = common or {}, options or {}, labelled(detectors)
    if stray := [label for label in options if label not in chosen]:
        raise ValueError(f"an option is set for {', '.join(stray)}, which is not evaluated")
    for key in common:
        if not any(key in default_options(name) for name, _ in chosen.values()):
            names = ", ".join(chosen)
            raise ValueError(f"none of {names} takes the option {key.replace('_', '-')}")
    made = {}
    for label, (name, own) in chosen.items():
        if twice := own.keys() & options.get(label, {}).keys():
            raise ValueError(f"the option {min(twice)} of {label} is given twice: choose one")
        taken = {k: v for k, v in common.items() if k in default_options(name)}
        given = taken | own | dict(options.get(label, {}))
        made[label] = make_detector(name, model, batch_size=batch_size, **given)
    return made


def check_job(job: Job) -> None:
    """Refuse sets and detectors that would share a name, or whose names cannot be used."""
    names = [image_set.name for image_set in job.sets]
    check_distinct(names)
    check_names(names)
    if PREDICTION in job.detectors:
        raise ValueError(f"no detector may be called {PREDICTION!r}: choose another name")
