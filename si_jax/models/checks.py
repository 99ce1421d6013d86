"""Checks of the options with which a network is built."""

from collections.abc import Sequence

MAX_BLOCKS = 1000
MAX_WIDTH = 100_000


def check_counts(name: str, value: Sequence[int], *, most: int, length: int | None = None) -> None:
    """See that an option is a sequence of positive whole numbers.

    Args:
        name: the option, for the message.
        value: what was given.
        most: the largest sum of the numbers.
        length: how many numbers there must be; None for any.

    Raises:
        ValueError: if it is not.
    """
    numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    whole = all(type(n) is int and n >= 1 for n in numbers)
    if not numbers or not whole or (length or len(numbers)) != len(numbers) or sum(numbers) > most:
        many = "" if length is None else f"{length} "
        raise ValueError(
            f"{name} (={value!r}) must be {many}whole numbers of at least 1, {most} at most in all"
        )


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """See that an option is one of its values.

    Raises:
        ValueError: if it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} (={value!r}) must be one of {', '.join(choices)}")
