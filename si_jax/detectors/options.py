"""Options of detectors: the one place that converts and checks them, by their annotations.

A builder's signature says what each option may be: `k: Count`, `percentile: Annotated[float,
Range("[0, 100)")]`, `form: Annotated[str, tuple(FORMS)]`, `dim: Count | None`. Values come from
Python, from NumPy (grids) or from a command line as text; text is read as what the option is.
"""

import contextlib
import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """Limits of a number, in mathematical notation: `"[0, 100)"`; `inf)` asks for a finite one."""

    notation: str

    def __contains__(self, value: int | float) -> bool:
        low, high = (float(end) for end in self.notation[1:-1].split(","))
        above = value >= low if self.notation[0] == "[" else value > low
        return above and (value <= high if self.notation[-1] == "]" else value < high)

    def __str__(self) -> str:
        low, high = (end.strip() for end in self.notation[1:-1].split(","))
        if high != "inf":
            return f"in {self.notation}"
        return f"of at least {low}" if self.notation[0] == "[" else f"above {low}"


Count = Annotated[int, Range("[1, inf)")]
"""A whole number of at least 1."""

Percentile = Annotated[float, Range("[0, 100)")]
"""A share of a whole, in per cent, that leaves something."""

Step = Annotated[float, Range("[0, inf)")]
"""A finite length, which may be 0."""

Positive = Annotated[float, Range("(0, inf)")]
"""A finite number above 0."""

KINDS: dict[Any, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {
    types.NoneType: ("none", lambda x: x is None, lambda x: None),
    bool: ("true or false", lambda x: isinstance(x, bool), bool),
    int: ("a whole number", lambda x: isinstance(x, Integral) and not isinstance(x, bool), int),
    float: (
        "a number",
        lambda x: isinstance(x, Real) and not isinstance(x, bool) and x == x,
        float,
    ),
    Sequence: (
        "a list of names",
        lambda x: isinstance(x, list | tuple) and all(isinstance(part, str) for part in x),
        list,
    ),
    Callable: ("a function", callable, lambda x: x),
    str: ("a name", lambda x: isinstance(x, str), str),
}
"""Kind -> its name, whether a value is of it, and the value as it; those of a union are tried in
this order."""


def convert(annotation: Any, name: str, value: Any) -> Any:
    """A value as an annotation asks, limits and choices included; without one, anything goes.

    Whole numbers and numbers may be NumPy's (also arrays of no dimension), and any may be text:
    `"5"`, `"1/255"`, `"inf"`, `"none"`, `'["bn1", "bn2"]'`.
    """
    if annotation is inspect.Parameter.empty or annotation is Any:
        return value
    shown, plain = value, _plain(value)
    for kind, limits in _alternatives(annotation):
        _, is_of, as_kind = KINDS[kind]
        given = value if kind is str else plain
        with contextlib.suppress(OverflowError):
            if is_of(given):
                converted = as_kind(given)
                if all(converted in limit for limit in limits):
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
        choices = next((limit for limit in limits if isinstance(limit, tuple)), None)
        if choices:
            words.append(f"one of {', '.join(choices)}" if len(choices) > 1 else repr(choices[0]))
        else:
            words.append(" ".join([KINDS[kind][0], *map(str, limits)]))
    words = [word for word in words if word != "a function"] or words
    words.sort(key="none".__eq__)  # it comes last
    return ", or ".join(words)


def _alternatives(annotation: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """(kind, ranges and choices) of each member of a union, in the order of `KINDS`."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        members = [member for part in get_args(annotation) for member in _alternatives(part)]
    elif origin is Annotated:
        base, *limits = get_args(annotation)
        members = [(kind, (*inner, *limits)) for kind, inner in _alternatives(base)]
    elif origin is Literal:
        members = [(str, (get_args(annotation),))]
    else:
        members = [(origin or annotation, ())]
    order = list(KINDS)
    return sorted(members, key=lambda member: order.index(member[0]))


def _plain(value: Any) -> Any:
    """Arrays and NumPy's numbers as Python's, and text as what it spells."""
    if hasattr(value, "ndim"):
        return value.tolist()
    if not isinstance(value, str):
        return value
    if value in ("none", "None", "null"):
        return None
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for read in (int, lambda text: float(Fraction(text)), float, json.loads):
        with contextlib.suppress(ValueError, ZeroDivisionError, OverflowError):
            return read(value)
    return value
