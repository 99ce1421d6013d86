"""A network with its weights: run with a visit around each call, and looked at from outside."""

import contextlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from si_jax.networks import framework
from si_jax.networks.equations import inner_jaxprs, is_literal, spread
from si_jax.networks.framework import Framework, Named, Visit

Images = Float[Array | jax.ShapeDtypeStruct, "batch height width channels"]

HIDDEN = (
    "lies inside a transformation of the network's own, such as nn.scan, nn.vmap or jax.lax.scan,"
    " where activations cannot be reached: give a network that calls its layers one by one"
)


@dataclass(frozen=True)
class Call:
    """One call of a sub-module at a path, the tap's name."""

    path: str
    module: Any = field(compare=False)
    shape: tuple[int, ...] | None  # of its output, without the batch axis; None if it is no array
    leaf: bool  # whether no other sub-module was called inside


class Outline(NamedTuple):
    """What a run of the network on one image looks like.

    Attributes:
        calls: every sub-module's call, in the order in which they end.
        closed: the run's equations, whose inputs are the leaves of the variables and the images.
        values: path -> variables of the first input and of the output of each call, in the order in
            which they begin; None where that is no array or cannot be reached.
        logits: the variable of the logits.
        axes: path -> the axis of the channels in the output, where it is not the last, as in taps.
        unknown: paths of maps of which the channels' axis is unknown, where it is not always last.
        hidden: paths of calls inside a transformation, such as `nn.scan`, which can be no taps.
        inline: whether `jax.jit` and `nn.remat` inside are left out, to reach what they hold.
    """

    calls: tuple[Call, ...]
    closed: Any
    values: Mapping[str, tuple[Any, Any]]
    logits: Any
    axes: Mapping[str, int]
    unknown: frozenset[str]
    hidden: frozenset[str]
    inline: bool


@dataclass(frozen=True, eq=False)
class Network:
    """A network of any framework with its weights; `si_jax.Model` is one, and describes these."""

    module: Any
    variables: Mapping[str, Any]
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: str
    name: str
    call_kwargs: Mapping[str, Any]
    precision: str
    card: Mapping[str, Any]
    output: str | int | None
    scale: str | None

    @cached_property
    def framework(self) -> Framework:
        """How networks of this kind are run."""
        return framework.framework_of(self.module)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return (*self.input_size, len(self.mean))

    @cached_property
    def outline(self) -> Outline:
        """What a run looks like; see `outline`."""
        plain = outline(self, inline=False)
        if not plain.hidden:
            return plain
        inlined = outline(self, inline=True)
        more = len(inlined.calls) > len(plain.calls)
        return inlined if more and not inlined.hidden else plain

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every sub-module's call, in the order in which they end."""
        return self.outline.calls

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.outline.logits.aval.shape[-1]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the features of one image, what enters the head; () where there are none."""
        x, _ = self.outline.values.get(self.head, (None, None))
        return vector_shape(tuple(x.aval.shape)[1:]) if x is not None else ()

    @property
    def num_features(self) -> int:
        """Number of channels of what enters the head."""
        return self.feature_shape[-1] if self.feature_shape else 0


def run(network: Network, variables: Named, images: Images, visit: Visit) -> Any:
    """The network's logits, with `visit` around each sub-module's call."""
    look = network.outline

    def shown(path, module, call, args):
        if path in look.hidden:
            return call(*args)
        axis = look.axes.get(path)
        if axis is None:
            return visit(path, module, call, args)

        def channels_last(*args):
            return jnp.moveaxis(call(*args), axis, -1)

        return jnp.moveaxis(visit(path, module, channels_last, args), -1, axis)

    return _logits(network, _run(network, variables, images, shown, look.inline))


def outline(network: Network, *, inline: bool) -> Outline:
    """Look at a run on one image, without computing it."""
    begun: list[str] = []
    ended: list[tuple[str, Any, bool]] = []
    hidden: set[str] = set()

    def trace(variables, images):
        pairs: dict[str, Any] = {}  # path -> input and output, in the order in which calls begin
        outer = (None, trace_of(images))

        def visit(path, module, call, args):
            if any(trace_of(x) not in outer for x in jax.tree.leaves(args)):
                hidden.add(path)
                return call(*args)
            pairs[path], before = None, len(ended)
            out = call(*args)
            ended.append((path, network.framework.unbound(module), len(ended) == before))
            ends = (*args[:1], out) if args else (None, out)
            pairs[path] = tuple(x if isinstance(x, jax.Array) else None for x in ends)
            return out

        try:
            out = _run(network, variables, images, visit, inline)
        except Exception as error:
            raise explained(error, images.shape) from error
        logits = _logits(network, out)
        if getattr(logits, "ndim", None) != 2 or logits.shape[0] != 1:
            raise ValueError(
                "the network must return logits of shape (batch, classes), but for one image it"
                f" returns {jax.tree.map(jnp.shape, out)}: where one entry is the logits, give its"
                " key or index as output"
            )
        begun.extend(pairs)
        return logits, pairs

    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    closed, shapes = jax.make_jaxpr(trace, return_shape=True)(network.variables, image)
    logits, found = jax.tree.unflatten(jax.tree.structure(shapes), closed.jaxpr.outvars)
    values = {path: found[path] for path in begun}
    channels = channel_axes(closed.jaxpr)
    calls, axes, unknown = [], {}, set()
    for path, module, leaf in ended:
        _, out = values[path]
        shape = () if out is None else tuple(out.aval.shape)
        axis = channels.get(out) if len(shape) > 2 else None
        if axis is None and len(shape) > 3:
            unknown.add(path)
        elif axis is not None and axis != len(shape) - 1:
            axes[path] = axis
            shape = (*shape[:axis], *shape[axis + 1 :], shape[axis])
        calls.append(Call(path, module, None if out is None else shape[1:], leaf))
    return Outline(
        calls=tuple(calls),
        closed=closed,
        values=values,
        logits=logits,
        axes=axes,
        unknown=frozenset(unknown if axes else ()),
        hidden=frozenset(hidden),
        inline=inline,
    )


def may_mix_images(network: Network) -> bool:
    """Whether the logits of an image may depend on the other images of its batch."""
    size = unused_size(network.outline.closed.jaxpr)
    images = jax.ShapeDtypeStruct((size, *network.image_shape), jnp.float32)

    def logits(variables, images):
        return run(network, variables, images, lambda path, module, call, args: call(*args))

    try:
        closed = jax.make_jaxpr(logits)(network.variables, images)
    except Exception as error:
        raise explained(error, images.shape) from error
    return may_mix(closed.jaxpr, size)


def _run(network, variables, images, visit, inline):
    """The network's output; paths of repeated calls are numbered."""
    numbered = framework.numbering()

    def shown(path, module, call, args):
        return visit(numbered(path), module, call, args)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision(network.precision))
        if inline:
            stack.enter_context(jax.disable_jit())
            stack.enter_context(network.framework.inline())
        return network.framework.run(network.module, variables, images, network.call_kwargs, shown)


