"""Equinox: a module maps one image, channels first; it is batched here, and seen channels last."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from si_jax.networks.framework import Framework, Named, Visit, is_a
from si_jax.networks.interception import intercepted
from si_jax.networks.network import trace_of
from si_jax.networks.one_image import (
    foreign,
    is_watched,
    stateless,
    watched,
    with_arrays,
    wrap_call,
)

NORMS = (eqx.nn.BatchNorm, eqx.nn.GroupNorm, eqx.nn.LayerNorm, eqx.nn.RMSNorm)


class Inference(eqx.Module):
    """A network in inference mode, and its state, such as BatchNorm's; None if it has none."""

    module: eqx.Module
    state: eqx.nn.State | None


def prepare(network: eqx.Module, variables: Any) -> tuple[Inference, Named]:
    """A copy in inference mode, and its arrays by their paths; `variables` is the state."""
    if isinstance(network, Inference) and isinstance(variables, Mapping):
        return network, variables
    if not isinstance(variables, eqx.nn.State | None):
        raise ValueError(
            "variables must be the state of an Equinox module, as eqx.nn.make_with_state gives it,"
            " or be left out where it has none; the module holds its weights itself"
        )
    network = Inference(eqx.nn.inference_mode(network), variables)
    named: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
    for path, leaf in jax.tree.leaves_with_path(network):
        if eqx.is_array(leaf):
            kind, name = _place(path)
            named[kind][name] = leaf
    return network, named


def run(network: Inference, variables: Named, images: Any, kwargs: Named, visit: Visit) -> Any:
    """Call the module on every image, with `visit` around each sub-module's call on all of them."""

    def fill(path, leaf):
        kind, name = _place(path)
        return variables[kind][name] if eqx.is_array(leaf) else leaf

    filled = jax.tree.map_with_path(fill, network)
    modules = dict(_modules(filled.module))
    paths = {_identity(module): path for path, module in reversed(modules.items())}
    originals = dict(_modules(network.module))
    outside = (None, trace_of(images))

    def seam(module, call, args, kwargs):
        path = paths.get(_identity(module))
        if not is_watched() or (path is None and not foreign((args, kwargs), outside)):
            return call(*args, **kwargs)
        path = path or type(module).__name__  # made anew, as inside eqx.filter_checkpoint
        shown = partial(visit, path, originals.get(path, module))
        return wrap_call(shown, call, (args, kwargs), outside)

    def one(image):
        state = () if filled.state is None else (with_arrays(filled.state, ()),)
        with watched(trace_of(image)):
            return stateless(filled.module(image, *state, **kwargs))

    with intercepted({type(module) for module in modules.values()}, seam):
        return jax.vmap(one)(jnp.moveaxis(images, -1, 1))


def _place(path: tuple[Any, ...]) -> tuple[str, str]:
    """Where in the variables an array at a path of `Inference` lies."""
    kind = "params" if path[0].name == "module" else "state"
    return kind, jax.tree_util.keystr(path[1:], simple=True, separator="/")


def _modules(tree: Any, inside: str = "") -> Iterator[tuple[str, eqx.Module]]:
    """Path and object of each sub-module."""

    def other(x):
        return isinstance(x, eqx.Module) and x is not tree

    for path, module in jax.tree.leaves_with_path(tree, is_leaf=other):
        if other(module):
            name = inside + jax.tree_util.keystr(path, simple=True, separator="/")
            yield name, module
            yield from _modules(module, f"{name}/")


def _identity(module: eqx.Module) -> Any:
    """What tells a module from others, though it be made anew of the same arrays."""
    arrays = tuple(id(x) for x in jax.tree.leaves(module) if eqx.is_array(x))
    return (type(module), arrays) if arrays else id(module)


FRAMEWORK = Framework(
    name="Equinox",
    prepare=prepare,
    run=run,
    is_norm=is_a(NORMS),
    title=lambda network: type(network.module).__name__,
)
