"""Checks of options: numbers and words that callers give.

In flows the name of an argument and what was given for it; out comes nothing, or an error that
names both and says what may be given.
"""

from collections.abc import Iterable, Sequence
from typing import Any


def check_least(least: int, **values: Any) -> None:
    """Check that each of the arguments is at least so much, or None."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} (={value}) must be at least {least}")


def check_choice(choices: Iterable[str], **values: Any) -> None:
    """Check that each of the arguments is one of the choices."""
    choices = tuple(choices)
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} (={value!r}) must be one of {', '.join(choices)}")


def check_counts(name: str, value: Sequence[int], *, most: int, length: int | None = None) -> None:
    """Check that an option is `length` positive whole numbers with a sum of at most `most`."""
    numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    whole = all(type(n) is int and n >= 1 for n in numbers)
    if not numbers or not whole or (length or len(numbers)) != len(numbers) or sum(numbers) > most:
        many = "" if length is None else f"{length} "
        raise ValueError(
            f"{name} (={value!r}) must be {many}whole numbers of at least 1, {most} at most in all"
        )
