"""Where a gradient is not zero, from the forward pass.

The *support* of a gradient is the set of the positions at which it is not zero. It is carried
backwards through the traced equations, from the largest logit to each tap, by what each equation
does to it:

- a convolution or a matrix product whose weights hold no zero passes it to every position that it
  reads: strides, paddings and dilations leave out what they leave out, and one channel stands for
  all, so that this costs next to nothing;
- an element-wise function (ReLU, ReLU6, GELU, a product, a maximum of two) passes it on where its
  derivative is not zero, a max-pool to the largest of each window;
- sums, means, average pools, slices, paddings and concatenations pass it to what they are made of.

So it holds behind max-pools, strides, clips, dead units and pruned weights. One thing is assumed:
that terms that are not zero do not add up to exactly zero, nor underflow. Taps before another
equation, such as a sort or a loop, are left to real gradients; see `Tape.blocked`.

Beside the support each position has a count: how many units that are on read it, `SURE` if no
unit behind it has to be on. It says how certain it is that the position is still read after a small
step; see `after_step`.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from si_jax import splitting
from si_jax.model import Model
from si_jax.networks.equations import BROADCAST, ELEMENTWISE, PRODUCTS, inner, is_literal
from si_jax.splitting import Traced, apply

SURE = 1e9
"""The count of a position that is read whichever units are on."""

READERS = 16
"""How many units must read a position, for it to count as read after a step whatever they do."""

LINEAR = {"add", "add_any", "convert_element_type", "copy", "neg", "reduce_precision", "sub"}
"""Element-wise equations whose derivative is a constant that is not zero."""

UNARY = {
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cbrt", "cos", "cosh",
    "digamma", "erf_inv", "exp2", "floor", "is_finite", "lgamma", "log", "round", "rsqrt", "sign",
    "sin", "sinh", "tan",
}  # fmt: skip
FUNCTIONS = {*ELEMENTWISE, *LINEAR, *UNARY, "atan2", "clamp", "nextafter", "rem"}
"""Element-wise equations."""

STRAIGHT = {*LINEAR, "div", "mul"}
"""Those whose derivative is a constant or the other operand."""

LAYOUT = {"copy", "expand_dims", "reshape", "rev", "squeeze", "transpose"}
"""Equations that hold each value of their operand once, at another place."""

SUMS = {"concatenate", "cumsum", "dynamic_slice", "dynamic_update_slice", "gather", "pad",
        "reduce_sum", "reduce_window_sum", "slice", "split", *LAYOUT}  # fmt: skip
"""Equations that add up or hold values of their operands."""

LARGEST = {"reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"}
"""Equations that choose the largest or the least value of several."""

KEEPING = {"broadcast_in_dim", "div", "integer_pow", "mul", "neg", "sqrt", "square", *LAYOUT}
"""Equations whose result holds no zero if their operands hold none."""


@dataclass(eq=False)
class Value:
    """A value of the computation.

    Attributes:
        array: the value itself.
        known: the concrete value of a weight or a constant.
        made: the equation that makes it, its operands, and which of the results it is.
        graded: whether gradients come back through it to some tap.
    """

    array: Any
    known: Any = None
    made: tuple[Any, tuple["Value", ...], int] | None = None
    graded: bool = False

    @cached_property
    def constant(self) -> bool:
        """Whether it depends on weights and constants alone."""
        if self.made is None:
            return self.known is not None
        return all(v.constant for v in self.made[1])

    @cached_property
    def nonzero(self) -> bool:
        """Whether it is certain that no element is zero."""
        if self.known is not None:
            abstract = isinstance(self.known, jax.ShapeDtypeStruct)  # weights are still to come
            return abstract or bool(np.all(np.asarray(self.known) != 0))
        if self.made is None:
            return False
        eqn, operands, _ = self.made
        name = eqn.primitive.name
        if name == "rsqrt":
            return True
        if name == "convert_element_type" and eqn.params["new_dtype"] != jnp.float16:
            return operands[0].nonzero
        if name in KEEPING and all(v.nonzero for v in operands):
            return True
        return self.constant and bool(np.all(np.asarray(self.concrete) != 0))

    @cached_property
    def concrete(self) -> Any:
        """The value of a constant, outside of any trace."""
        if self.known is not None:
            return self.known
        assert self.made is not None
        eqn, operands, index = self.made
        with jax.ensure_compile_time_eval():
            return _run(eqn, [v.concrete for v in operands])[index]


@dataclass(eq=False)
class Node:
    """An equation that depends on some tap.

    Attributes:
        eqn: the equation.
        inputs: its operands.
        outputs: its results.
        elementwise: whether each element of the result depends on that one element of operands.
        fixed: whether its indices, if it has any, depend on no tap.
    """

    eqn: Any
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    elementwise: bool
    fixed: bool

    @property
    def name(self) -> str:
        """What it does."""
        return self.eqn.primitive.name

    @property
    def shape(self) -> tuple[Any, ...]:
        """The shape of its first result."""
        return self.eqn.outvars[0].aval.shape

    @property
    def graded_shapes(self) -> list[tuple[Any, ...]]:
        """The shapes of those operands that gradients come back to."""
        pairs = zip(self.inputs, self.eqn.invars, strict=True)
        return [var.aval.shape for v, var in pairs if v.graded]

    @property
    def pointwise(self) -> bool:
        """Whether it keeps positions apart: one of the tap makes one of the result."""
        alike = self.elementwise and set(self.graded_shapes) <= {self.shape}
        return alike or self.name in LAYOUT

    @cached_property
    def served(self) -> bool:
        """Whether supports are carried back through it, where gradients come back at all."""
        if not any(v.graded for v in self.outputs):
            return True
        if self.elementwise:
            return all(len(shape) == len(self.shape) for shape in self.graded_shapes)
        summing = self.name in (*SUMS, "broadcast_in_dim") and self.fixed
        return summing or self.name in (*LARGEST, *PRODUCTS)

    @cached_property
    def costly(self) -> bool:
        """Whether it is a convolution or a product that mixes channels."""
        if self.name != "conv_general_dilated":
            return self.name == "dot_general"
        kernel = self.eqn.params["dimension_numbers"].rhs_spec
        return self.inputs[1].array.shape[kernel[1]] != 1


Counts = dict[Value, Array]
"""Value -> how many units read each position; axes along which it is one number have length 1."""


@dataclass(eq=False)
class Tape:
    """A forward pass as a list of equations, through which supports are carried back.

    Attributes:
        nodes: the equations that depend on some tap, in order.
        taps: path -> the tap's value.
        logits: the logits.
    """

    nodes: list[Node]
    taps: dict[str, Value]
    logits: Value
    _parts: dict[bool, dict[Value, list[tuple[Node, Array]]]] = field(default_factory=dict)

    def blocked(self, tap: str) -> tuple[str, ...]:
        """The equations behind a tap through which supports are not carried."""
        reached, names = {self.taps[tap]}, []
        for node in self.nodes:
            if not reached.isdisjoint(node.inputs):
                reached.update(v for v in node.outputs if v.graded)
                names += [] if node.served else [node.name]
        return tuple(dict.fromkeys(names))

    def parts(self, *, open_: bool = False) -> dict[Value, list[tuple[Node, Array]]]:
        """Value -> what each equation that reads it adds to its counts.

        With `open_`, as if all units were on and every element of a window its largest: what is
        never read even then is left out by the network's structure.
        """
        if open_ not in self._parts:
            logits = self.logits.array
            largest = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
            start = jnp.full((1, 1), SURE) if open_ else largest * SURE
            self._parts[open_] = _back(self.nodes, {self.logits: start}, {}, open_)
        return self._parts[open_]

    def support(self, tap: str) -> Bool[Array, "batch *tap"]:
        """Where the gradient of the largest logit at a tap is not zero."""
        value = self.taps[tap]
        counts = _sum([c for _, c in self.parts().get(value, ())])
        if value is self.logits:
            logits = value.array
            counts = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
        return _full(counts > 0, value)

    def bound(self, tap: str, z: Array) -> Bool[Array, "batch *tap"]:
        """Where the gradient at a tap can be anything but zero, at any step of a path from `z` on.

        That is where the element-wise functions behind the tap have a slope, if something reads
        what they make. A position without one is not moved by an adversarial step, whose direction
        has no other support, and so remains without.
        """
        return self._reached(
            self._behind(tap, lambda node: node.pointwise), tap, z, open_=True, least=0
        )

    def after_step(
        self, tap: str, z: Array
    ) -> tuple[Bool[Array, "batch *tap"], Bool[Array, "batch *tap"]]:
        """The support of the gradient at a tap if its value is `z`: (at most, at least).

        What costs little behind the tap (activations, pools, depthwise convolutions, norms) is
        computed again. Of what the first convolution or product reads, all that the structure
        allows may be read at most; and at least what `READERS` units read that are on in the plain
        pass, or what needs none.
        """
        behind = self._behind(tap, lambda node: not node.costly)
        most = self._reached(behind, tap, z, open_=True, least=0)
        return most, self._reached(behind, tap, z, open_=False, least=READERS)

    def steps_by(self, tap: str) -> str:
        """How the support at a tap is known after steps: `"bound"`, `"after_step"`, or not (`""`).

        A bound is useless where the next equation chooses, as a max-pool does, or where few units
        read each position, as those of a depthwise convolution do. Nothing is known where what is
        added to the tap, or compared with it, depends on it by another way.
        """
        behind = self._behind(tap, lambda node: node.pointwise)
        cheap = self._behind(tap, lambda node: not node.costly)
        straight = self._behind(tap, lambda node: node.pointwise and node.name in STRAIGHT)
        if any(n.elementwise and n.name not in STRAIGHT for n in self._readers(cheap, tap)):
            return ""
        if any(n.elementwise and n not in cheap for n in self._readers(straight, tap)):
            return ""
        readers = self._readers(behind, tap)
        chosen = any(n.elementwise and n.name not in STRAIGHT for n in readers)
        thin = any(n.name in (*LARGEST, "conv_general_dilated") and not n.costly for n in readers)
        return "after_step" if chosen or thin else "bound"

    def _behind(self, tap: str, allowed: Callable[[Node], bool]) -> dict[Node, None]:
        """The equations from a tap on that `allowed` admits, and that need no others behind it."""
        carried, moved = {self.taps[tap]}, {self.taps[tap]}
        behind: dict[Node, None] = {}
        for node in self.nodes:
            dependent = [v for v in node.inputs if v in moved]
            if not dependent:
                continue
            moved.update(node.outputs)
            if allowed(node) and all(v in carried for v in dependent):
                carried.update(node.outputs)
                behind[node] = None
        return behind

    def _readers(self, behind: Mapping[Node, None], tap: str) -> list[Node]:
        """The equations that read what those `behind` a tap make, or the tap, without being one."""
        inside = {self.taps[tap], *(v for node in behind for v in node.outputs)}
        return [n for n in self.nodes if n not in behind and not inside.isdisjoint(n.inputs)]

    def _reached(self, behind, tap, z, *, open_: bool, least: int):
        """What of a tap of value `z` is read through the equations `behind` it, by others."""
        arrays = {self.taps[tap]: z}
        for node in behind:
            operands = [arrays.get(v, v.array) for v in node.inputs]
            arrays.update(zip(node.outputs, _run(node.eqn, operands), strict=True))
        start = {}
        for value in arrays:
            counts = [c for n, c in self.parts(open_=open_).get(value, ()) if n not in behind]
            if value is self.logits:
                counts.append(jnp.full((1, 1), SURE))
            if counts:
                total = _sum(counts)
                start[value] = jnp.where(total >= max(least, 1), total, 0)
        value = self.taps[tap]
        parts = _back(list(behind), start, arrays, False).get(value, [])
        own = [start[value]] if value in start else []
        return _full(_sum([*own, *(c for _, c in parts)]) > 0, value)


class Look(NamedTuple):
    """Which equations behind a tap carry no supports, and how these are known after steps."""

    blocked: tuple[str, ...]
    steps_by: str


def look(model: Model, taps: Sequence[str]) -> dict[str, Look]:
    """Tap -> what is known of it, read off the equations, without running the network."""
    traced, found = splitting.outline(model, taps), {}

    def pass_(variables, images):
        pass_of_them = replace(traced, arguments=(variables, images))
        values = dict(zip(traced.variables, pass_of_them.run(), strict=True))
        tape = record(traced, values, model.variables, taps)
        found.update({tap: Look(tape.blocked(tap), tape.steps_by(tap)) for tap in taps})
        return ()

    jax.eval_shape(pass_, *traced.arguments)
    return found


def record(traced: Traced, values: Mapping[Any, Array], weights: Any, taps: Iterable[str]) -> Tape:
    """The tape of a pass; `weights`, outside of any trace, show whether they hold zeros."""
    jaxpr = traced.closed.jaxpr
    known = [*jax.tree.leaves(weights), *[None] * len(jaxpr.invars)]
    env = {v: Value(values.get(v), x) for v, x in zip(jaxpr.invars, known, strict=False)}
    tapped = {traced.taps[tap] for tap in taps}
    nodes: list[Node] = []
    moved: set[Value] = set()  # what depends on a tap

    def value(v, env):
        return _constant(v.val) if is_literal(v) else env[v]

    def walk(jaxpr, consts, env, values):
        """Add what a jaxpr makes to `env`; its values are given, or computed."""
        env.update(zip(jaxpr.constvars, map(_constant, consts), strict=True))
        for eqn in jaxpr.eqns:
            inputs = tuple(value(v, env) for v in eqn.invars)
            depends = not moved.isdisjoint(inputs)
            elementwise = depends and is_elementwise(eqn)
            called = inner(eqn)
            if depends and called and not elementwise and eqn.primitive.name != "custom_vjp_call":
                own = dict(zip(called.jaxpr.invars, inputs, strict=True))
                walk(called.jaxpr, called.consts, own, None)
                outputs = [value(v, own) for v in called.jaxpr.outvars]
            else:
                if values is None:
                    arrays = _run(eqn, [v.array for v in inputs])
                else:
                    arrays = [values.get(v) for v in eqn.outvars]
                outputs = [Value(x, made=(eqn, inputs, i)) for i, x in enumerate(arrays)]
                graded = eqn.primitive.name != "stop_gradient" and any(v.graded for v in inputs)
                for made, v in zip(outputs, eqn.outvars, strict=True):
                    made.graded = graded and jnp.issubdtype(v.aval.dtype, jnp.inexact)
                if depends:
                    fixed = moved.isdisjoint(v for v in inputs if not v.graded)
                    nodes.append(Node(eqn, inputs, tuple(outputs), elementwise, fixed))
                    moved.update(outputs)
            env.update(zip(eqn.outvars, outputs, strict=True))
            for v in tapped.intersection(eqn.outvars):
                moved.add(env[v])
                env[v].graded = True

    walk(jaxpr, traced.closed.consts, env, values)
    return Tape(nodes, {tap: env[traced.taps[tap]] for tap in taps}, env[traced.logits])


def _constant(x: Any) -> Value:
    return Value(x, None if isinstance(x, jax.core.Tracer) else x)


def is_elementwise(eqn: Any) -> bool:
    """Whether each element of an equation's one result is made of that one element of operands."""
    if len(eqn.outvars) != 1 or eqn.primitive.name == "custom_vjp_call":
        return False
    shape = eqn.outvars[0].aval.shape
    if not all(_spreads(v.aval.shape, shape) for v in eqn.invars):
        return False
    if called := inner(eqn):
        constants = [x for x in called.consts if np.ndim(x)]
        return not constants and all(
            is_elementwise(e) or (e.primitive.name in BROADCAST and not e.invars[0].aval.shape)
            for e in called.jaxpr.eqns
        )
    return eqn.primitive.name in FUNCTIONS


