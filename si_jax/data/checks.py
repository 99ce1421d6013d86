"""Checks of numbers that callers give."""

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
