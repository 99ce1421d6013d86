"""Any function of (variables, images), with `tap` put where its inside is to be seen."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import jax

from si_jax.networks.framework import Framework, Named, Visit, holding

_visit: ContextVar[Visit | None] = ContextVar("visit", default=None)


def tap(x: jax.Array, name: str) -> jax.Array:
    """Show the library an activation of a network that is written as a function.

    Args:
        x: (batch, ..., channels) the activation; use the result in its place.
        name: the tap's name. That of what enters the last linear layer is the model's `head`.

    Returns:
        `x`, or what the library puts in its place.
    """
    visit = _visit.get()
    return x if visit is None else visit(name, tap, lambda x: x, (x,))


def prepare(network: Callable, variables: Any) -> tuple[Callable, Named]:
    """The function as it is."""
    if not isinstance(variables, Mapping):
        raise ValueError(
            "variables must be given for a function, as a mapping: network(variables, images) is"
            " what is called"
        )
    return network, variables


def run(network: Callable, variables: Named, images: Any, kwargs: Named, visit: Visit) -> Any:
    """Call the function with `visit` at each `tap`."""
    with holding(_visit, visit):
        return network(variables, images, **kwargs)


FRAMEWORK = Framework(
    name="function",
    prepare=prepare,
    run=run,
    is_norm=lambda tap: True,
    title=lambda network: getattr(network, "__name__", "without a name"),
)
