"""Flax NNX: a copy in evaluation mode is merged anew in each run, and its calls are intercepted."""

from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from si_jax.networks import framework
from si_jax.networks.equations import uses
from si_jax.networks.framework import Framework, Named, Visit, is_a

NORMS = (nnx.BatchNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.LayerNorm, nnx.RMSNorm)

PATH = "_si_jax_path"
"""A module's attribute that holds its path: copies that `nnx.jit` makes of it have it too."""


def prepare(network: nnx.Module, variables: Any) -> tuple[nnx.Module, Named]:
    """A copy in evaluation mode, and its variables; random states stay in the copy."""
    network = nnx.clone(network)
    network.set_attributes(deterministic=True, use_running_average=True, raise_if_not_found=False)
    if variables is None:
        parts: Any = nnx.split(network, nnx.Param, nnx.RngState, ...)
        _, params, _, state = parts
        variables = {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(state)}
    framework.check_left_out(variables, "Flax NNX module")
    return network, variables


def run(network: nnx.Module, variables: Named, images: Any, kwargs: Named, visit: Visit) -> Any:
    """Call a fresh copy with `variables` and with `visit` around each sub-module's call."""
    originals = dict(_modules(network))
    paths: dict[int, str] = {}

    def seam(module, call, args, kwargs):
        path = vars(module).get(PATH, paths.get(id(module)))
        if not path:
            return call(*args, **kwargs)
        return visit(path, originals[path], *framework.first_positional(call, args, kwargs))

    def called(variables, images):
        parts: Any = nnx.split(nnx.clone(network), nnx.Param, nnx.RngState, ...)
        graphdef, params, rngs, state = parts
        nnx.replace_by_pure_dict(params, variables["params"])
        nnx.replace_by_pure_dict(state, variables["state"])
        copy = nnx.merge(graphdef, params, rngs, state)
        for path, module in _modules(copy):
            paths[id(module)] = path
            if not isinstance(module, nnx.bridge.ToNNX):  # which takes each attribute for weights
                setattr(module, PATH, path)
        before = _counts(copy)
        out = copy(images, **kwargs)
        drawn = any(a is not b for a, b in zip(before, _counts(copy), strict=True))
        return out, drawn

    with framework.intercepted({type(module) for module in originals.values()}, seam):
        out, drawn = called(variables, images)
    if drawn:  # by nnx.bridge.ToNNX in vain, perhaps
        closed = jax.make_jaxpr(lambda *args: called(*args)[0])(variables, images)
        if uses(closed.jaxpr, ("random_bits", "threefry2x32")):
            raise framework.StochasticNetworkError
    return out


def _modules(network: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """Path and object of each module, itself included; `nnx.iter_modules` of any version."""
    for path, x in nnx.iter_graph(network):
        if isinstance(x, nnx.Module):
            yield "/".join(map(str, path)), x


def _counts(module: nnx.Module) -> list[Any]:
    """How many random numbers were drawn, one count for each stream."""
    return jax.tree.leaves(nnx.to_pure_dict(nnx.state(module, nnx.RngCount)))


FRAMEWORK = Framework(name="Flax NNX", prepare=prepare, run=run, is_norm=is_a(NORMS))