def _logits(network, out):
    """The entry of the output that is the logits."""
    if network.output is None:
        return out
    try:
        return out[network.output]
    except (KeyError, IndexError, TypeError):
        raise ValueError(
            f"output (={network.output!r}) is no entry of what the network returns:"
            f" {jax.tree.map(jnp.shape, out)}"
        ) from None


def trace_of(x: Any) -> Any:
    """The trace that an array belongs to; None outside of all."""
    return x._trace if isinstance(x, jax.core.Tracer) else None


def vector_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of features without axes of one place, if they are a vector for each image then."""
    long = tuple(size for size in shape if size > 1)
    return shape if len(shape) < 2 or len(long) > 1 else long or (1,)


HINTS = {
    "rng|prng": "it draws random numbers, as dropout does: switch that off by call_kwargs, such as"
    ' {"deterministic": True} or {"train": False}',
    "immutable|running_average": "it is in training mode: switch that off by call_kwargs, such as"
    ' {"train": False}',
    "missing|required": "where an argument of the network's own is missing, give it in call_kwargs,"
    ' such as {"train": False} or {"key": None}',
    "same dtypes|float16": "images enter as float32: convert each array of weights to it, by"
    " astype(jnp.float32)",
    "shape|dimension|channels|axis|axes|incompatible": "do input_size, the number of channels in"
    " mean and the variables fit it?",
}
"""What is looked for in an error of a network's own -> what may help; the first that is found."""


def explained(error: Exception, shape: tuple[int, ...]) -> ValueError:
    """What to raise in place of an error of a network that is run on images of this shape."""
    if isinstance(error, framework.StochasticNetworkError):
        return framework.StochasticNetworkError()
    text = str(error).strip().splitlines()
    message = (
        f"the network cannot be run on images of shape {shape}:"
        f" {type(error).__name__}: {text[0] if text else ''}"
    )
    for words, hint in HINTS.items():
        if re.search(words, f"{type(error).__name__} {error}", re.IGNORECASE):
            return ValueError(f"{message} ({hint})")
    return ValueError(message)


Axes = tuple[int, int]
"""The first and the last but one of adjacent axes."""


def channel_axes(jaxpr: Any) -> dict[Any, int]:
    """Variable -> its channels' axis, followed from the images and from products on."""
    images = jaxpr.invars[-1]
    found: dict[Any, Axes] = {images: (images.aval.ndim - 1, images.aval.ndim)}
    spread(jaxpr, found, set(), _axes)
    return {v: first for v, (first, stop) in found.items() if stop - first == 1}


