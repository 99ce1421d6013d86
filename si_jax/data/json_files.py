"""JSON: read within bounds, checked against a dataclass, and hashed."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from si_jax.data.files import read_bytes

MAX_BYTES = 64 << 20
MAX_WHOLE = 2**63  # the largest whole number that is taken
MAX_DEPTH = 50


def read_json(path: Path) -> Any:
    """The content of a JSON file within `MAX_BYTES` and `MAX_DEPTH`; NaN is an error."""
    data = read_bytes(path, MAX_BYTES)
    try:
        content = json.loads(data, parse_constant=_number, parse_int=_number, parse_float=_number)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    if _deeper(content, MAX_DEPTH):
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    return content


def fields_problem(values: dict[str, Any], record: type) -> str:
    """What is wrong with the fields of a dataclass; '' if nothing. Unknown ones are let through."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(record).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, *keys = first["loc"]
        if first["type"] == "missing":
            return f"it lacks {name!r}"
        place = f" for {' on '.join(map(repr, keys))}" if keys else ""
        wanted = first["msg"].replace("Input should be", "it must be")
        return f"{name!r} is of the wrong type{place}: {wanted}"
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