def _back(
    nodes: Sequence[Node], start: Counts, arrays: Mapping[Value, Array], open_: bool
) -> dict[Value, list[tuple[Node, Array]]]:
    """Carry counts back: value -> what each equation that reads it adds; see `Tape.parts`."""
    parts: dict[Value, list[tuple[Node, Array]]] = {}
    for node in reversed([node for node in nodes if node.served]):
        entering = [
            [*([start[v]] if v in start else []), *(c for _, c in parts.get(v, ()))]
            for v in node.outputs
        ]
        if not any(entering):
            continue
        outs = [_sum(counts) if counts else None for counts in entering]
        for value in dict.fromkeys(v for v in node.inputs if v.graded):
            pulled = _pull(node, value, outs, lambda v: arrays.get(v, v.array), open_)
            parts.setdefault(value, []).append((node, pulled))
    return parts


def _pull(node: Node, value: Value, outs: list, array: Callable[[Value], Array], open_: bool):
    """What an equation adds to the counts of one of its operands."""
    eqn, name, counts = node.eqn, node.name, outs[0]
    places = [i for i, v in enumerate(node.inputs) if v is value]
    others = [v for v in node.inputs if v is not value]

    def run(x):
        return _run(eqn, [x if v is value else array(v) for v in node.inputs])

    if node.elementwise:
        spread = eqn.invars[places[0]].aval.shape
        return _gathered(
            _through_function(node, value, counts, run, array, open_), spread, node.shape
        )
    if name == "transpose":
        return counts.transpose(np.argsort(eqn.params["permutation"]))
    if name == "reduce_sum" or (name in ("reduce_max", "reduce_min") and open_):
        return jnp.expand_dims(counts, eqn.params["axes"])
    if name in PRODUCTS:
        grouped = eqn.params.get("batch_group_count", 1) > 1
        dense = len(others) == 1 and (others[0].nonzero or (open_ and not others[0].constant))
        if dense and name == "dot_general":
            return _through_product(eqn, places[0], _read(counts))
        if dense and places == [0] and not grouped:
            return _through_convolution(eqn, _read(counts))
        pairs = [
            (v, ((array(v) != 0) | (open_ and not v.constant)).astype(v.array.dtype))
            for v in node.inputs
        ]

        def run(x):  # each weight that is not zero counts alike
            return _run(eqn, [x if v is value else one for v, one in pairs])

        outs = [_read(counts)]
    if name == "broadcast_in_dim":
        outs = [_read(counts)]
    if name in LARGEST:
        outs = [(counts > 0).astype(jnp.float32)]
        if open_:
            options = {k: v for k, v in eqn.params.items() if k != "out_sharding"}

            def run(x):
                return [lax.reduce_window_sum_p.bind(x, **options)]

    x = array(value)
    if name not in LARGEST or open_:
        x = jnp.zeros_like(x)
    results, pull = jax.vjp(run, x)
    cotangents = [
        jnp.zeros_like(y) if c is None else jnp.broadcast_to(c, y.shape).astype(y.dtype)
        for y, c in zip(results, outs, strict=True)
    ]
    pulled = pull(cotangents)[0].astype(jnp.float32)
    return (pulled > 0).astype(jnp.float32) if name in LARGEST else pulled


