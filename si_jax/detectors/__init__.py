"""Detectors, by what they need, and their table.

In flow a model and, for those that learn, in-distribution images; out flows a `Detector`, which
gives each image a score, higher for in-distribution.
"""

import inspect
import re
from dataclasses import replace
from typing import Any

import numpy as np

from si_jax.detectors.base import NEEDS, Inputs, Method, Plan, check_logits
from si_jax.detectors.detector import Detector
from si_jax.detectors.options import convert_all
from si_jax.detectors.options import describe as describe_option
from si_jax.detectors.table import DETECTORS
from si_jax.model import Model

__all__ = [
    "DETECTORS",
    "Detector",
    "Inputs",
    "Method",
    "Plan",
    "default_options",
    "describe",
    "make_detector",
    "register_detector",
]


def make_detector(
    name: str, model: Model, *, batch_size: int | np.integer | str | None = None, **options: Any
) -> Detector:
    """Apply a detection method to a model.

    Args:
        name: a key of `DETECTORS`.
        model: the network.
        batch_size: images per batch; None for the method's default. Bounds the memory; no score
            depends on it.
        options: the method's options, see `default_options`; Python's values, NumPy's, or text as
            on a command line, see `si_jax.detectors.options`.

    Raises:
        ValueError: if there is no such detector, it does not take an option, or an option's value
            makes no sense.
    """
    if isinstance(model, str) or isinstance(name, Model):
        raise ValueError(
            f"make_detector takes a detector's name, then a model, not {name!r}, {model!r}: try"
            ' make_detector("msp", si_jax.load_model("digits"))'
        )
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}: choose one of {', '.join(DETECTORS)}")
    method = DETECTORS[name]
    known = default_options(name)
    if unknown := [key for key in options if key not in known]:
        raise ValueError(
            f"detector {name!r} does not take the option {', '.join(unknown)}; it takes"
            f" {', '.join(known) or 'none'}"
        )
    check_logits(model)
    options = convert_all(method.build, options)
    for need in method.needs:
        if refuse := NEEDS.get(need):
            refuse(model)
    plan = method.build(model, **options)
    settings = {key: value for key, value in {**known, **options}.items() if value is not None}
    plan = replace(plan, settings=settings | dict(plan.settings))
    detector = Detector(name, model, plan, method.batch_size if batch_size is None else batch_size)
    detector.options = options
    detector.version = method.version
    return detector


def register_detector(name: str, method: Method) -> None:
    """Add a custom method to `DETECTORS`, where `make_detector` and the commands find it.

    Its scores and fits are stored in files only if it names a `version`; raise that whenever a
    change of yours changes its scores, since what is stored under it is taken for current.

    Args:
        name: what it is called: lower-case letters, digits and `-`, as it becomes a file's name.
        method: how it is built; its function takes the model, then options by keyword, and returns
            a `Plan`, as in the example of `si_jax/detectors/README.md`.

    Raises:
        ValueError: if the name is taken or of another form, or the method's function takes
            anything but the model and keywords with defaults.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name (={name!r}) must be lower-case letters, digits and single '-'")
    if name in DETECTORS:
        raise ValueError(f"name (={name!r}) is taken: choose another, or delete it from DETECTORS")
    _, *options = inspect.signature(method.build).parameters.values()
    for option in options:
        if option.kind is not option.KEYWORD_ONLY or option.default is option.empty:
            raise ValueError(
                f"method: its function's argument {option.name!r} must be a keyword with a default"
            )
    DETECTORS[name] = method


def describe(name: str) -> str:
    """A detector in a few lines: what it is, what it needs, and which values its options take."""
    method = DETECTORS[name]
    lines = [
        f"{name}: {method.summary} ({method.reference})",
        f"    needs: {', '.join(method.needs) or 'the logits alone'}",
    ]
    parameters = inspect.signature(method.build).parameters
    for option, default in default_options(name).items():
        shown = ",".join(default) if isinstance(default, tuple) else default
        shown = "none" if default is None else shown
        lines.append(f"    {option}={shown}: {describe_option(parameters[option].annotation)}")
    return "\n".join(lines)


def default_options(name: str) -> dict[str, Any]:
    """Options of a detector and their defaults."""
    parameters = inspect.signature(DETECTORS[name].build).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
