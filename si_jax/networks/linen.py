"""Flax Linen: sub-modules are reached through `flax.linen.intercept_methods`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from flax import linen as nn
from flax.core import lift, meta

from si_jax.networks.framework import Framework, Named, Visit, first_positional, holding, is_a

NORMS = (nn.BatchNorm, nn.GroupNorm, nn.InstanceNorm, nn.LayerNorm, nn.RMSNorm)

_inlining: ContextVar[bool] = ContextVar("inlining", default=False)
_inside: ContextVar[str] = ContextVar("inside", default="")  # path of the module that is called


def prepare(network: nn.Module, variables: Any) -> tuple[nn.Module, Named]:
    """The module as it is, and its variables out of their partitioning boxes."""
    if variables is None:
        raise ValueError(
            "variables (=None) must be given for a Flax Linen module: what module.init returned, or"
            " a trained state"
        )
    if not isinstance(variables, Mapping):
        raise ValueError(
            f"variables (a {type(variables).__name__}) must be a mapping such as"
            ' {"params": ..., "batch_stats": ...}: what module.init returned, or a trained state'
        )
    return network, meta.unbox(variables)


def run(network: nn.Module, variables: Named, images: Any, kwargs: Named, visit: Visit) -> Any:
    """Apply the network with `visit` around each sub-module's `__call__`."""

    def interceptor(call, args, kwargs, context):
        path = "/".join(context.module.path)
        is_parents = path == _inside.get()  # a class's call of its parent's `__call__`
        if context.method_name != "__call__" or not path or is_parents:
            return call(*args, **kwargs)
        call, args = first_positional(call, args, kwargs)
        return visit(path, context.module, holding(_inside, path)(call), args)

    with nn.intercept_methods(interceptor), holding(_inside, ""):
        return network.apply(variables, images, **kwargs)


class _Jax:
    """The package `jax` as `flax.core.lift` sees it: `remat` does nothing inside `inline`."""

    def __getattr__(self, name: str) -> Any:
        if name == "remat" and _inlining.get():
            return lambda function=None, **options: function or (lambda function: function)
        return getattr(jax, name)


@contextmanager
def inline() -> Iterator[None]:
    """Inside, `nn.remat` calls what it holds as it is; in this thread only."""
    lift.jax = _Jax()  # type: ignore[assignment]  # an object in place of a module
    with holding(_inlining, True):
        yield


FRAMEWORK = Framework(
    name="Flax Linen",
    prepare=prepare,
    run=run,
    is_norm=is_a(NORMS),
    inline=inline,
    unbound=lambda module: module.clone(parent=None),
)
