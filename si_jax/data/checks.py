"""Checks of numbers and words that callers give."""

from collections.abc import Iterable
from typing import Any


def check_least(least: int, **values: Any) -> None:
    """See that each of the arguments is at least so much, or None.

    Args:
        least: the least value.
        values: name of the argument -> its value.

    Raises:
        ValueError: naming the argument and its value.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} (={value}) must be at least {least}")


def check_choice(choices: Iterable[str], **values: Any) -> None:
    """See that each of the arguments is one of the choices.

    Args:
        choices: what it may be, in order.
        values: name of the argument -> its value.

    Raises:
        ValueError: naming the argument, its value and the choices.
    """
    choices = tuple(choices)
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} (={value!r}) must be one of {', '.join(choices)}")
