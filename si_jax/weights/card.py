"""A checkpoint's card: what a network is and how images enter it; the file is not trusted."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

MAX_BYTES = 1_000_000


class Field(NamedTuple):
    """What a field of a card must be.

    Attributes:
        fits: whether a value will do.
        words: what it must be, for messages.
        required: whether every card has it.
    """

    fits: Callable[[Any], bool]
    words: str
    required: bool = True


def read_card(path: Path) -> dict[str, Any]:
    """The card of a checkpoint.

    Raises:
        ValueError: with the first thing in it that is wrong.
    """

    def fail(reason: str) -> ValueError:
        return ValueError(f"{path} is no checkpoint card, or is damaged: {reason}")

    if not path.is_file():
        raise fail("it is no file")
    if path.stat().st_size > MAX_BYTES:
        raise fail(f"it is larger than {MAX_BYTES} bytes")
    try:
        card = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise fail(f"it is no JSON ({error})") from None
    if not isinstance(card, dict):
        raise fail("it must be an object of names and values")
    if not _finite(card):
        raise fail("it holds a number that is NaN or infinite")
    for name, field in FIELDS.items():
        if name not in card:
            if field.required:
                raise fail(f"{name} is missing; it must be {field.words}")
        elif not field.fits(card[name]):
            raise fail(f"{name} (={repr(card[name])[:100]}) must be {field.words}")
    if len(card["mean"]) != len(card["std"]):
        raise fail("mean and std must have one number a channel each")
    return card


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _numbers(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list)
        and 1 <= len(value) <= 4096
        and all(type(x) in (int, float) and low <= x <= high for x in value)
    )


def _size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_whole(1, 16384), value))


def _options(value: Any) -> bool:
    def simple(x: Any) -> bool:
        return type(x) in (bool, float) or _whole(-1_000_000, 1_000_000)(x) or _text(x)

    return isinstance(value, dict) and all(
        simple(x) or (isinstance(x, list) and len(x) <= 64 and all(map(simple, x)))
        for x in value.values()
    )


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200


def _hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


FIELDS = {
    "model": Field(_text, "the name of an architecture"),
    "num_classes": Field(_whole(1, 10_000_000), "a whole number of at least 1"),
    "input_size": Field(_size, "a height and a width from 1 to 16384 pixels"),
    "mean": Field(_numbers(-1e6, 1e6), "a list of one number a channel"),
    "std": Field(_numbers(1e-12, 1e6), "a list of one positive number a channel"),
    "options": Field(_options, "an object of an architecture's options", required=False),
    "sha256": Field(_hash, "the weights' SHA-256, 64 hexadecimal digits"),
    "head": Field(_text, "the path of the last linear layer", required=False),
    "class_names": Field(
        lambda v: isinstance(v, list) and all(map(_text, v)), "a list of names", required=False
    ),
}
"""What is read from a card; whatever else it tells is for people."""


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
