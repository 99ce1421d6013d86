"""PyTorch: a module runs as a JAX computation by torchax, and is seen channels last.

A copy of the module with the run's arrays in place of its tensors is made for each run.
"""

import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.nn import Module
from torch.utils import _pytree as pytree

from si_jax.networks import framework
from si_jax.networks.framework import Framework, Named, Visit

INSTALL = 'pip install "si-jax[torch]"'
NORM = re.compile(r"(batch|group|instance|layer|rms)_?norm(act)?(\dd)?$", re.IGNORECASE)
"""How classes of norms are called, PyTorch's and others', such as timm's `LayerNorm2d`."""


def prepare(network: Module, variables: Any) -> tuple[Module, Named]:
    """A copy in evaluation mode without weights, and its weights as JAX arrays by their paths."""
    _check(network)
    tensors = _tensors(network)
    if variables is None:
        variables = {"params": {}, "buffers": {}}
        for name, tensor in tensors.items():
            if torch.nn.parameter.is_lazy(tensor):
                raise ValueError(f"{name} has no values yet: call the network once on an image")
            if tensor.is_meta:
                raise ValueError(f"{name} has no values (device meta): load the network's weights")
            if tensor.device.type != "cpu":
                raise ValueError(f"{name} lies on {tensor.device}: give network.cpu()")
            variables[_kind(tensor)][name] = _array(tensor)
    advice = ": load a state dict by network.load_state_dict"
    framework.check_left_out(variables, "PyTorch module", advice)
    bare = {}
    for tensor in tensors.values():
        shape = torch.empty_like(tensor, device="meta", requires_grad=False)
        weight = isinstance(tensor, torch.nn.Parameter)
        bare[id(tensor)] = torch.nn.Parameter(shape, requires_grad=False) if weight else shape
    return copy.deepcopy(network, bare).eval(), variables


def run(network: Module, variables: Named, images: Any, kwargs: Named, visit: Visit) -> Any:
    """Call a copy that holds `variables`, with `visit` around each sub-module's call."""
    from torchax.tensor import Environment

    env = Environment()
    for operation, function in REPLACED.items():
        env.override_op_definition(operation, _on_tensors(env, function))
    with jax.ensure_compile_time_eval():
        keys = env.prng_key, torch.get_rng_state()
    arrays = {
        id(tensor): env.j2t_iso(variables[_kind(tensor)][name])
        for name, tensor in _tensors(network).items()
    }
    filled = copy.deepcopy(network, arrays)
    originals = dict(network.named_modules())
    paths = {id(module): path for path, module in filled.named_modules()}

    def seam(module, call, args, kwargs):
        path = paths.get(id(module))
        if not path:
            return call(*args, **kwargs)
        call, args = framework.first_positional(call, args, kwargs)
        given = env.t2j_iso(args)
        inside: list[Any] = []  # what the module made of its inputs, in place perhaps

        def inner(*arrays):
            tensors = env.j2t_iso(arrays)
            out = call(*tensors)
            inside[:] = [arrays, tensors, out]
            return env.t2j_iso(out)

        out = env.j2t_iso(visit(path.replace(".", "/"), originals[path], inner, given))
        before, after, made = inside
        for outer, old, new in zip(
            *(pytree.tree_leaves(x) for x in (args, before, after)), strict=True
        ):
            if isinstance(new, torch.Tensor) and new.jax() is not old:
                value = out if made is new else new
                _set(outer, value.jax())
                out = outer if made is new else out
        return out

    parameters = [x for x in variables["params"].values() if jnp.issubdtype(x.dtype, jnp.floating)]
    if parameters:
        images = images.astype(parameters[0].dtype)
    kinds = {type(module) for module in originals.values()}
    with env, torch.no_grad(), framework.intercepted(kinds, seam), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Explicitly requested dtype int64")  # JAX uses int32
        x = env.j2t_iso(jnp.moveaxis(images, -1, 1))
        with torch.device("jax"):
            out = env.t2j_iso(_entries(filled(x, **kwargs)))
    with jax.ensure_compile_time_eval():
        if env.prng_key is not keys[0] or not torch.equal(torch.get_rng_state(), keys[1]):
            raise framework.StochasticNetworkError
    return out


