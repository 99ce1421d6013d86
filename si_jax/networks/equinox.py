"""Equinox: a module maps one image, channels first; it is batched here, and seen channels last.

Inside `jax.vmap` no activation has the axis of the images. A call that is to be seen is therefore a
`jax.custom_batching.custom_vmap`, whose rule gets the activations of all images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from si_jax.networks import framework
from si_jax.networks.framework import Framework, Named, Visit, holding, is_a
from si_jax.networks.network import trace_of

NORMS = (eqx.nn.BatchNorm, eqx.nn.GroupNorm, eqx.nn.LayerNorm, eqx.nn.RMSNorm)

ARRAY = object()
"""What stands for an array in the form of an output, which outlives the trace of its arrays."""

_level: ContextVar[Any] = ContextVar("level", default=None)  # trace of one image; None: unseen


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
    shared_traces = (None, trace_of(images))

    def seam(module, call, args, kwargs):
        path = paths.get(_identity(module))
        if _level.get() is None or (path is None and not foreign((args, kwargs), shared_traces)):
            return call(*args, **kwargs)
        path = path or type(module).__name__  # made anew, as inside eqx.filter_checkpoint
        shown = partial(visit, path, originals.get(path, module))
        return wrap_call(shown, call, (args, kwargs), shared_traces)

    def one(image):
        state = () if filled.state is None else (with_arrays(filled.state, ()),)
        with holding(_level, trace_of(image)):
            return stateless(filled.module(image, *state, **kwargs))

    with framework.intercepted({type(module) for module in modules.values()}, seam):
        return jax.vmap(one)(jnp.moveaxis(images, -1, 1))


def foreign(given: Any, shared_traces: tuple) -> bool:
    """Whether an argument is neither of one image nor of none, but inside a scan, say."""
    level = type(_level.get())
    traces = [trace_of(x) for x in _arrays(given)]
    return any(trace not in shared_traces and not isinstance(trace, level) for trace in traces)


def wrap_call(visit: Callable, call: Callable, given: Any, shared_traces: tuple) -> Any:
    """A module's call on one image, which `visit` sees as its call on all of them.

    `given` are its arguments and keywords, `shared_traces` those of what is of no single image.
    """
    arrays, level = _arrays(given), _level.get()
    if foreign(given, shared_traces):  # which `Outline` reports
        return visit(*framework.first_positional(call, *given))
    if all(trace_of(x) in shared_traces for x in arrays):  # of a constant
        return call(*given[0], **given[1])
    states = [x for x in jax.tree.leaves(given, is_leaf=_is_state) if _is_state(x)]
    output: list[Any] = [None]  # the form of what the call returns

    def one(*arrays):
        args, kwargs = with_arrays(given, arrays)
        result = call(*args, **kwargs)
        output[0] = jax.tree.map(lambda x: ARRAY if eqx.is_array(x) else x, result)
        return _arrays(result)

    def on_all(many, arrays, inner):
        def whole(*args, **kwargs):
            outputs = many(*(_first(x, inner) for x in _arrays((args, kwargs))))
            return stateless(with_arrays(output[0], [_last(x, inner) for x in outputs]))

        args, kwargs = with_arrays(given, [_last(x, inner) for x in arrays])
        shown = visit(*framework.first_positional(whole, args, kwargs))
        return [_first(x, inner) for x in _arrays(shown)]

    def batched(function, arrays, inner):
        """`inner` is how many axes the network itself batches over, as a ViT over tokens."""
        of_images = any(trace_of(x) is level for x in arrays)
        batching = custom_vmap(holding(_level, None)(function))

        @batching.def_vmap
        def rule(size, in_batched, *arrays):
            rows = [
                x if b else jnp.broadcast_to(x, (size, *x.shape))
                for x, b in zip(arrays, in_batched, strict=True)
            ]
            if of_images:
                many = jax.vmap(lambda *row: holding(_level, trace_of(row[0]))(function)(*row))
                outputs = on_all(many, rows, inner)
            else:
                outputs = batched(jax.vmap(function), rows, inner + 1)
            return outputs, [True] * len(outputs)

        return batching(*arrays)

    outputs = batched(one, arrays, 0)
    return with_arrays(output[0], outputs, states)


def _arrays(tree: Any) -> list[Any]:
    """The arrays in a tree, other than those of a state."""
    return [x for x in jax.tree.leaves(tree, is_leaf=_is_state) if eqx.is_array(x)]


def with_arrays(tree: Any, arrays: Sequence[Any], states: Sequence[eqx.nn.State] = ()) -> Any:
    """A tree with other arrays in it, and copies of states, as each is good for one use."""
    left = iter(arrays)

    def put(x):
        if _is_state(x):
            return jax.tree.map(lambda x: x, states[0] if states else x)
        return next(left) if x is ARRAY or eqx.is_array(x) else x

    return jax.tree.map(put, tree, is_leaf=_is_state)


def stateless(output: Any) -> Any:
    """The output of a module that may return its state beside it."""
    if isinstance(output, tuple) and output and _is_state(output[-1]):
        return output[0] if len(output) == 2 else output[:-1]
    return output


def _last(x: Any, inner: int) -> Any:
    """The channels of feature maps, which come first in each, last; `inner` as in `_seen`."""
    return jnp.moveaxis(x, 1 + inner, -1) if x.ndim - inner > 3 else x


def _first(x: Any, inner: int) -> Any:
    return jnp.moveaxis(x, -1, 1 + inner) if x.ndim - inner > 3 else x


def _is_state(x: Any) -> bool:
    return isinstance(x, eqx.nn.State)


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
    """What distinguishes a module, though it be made anew of the same arrays."""
    arrays = tuple(id(x) for x in jax.tree.leaves(module) if eqx.is_array(x))
    return (type(module), arrays) if arrays else id(module)


FRAMEWORK = Framework(
    name="Equinox",
    prepare=prepare,
    run=run,
    is_norm=is_a(NORMS),
    title=lambda network: type(network.module).__name__,
)