def _axes(eqn: Any, out: Any, found: Mapping[Any, Axes], depends: Sequence[bool]) -> Axes | None:
    """The channels' axes of what an equation makes."""
    name, params, out = eqn.primitive.name, eqn.params, out.aval
    ndim = len(getattr(out, "shape", ()))
    if name == "conv_general_dilated":
        axis = params["dimension_numbers"].out_spec[1]
        return axis, axis + 1
    if name == "dot_general":
        (left, right), (batch, _) = params["dimension_numbers"]
        free = [
            v.aval.ndim - len(contracted) - len(batch)
            for v, contracted in zip(eqn.invars, (left, right), strict=True)
        ]
        if all(depends) or not free[depends[0]]:  # a product with a vector leaves no channels
            return None
        return (ndim - free[1], ndim) if depends[0] else (len(batch), len(batch) + free[0])
    known = [v for v in eqn.invars if not is_literal(v) and v in found]
    if not known:
        return None
    same = [v for v in known if v.aval.shape == out.shape]
    x = (same or known)[0]
    axes, shape = range(*found[x]), x.aval.shape
    if name == "transpose":
        places = [params["permutation"].index(axis) for axis in axes]
    elif name == "broadcast_in_dim":
        places = [params["broadcast_dimensions"][axis] for axis in axes]
    elif name == "reshape":
        return _reshaped(axes, shape, out.shape)
    elif name == "squeeze" or "axes" in params:
        gone = params.get("axes", params.get("dimensions", ()))
        if any(axis in gone for axis in axes):
            return None
        places = [axis - sum(other < axis for other in gone) for axis in axes]
    else:
        return found[x] if x.aval.ndim == ndim else None
    places = sorted(map(int, places))
    return (places[0], places[-1] + 1) if places[-1] - places[0] == len(places) - 1 else None


def _reshaped(axes: range, old: Sequence[int], new: Sequence[int]) -> Axes | None:
    """Where adjacent axes are after a reshape; None if they were taken together with others."""
    before, behind = math.prod(old[: axes.start]), math.prod(old[: axes.stop])
    sizes = [math.prod(new[:axis]) for axis in range(len(new) + 1)]
    if before == behind or before not in sizes or behind not in sizes:
        return None
    first = len(sizes) - 1 - sizes[::-1].index(before)
    return first, sizes.index(behind)


def unused_size(jaxpr: Any) -> int:
    """A batch size of which no axis of a network is a multiple."""
    variables = [*jaxpr.invars, *(v for eqn in jaxpr.eqns for v in eqn.outvars)]
    sizes = {size for v in variables for size in getattr(v.aval, "shape", ()) if size}
    return next(n for n in range(61, 10**6) if all(size % n for size in sizes))


def may_mix(jaxpr: Any, size: int) -> bool:
    """Whether an operation may combine images of a batch of `size`; what sorts them is one."""
    for eqn in jaxpr.eqns:
        combined = [(v.aval.shape, axes) for v, axes in _combined(eqn) if not is_literal(v)]
        sizes = [shape[axis] for shape, axes in combined for axis in axes]
        if any(n and n % size == 0 for n in sizes):
            return True
        if any(may_mix(called, size) for called in inner_jaxprs(eqn)):
            return True
    return False


def _combined(eqn: Any) -> list[tuple[Any, Iterable[Any]]]:
    """Operands of an equation and those of their axes along which it combines values."""
    name, params, x = eqn.primitive.name, eqn.params, (*eqn.invars, None)[0]
    if name == "dot_general":
        return [*zip(eqn.invars, params["dimension_numbers"][0], strict=True)]
    if name == "conv_general_dilated":
        return [(x, params["dimension_numbers"].lhs_spec[1:])]
    if name == "scan":  # a step takes a slice of what is scanned, and gives carries as they end
        step = params["jaxpr"].jaxpr
        pairs = zip(step.outvars, eqn.outvars, strict=True)
        carries = any(one.aval.shape == v.aval.shape for one, v in pairs)
        operands = zip(step.invars, eqn.invars, strict=True)
        return [(v, [0]) for one, v in operands if carries and one.aval.shape != v.aval.shape]
    if name == "concatenate":
        return [(v, [params["dimension"]]) for v in eqn.invars]
    if "window_dimensions" in params:
        return [(x, [axis for axis, n in enumerate(params["window_dimensions"]) if n > 1])]
    if name in ("slice", "dynamic_slice", "gather"):
        sizes = params.get("slice_sizes")
        if sizes is None:
            sizes = np.subtract(params["limit_indices"], params["start_indices"])
        pairs = zip(sizes, x.aval.shape, strict=False)
        return [(x, [axis for axis, (part, whole) in enumerate(pairs) if part != whole])]
    if name == "top_k":
        return [(x, [x.aval.ndim - 1])]
    if name.startswith(("arg", "cum", "reduce_", "rev", "sort")):
        single = params.get("axis", params.get("dimension"))
        axes = params.get("axes", params.get("dimensions", [] if single is None else [single]))
        return [(v, [a for a in axes if a < getattr(v.aval, "ndim", 0)]) for v in eqn.invars]
    return []
