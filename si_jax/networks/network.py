"""A network with its weights: run with a visit around each call, and looked at from outside."""

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from si_jax.networks import trouble
from si_jax.networks.framework import Framework, Visit, framework_of

HIDDEN = (
    "lies inside a transformation of the network's own, such as nn.scan, nn.vmap or jax.lax.scan,"
    " where activations cannot be reached: give a network that calls its layers one by one"
)


@dataclass(frozen=True)
class Call:
    """One call of a sub-module.

    Attributes:
        path: the module's path, the tap's name.
        module: the module.
        shape: shape of the output without the batch axis; None where the output is no array.
        leaf: whether no other sub-module was called inside.
    """

    path: str
    module: Any = field(compare=False)
    shape: tuple[int, ...] | None
    leaf: bool


class Outline(NamedTuple):
    """What a run of the network on one image looks like.

    Attributes:
        calls: every sub-module's call, in the order in which they end.
        logits: shape and dtype of the network's output, without the batch axis.
        inputs: path -> shape of the first input of each call, without the batch axis; None where
            it is no array.
        heads: paths of the linear layers that may have given the logits.
        ends_in_head: whether the logits are what one of these returned, and nothing came after it.
        hidden: paths of calls inside a transformation, such as `nn.scan`: no value of theirs can be
            recorded or replaced, so they are no taps.
        inline: whether `jax.jit` and `nn.remat` inside the network are left out, so that what they
            hold can be reached.
    """

    calls: tuple[Call, ...]
    logits: tuple[int, ...]
    inputs: Mapping[str, tuple[int, ...] | None]
    heads: tuple[str, ...]
    ends_in_head: bool
    hidden: frozenset[str]
    inline: bool


class Network:
    """A network of any framework with its weights; `si_jax.Model` is one.

    Attributes:
        module: the network, an object of its framework.
        variables: its variables.
        input_size: height and width of the images, in pixels.
        mean: one number for each channel of the images.
        head: path of the last linear layer.
        call_kwargs: further keywords of the network's call.
        output: key or index of the logits in the network's output; None if it is the logits.
        precision: matrix precision.
    """

    module: Any
    variables: Mapping[str, Any]
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    head: str
    call_kwargs: Mapping[str, Any]
    output: str | int | None
    precision: str

    @cached_property
    def framework(self) -> Framework:
        """How networks of this kind are run."""
        return framework_of(self.module)

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
        return self.outline.logits[-1]

    @property
    def num_features(self) -> int:
        """Number of channels of what enters the head."""
        shape = self.outline.inputs[self.head]
        return shape[-1] if shape else 0


def run(
    network: Network,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    visit: Visit,
) -> Any:
    """The network's logits, with `visit` around each sub-module's call.

    Raises:
        ValueError: if `output` is no entry of what the network returns.
    """
    look = network.outline

    def shown(path, module, call, args):
        return call(*args) if path in look.hidden else visit(path, module, call, args)

    return _logits(network, _run(network, variables, images, shown, look.inline))


def outline(network: Network, *, inline: bool) -> Outline:
    """Look at a run on one image, without computing it.

    Raises:
        ValueError: if the network cannot be run on an image, or does not return logits.
    """
    ended: list[Call] = []
    inputs: dict[str, tuple[int, ...] | None] = {}
    linear: dict[str, Any] = {}
    hidden: list[str] = []
    outer: list[Any] = []
    result: list[Any] = []

    def visit(path, module, call, args):
        if any(trace_of(x) not in (None, *outer) for x in jax.tree.leaves(args)):
            hidden.append(path)
            return call(*args)
        before = len(ended)
        out = call(*args)
        ended.append(Call(path, module, _shape(out), leaf=len(ended) == before))
        inputs[path] = _shape(args[0]) if args else None
        if network.framework.is_linear(module):
            linear[path] = out
        return out

    def trace(variables, images):
        outer.append(trace_of(images))
        try:
            out = _run(network, variables, images, visit, inline)
        except Exception as error:
            raise trouble.told(error, network.image_shape) from error
        logits = _logits(network, out)
        if getattr(logits, "ndim", None) != 2 or logits.shape[0] != 1:
            raise ValueError(
                "the network must return logits of shape (batch, classes), but for one image it"
                f" returns {jax.tree.map(jnp.shape, out)}: where one entry is the logits, give its"
                " key or index as output"
            )
        same = [path for path, out in linear.items() if out is logits]
        alike = [path for path, out in linear.items() if jnp.shape(out) == logits.shape]
        result.append(
            Outline(
                calls=tuple(ended),
                logits=_shape(logits) or (),
                inputs=inputs,
                heads=tuple(same or alike),
                ends_in_head=bool(same),
                hidden=frozenset(hidden),
                inline=inline,
            )
        )

    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    jax.eval_shape(trace, network.variables, image)
    return result[0]


def _run(network, variables, images, visit, inline):
    """The network's output; paths of repeated calls are numbered."""
    counts: Counter[str] = Counter()

    def numbered(path, module, call, args):
        count = counts[path]
        counts[path] += 1
        return visit(f"{path}#{count}" if count else path, module, call, args)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision(network.precision))
        if inline:
            stack.enter_context(jax.disable_jit())
            stack.enter_context(network.framework.inline())
        return network.framework.run(
            network.module, variables, images, network.call_kwargs, numbered
        )


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


def _shape(x: Any) -> tuple[int, ...] | None:
    """Shape of an array without the batch axis; None of anything else."""
    return tuple(x.shape[1:]) if isinstance(x, jax.Array) else None