def _through_function(node, value, counts, run, array, open_: bool) -> Array:
    """Counts of an operand of an element-wise function, in the shape of its result."""
    places = [i for i, v in enumerate(node.inputs) if v is value]
    if node.name in LINEAR and len(places) == 1:
        return counts
    if node.name in ("mul", "div") and len(places) == 1 and (node.name, places[0]) != ("div", 1):
        (other,) = (v for v in node.inputs if v is not value)
        if node.name == "div" or other.nonzero or (open_ and not other.constant):
            return counts
        return jnp.where(array(other) != 0, counts, 0)
    if open_:
        return counts
    x = array(value)
    slope = jax.jvp(lambda x: run(x)[0], (x,), (jnp.ones_like(x),))[1]
    # what is not finite counts, lest a broken pass look like a quiet one
    return (((slope != 0) & (counts > 0)) | ~jnp.isfinite(x)).astype(jnp.float32)


def _gathered(counts: Array, shape: tuple[Any, ...], spread: tuple[Any, ...]) -> Array:
    """Counts of an operand of a shape that an element-wise function spread to another."""
    axes = tuple(a for a in range(len(shape)) if shape[a] != spread[a])
    if not axes:
        return counts
    held = math.prod(counts.shape[a] for a in axes)
    lengths = math.prod(spread[a] for a in axes)
    return jnp.sum(_read(counts), axis=axes, keepdims=True) * (lengths // held)


def _spreads(shape: tuple[Any, ...], to: tuple[Any, ...]) -> bool:
    pairs = zip(shape, to, strict=False)
    return not shape or (len(shape) == len(to) and all(n in (1, m) for n, m in pairs))


def _read(counts: Array) -> Array:
    """What something that is itself read so often adds to the counts of what it reads."""
    certain = jnp.where(counts >= READERS, READERS, (counts > 0).astype(counts.dtype))
    return jnp.where(counts >= SURE, SURE, certain)


def _through_product(eqn: Any, place: int, counts: Array) -> Array:
    """Counts of one operand of a matrix product whose other operand holds no zero."""
    contracted, batched = eqn.params["dimension_numbers"]
    own, batch = contracted[place], batched[place]
    shapes = [v.aval.shape for v in eqn.invars]
    free = [
        [a for a in range(len(shapes[i])) if a not in (*contracted[i], *batched[i])] for i in (0, 1)
    ]
    begin = len(batch) + (len(free[0]) if place == 0 else 0)
    summed = range(begin, begin + len(free[1 - place]))
    lengths = math.prod(n for a, n in enumerate(eqn.outvars[0].aval.shape) if a in summed)
    held = math.prod(counts.shape[a] for a in summed)
    counts = jnp.sum(counts, axis=tuple(summed)) * (lengths // held)
    axes = [*batch, *free[place]]
    return jnp.expand_dims(counts.transpose(np.argsort(axes)), own)


def _through_convolution(eqn: Any, counts: Array) -> Array:
    """Counts of the input of a convolution whose kernel holds no zero."""
    params = eqn.params
    spec = params["dimension_numbers"]
    shape, kernel, out = (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
    groups, outer = params["feature_group_count"], out[spec.out_spec[1]]
    counts = counts.transpose(spec.out_spec)  # batch, channels, space
    space = tuple(out[a] for a in spec.out_spec[2:])
    counts = jnp.broadcast_to(counts, (*counts.shape[:2], *space))
    if counts.shape[1] == 1 or groups == 1:
        counts = counts.sum(axis=1, keepdims=True) * (outer // groups // counts.shape[1] or 1)
    else:
        counts = counts.reshape(counts.shape[0], groups, -1, *space).sum(axis=2)
        counts = jnp.repeat(counts, shape[spec.lhs_spec[1]] // groups, axis=1)
    window = [1, 1]
    for axis, a in enumerate(spec.lhs_spec[2:]):
        size, dilation = kernel[spec.rhs_spec[2 + axis]], params["rhs_dilation"][axis]
        stride, low = params["window_strides"][axis], params["padding"][axis][0]
        length = (shape[a] - 1) * params["lhs_dilation"][axis] + 1
        before = (size - 1) * dilation - low
        after = length - 1 + low - (space[axis] - 1) * stride
        counts = _padded(_dilated(counts, axis + 2, stride), axis + 2, before, after)
        window.append(size)
    counts = lax.reduce_window(
        counts, 0.0, lax.add, window, [1] * len(window), "VALID",
        window_dilation=[1, 1, *params["rhs_dilation"]],
    )  # fmt: skip
    every = (slice(None), slice(None), *(slice(None, None, d) for d in params["lhs_dilation"]))
    return counts[every].transpose(np.argsort(spec.lhs_spec))


def _dilated(x: Array, axis: int, by: int) -> Array:
    """With `by - 1` zeros between the elements along an axis, which ONNX's padding cannot make."""
    if by == 1:
        return x
    length = x.shape[axis]
    spread = _padded(jnp.expand_dims(x, axis + 1), axis + 1, 0, by - 1)
    spread = spread.reshape(*x.shape[:axis], length * by, *x.shape[axis + 1 :])
    return lax.slice_in_dim(spread, 0, (length - 1) * by + 1, axis=axis)


def _padded(x: Array, axis: int, before: int, after: int) -> Array:
    """With zeros before and after along an axis, or less where that is negative."""
    x = lax.slice_in_dim(x, max(-before, 0), x.shape[axis] - max(-after, 0), axis=axis)
    shapes = [(*x.shape[:axis], max(n, 0), *x.shape[axis + 1 :]) for n in (before, after)]
    zeros = [jnp.zeros(shape, x.dtype) for shape in shapes]
    return jnp.concatenate([zeros[0], x, zeros[1]], axis=axis)


def _run(eqn: Any, arrays: Sequence[Any]) -> list[Any]:
    """The results of an equation."""
    operands = {v: x for v, x in zip(eqn.invars, arrays, strict=True) if not is_literal(v)}
    return apply(eqn, operands, *operands.values())


def _sum(counts: Sequence[Array]) -> Array:
    return functools.reduce(jnp.add, counts, jnp.zeros(()))


def _full(mask: Array, value: Value) -> Array:
    return jnp.broadcast_to(mask, value.array.shape)
