"""JSON: read within bounds, checked against a type annotation, and hashed."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from si_jax.data.files import read_bytes

MAX_BYTES = 64 << 20
MAX_WHOLE = 2**63  # the largest whole number that is taken
MAX_DEPTH = 50
KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    None: "null",
    types.NoneType: "null",
    dict: "an object",
    list: "a list",
}
"""Type -> what it is in JSON."""


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: if there is no such file, it is no regular one, or larger than `MAX_BYTES`.
        ValueError: if it is no JSON, nested deeper than `MAX_DEPTH`, or
            holds NaN, infinity or a number without bounds.
    """
    data = read_bytes(path, MAX_BYTES)
    try:
        content = json.loads(data, parse_constant=_number, parse_int=_number, parse_float=_number)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    if _deeper(content, MAX_DEPTH):
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    return content


def problem(value: Any, annotation: Any, path: tuple[str, ...]) -> str:
    """What is wrong with a value of JSON, in a few words; '' if nothing.

    Args:
        value: as `read_json` gives it.
        annotation: what it must be: `str`, `int`, `float` (whole numbers too, all of them finite),
            `bool`, `None`, `Any`, `dict[str, X]`, `list[X]`, or `X | Y`.
        path: the keys that lead to it, the first one at least.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return ""
    if origin in (types.UnionType, typing.Union):
        problems = [problem(value, one, path) for one in arguments]
        return "" if "" in problems else problems[0]
    if not _fits(value, origin or annotation):
        place = f" for {' on '.join(map(repr, path[1:]))}" if path[1:] else ""
        return f"{path[0]!r} is of the wrong type{place}: it must be {KINDS[origin or annotation]}"
    items: Iterable = ()
    if origin is dict:
        items = ((v, arguments[1], (*path, k)) for k, v in value.items())
    if origin is list:
        items = ((v, arguments[0], path) for v in value)
    return next(filter(None, (problem(*item) for item in items)), "")


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return value is None if kind in (None, types.NoneType) else isinstance(value, kind)


def fields_problem(values: dict[str, Any], record: type) -> str:
    """What is wrong with the fields of a dataclass; '' if nothing. Unknown ones are let through."""
    for field in dataclasses.fields(record):
        if field.name in values:
            if fault := problem(values[field.name], field.type, (field.name,)):
                return fault
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            return f"it lacks {field.name!r}"
    return ""


def _number(text: str) -> int | float:
    whole = text.lstrip("-").isdigit()
    value = float(text) if not whole or len(text) > 25 else int(text)
    if not math.isfinite(value) or (whole and abs(value) >= MAX_WHOLE):
        raise ValueError(f"it holds {text[:30]}, which is no finite number")
    return value


def _deeper(content: Any, depth: int) -> bool:
    if not isinstance(content, dict | list):
        return False
    inner = content.values() if isinstance(content, dict) else content
    return depth == 0 or any(_deeper(one, depth - 1) for one in inner)


def json_hash(content: Any) -> str:
    """Hex SHA-256 of content as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
