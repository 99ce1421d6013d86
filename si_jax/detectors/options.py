"""Options of detectors: the one place that converts and checks them, by their annotations.

A builder's signature says what each option may be: `k: Count`, `percentile: Annotated[float,
Range("[0, 100)")]`, `form: Annotated[str, OneOf(FORMS)]`, `dim: Count | None`. Values come from
Python, from NumPy (grids) or from a command line as text; text is read as what the option is.
"""

import contextlib
import inspect
import json
import math
import numbers
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np


@dataclass(frozen=True)
class Range:
    """Limits of a number, in mathematical notation: `"[0, 100)"`; `inf)` asks for a finite one."""

    notation: str

    def holds(self, value: int | float) -> bool:
        """Whether `value` lies inside."""
        low, high = (float(end) for end in self.notation[1:-1].split(","))
        above = value >= low if self.notation[0] == "[" else value > low
        return above and (value <= high if self.notation[-1] == "]" else value < high)

    def __str__(self) -> str:
        low, high = (end.strip() for end in self.notation[1:-1].split(","))
        if high != "inf":
            return f"in {self.notation}"
        return f"of at least {low}" if self.notation[0] == "[" else f"above {low}"


@dataclass(frozen=True)
class OneOf:
    """The texts that an option may be."""

    values: tuple[str, ...]

    def __init__(self, values: Iterable[str]):
        object.__setattr__(self, "values", tuple(values))

    def holds(self, value: str) -> bool:
        """Whether `value` is one of them."""
        return value in self.values


Count = Annotated[int, Range("[1, inf)")]
"""A whole number of at least 1."""

Percentile = Annotated[float, Range("[0, 100)")]
"""A share of a whole, in per cent, that leaves something."""

Step = Annotated[float, Range("[0, inf)")]
"""A finite length, which may be 0."""

Positive = Annotated[float, Range("(0, inf)")]
"""A finite number above 0."""


def convert(annotation: Any, name: str, value: Any) -> Any:
    """A value as an annotation asks, `Range` and `OneOf` included; without one, anything goes.

    Whole numbers and numbers may be NumPy's (also arrays of no dimension), and any may be text:
    `"5"`, `"1/255"`, `"inf"`, `"none"`, `'["bn1", "bn2"]'`.
    """
    if annotation is inspect.Parameter.empty or annotation is Any:
        return value
    shown = value
    for kind, limits in _alternatives(annotation):
        with contextlib.suppress(ValueError, TypeError, OverflowError, ZeroDivisionError):
            converted = _CONVERTERS[kind](value)
            if all(limit.holds(converted) for limit in limits):
                return converted
            shown = converted
    raise ValueError(f"{name} (={shown!r}) must be {describe(annotation)}")


def convert_all(build: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a function, each as its annotation asks; see `convert`."""
    parameters = inspect.signature(build).parameters
    return {key: convert(parameters[key].annotation, key, v) for key, v in options.items()}


def describe(annotation: Any) -> str:
    """What an option may be, in words: "a whole number of at least 1, or none"."""
    words = []
    for kind, limits in _alternatives(annotation):
        choices = next((limit.values for limit in limits if isinstance(limit, OneOf)), None)
        if choices:
            words.append(f"one of {', '.join(choices)}" if len(choices) > 1 else repr(choices[0]))
        else:
            words.append(" ".join([_WORDS[kind], *map(str, limits)]))
    words = [word for word in words if word != _WORDS[Callable]] or words
    words.sort(key=_WORDS[type(None)].__eq__)  # "none" comes last
    return ", or ".join(words)


def _alternatives(annotation: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """(kind, limits) of each member of a union, in the order in which they are tried."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        members = [member for part in get_args(annotation) for member in _alternatives(part)]
    elif origin is Annotated:
        base, *limits = get_args(annotation)
        members = [(kind, (*inner, *limits)) for kind, inner in _alternatives(base)]
    elif origin is Literal:
        members = [(str, (OneOf(get_args(annotation)),))]
    else:
        members = [(origin or annotation, ())]
    order = list(_CONVERTERS)
    return sorted(members, key=lambda member: order.index(member[0]))


def _scalar(value: Any) -> Any:
    """The number in an array of no dimension; anything else as it is."""
    if isinstance(value, np.generic) or (hasattr(value, "ndim") and value.ndim == 0):
        return value.item()
    return value


def _none(value: Any) -> None:
    if value is not None and value not in ("none", "None", "null"):
        raise ValueError
    return None


def _bool(value: Any) -> bool:
    value = _scalar(value)
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else _refuse()


def _int(value: Any) -> int:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral | str):
        raise TypeError
    return int(value)


def _float(value: Any) -> float:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real | str):
        raise TypeError
    if isinstance(value, str) and "/" in value:
        value = Fraction(value)
    value = float(value)
    return _refuse() if math.isnan(value) else value


def _names(value: Any) -> list[str]:
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    texts = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
    return list(value) if texts else _refuse()


def _callable(value: Any) -> Callable:
    return value if callable(value) else _refuse()


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str) else _refuse()


def _refuse() -> Any:
    raise ValueError


_CONVERTERS = {
    type(None): _none,
    bool: _bool,
    int: _int,
    float: _float,
    Sequence: _names,
    Callable: _callable,
    str: _text,
}
"""Kind -> function that converts to it, in the order in which those of a union are tried."""

_WORDS = {
    type(None): "none",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Sequence: "a list of names",
    Callable: "a function",
    str: "a name",
}