def _group_norm(x, weight, bias, batch, channels, positions, groups, eps):
    """What torchax computes with images and groups in one axis, with the channels in their own."""
    grouped = x.reshape(len(x), groups, channels // groups, *x.shape[2:])
    axes = tuple(range(2, grouped.ndim))
    mean, variance = (f(grouped, axes, keepdims=True) for f in (jnp.mean, jnp.var))
    scale = jax.lax.rsqrt(variance + eps)
    out = ((grouped - mean) * scale).reshape(x.shape)
    shape = (channels, *[1] * (x.ndim - 2))
    out = out if weight is None else out * weight.reshape(shape)
    out = out if bias is None else out + bias.reshape(shape)
    return out, mean.reshape(len(x), groups), scale.reshape(len(x), groups)


def _instance_norm(x, weight, bias, mean, variance, own_statistics, momentum, eps, *_):
    """Likewise; with running statistics it is a batch norm."""
    if own_statistics:
        return _group_norm(x, weight, bias, len(x), x.shape[1], None, x.shape[1], eps)[0]
    shape = (x.shape[1], *[1] * (x.ndim - 2))
    out = (x - mean.reshape(shape)) * jax.lax.rsqrt(variance.reshape(shape) + eps)
    return out if weight is None else out * weight.reshape(shape) + bias.reshape(shape)


REPLACED = {
    torch.ops.aten.native_group_norm: _group_norm,
    torch.ops.aten.native_group_norm.default: _group_norm,
    torch.instance_norm: _instance_norm,
}
"""Operations of which torchax loses the axis of the channels -> what stands in."""


def _on_tensors(env: Any, function: Any) -> Any:
    """A function of arrays as one of torchax's tensors."""
    return lambda *args: env.j2t_iso(function(*env.t2j_iso(args)))


def _tensors(network: Module) -> dict[str, torch.Tensor]:
    """Every tensor that a module holds, once, by its path; those in its attributes too."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for place, module in network.named_modules():
        for path, leaf in pytree.tree_leaves_with_path(vars(module)):
            if isinstance(leaf, torch.Tensor):
                keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
                own = keys[1:] if keys[0] in ("_parameters", "_buffers") else keys
                name = "/".join([*place.split("."), *own] if place else own)
                found.setdefault(id(leaf), (name, leaf))
    return dict(found.values())


def _kind(tensor: torch.Tensor) -> str:
    return "params" if isinstance(tensor, torch.nn.Parameter) else "buffers"


def _array(tensor: torch.Tensor) -> jax.Array:
    """A copy of a tensor."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return jnp.asarray(tensor.float().numpy(), jnp.bfloat16)
    return jnp.array(tensor.numpy())


def _set(tensor: Any, value: jax.Array) -> None:
    """Put a value into a tensor of torchax, or into what it is a view of."""
    if hasattr(tensor, "apply_jax_"):
        tensor.apply_jax_(lambda _: value)
    else:
        tensor.update(value)


def _entries(out: Any) -> Any:
    """A network's output, with the entries of a dataclass or of a mapping by their names."""
    if isinstance(out, Mapping):
        return dict(out)
    if is_dataclass(out):
        return {field.name: getattr(out, field.name) for field in fields(out)}
    return out


def _check(network: Module) -> None:
    """Refuse what torchax cannot run, and any network where it is missing."""
    try:
        import torchax  # noqa: F401
    except Exception as error:
        raise ValueError(
            f"a PyTorch module runs on JAX by torchax, which cannot be imported ({error}):"
            f" {INSTALL}"
        ) from None
    kinds = {type(module) for module in network.modules()}
    if any(issubclass(kind, torch.jit.ScriptModule) for kind in kinds):
        raise ValueError(
            "the network is scripted or traced by torch.jit: give the torch.nn.Module that it was"
            " made of"
        )
    if any(".quantized" in kind.__module__ for kind in kinds):
        raise ValueError("the network is quantised: give the one that it was made of, in floats")


FRAMEWORK = Framework(
    name="PyTorch",
    prepare=prepare,
    run=run,
    is_norm=lambda module: any(NORM.fullmatch(kind.__name__) for kind in type(module).__mro__),
    any_batch=False,  # PyTorch's shapes are numbers
)
