"""Splitting: record the outputs of any network's layers, and replace them.

A **tap** is the output of one sub-module's call, named by the module's path, such as
`"layer1_0/bn1"`. A module that is called again has `"#1"`, `"#2"` ... after its path. The network
itself knows nothing of taps: `si_jax.networks` reaches them in every framework.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from si_jax.networks.equations import is_literal
from si_jax.networks.framework import Named
from si_jax.networks.network import Images, Network, run, vector_shape

FEATURES = "(features)"
"""Name of the one tap that is no module's output: the input of the classifier head."""


class Forward(NamedTuple):
    """What one forward pass gives: float32 logits and features whatever the network computes in."""

    logits: Float[Array, "batch classes"]
    features: Float[Array, "batch features"]  # the input of the classifier head, or the logits
    outputs: dict[str, Any]  # path -> output, as it is, of the sub-modules that were to be recorded


def forward(
    model: Network,
    variables: Named,
    images: Images,
    *,
    record: Iterable[str] = (),  # paths, or `FEATURES`, whose outputs are returned, after editing
    edit: Mapping[str, Callable[[Array], Array]] | None = None,  # path -> function of the output
) -> Forward:
    """Run a network, recording or editing outputs of sub-modules on the way."""
    record, edit = frozenset(record), edit or {}
    outputs: dict[str, Any] = {}
    features: list[Array] = []

    def visit(path, module, call, args):
        if path == model.head:
            shape = (args[0].shape[0], *vector_shape(args[0].shape[1:]))
            x = done(FEATURES, args[0].reshape(shape))
            features.append(x.astype(jnp.float32))
            args = (x.reshape(args[0].shape), *args[1:])
        return done(path, call(*args))

    def done(path, out):
        if path in edit:
            out = edit[path](out)
        if path in record:
            # a value of its own: an identity's input, say, is read by others too
            outputs[path] = out = jax.tree.map(jnp.copy, out)
        return out

    logits = run(model, variables, images, visit).astype(jnp.float32)
    return Forward(logits, features[-1] if model.head else logits, outputs)


Target = Callable[[Forward], Float[Array, "batch"]]
"""Attribution target: a forward pass -> one number per image, whose gradient is taken."""

Gradients = Callable[[Target], dict[str, Array]]
"""Attribution target -> its gradient at each tap, path -> array."""


@dataclass(frozen=True)
class Traced:
    """One forward pass as a list of equations (a jaxpr), of which every value can be had."""

    closed: Any
    arguments: tuple[Any, Any]  # variables and images, whose leaves are the inputs
    logits: Any  # a variable of the equations, as the features and each of the taps
    features: Any
    taps: dict[str, Any]

    @cached_property
    def variables(self) -> tuple[Any, ...]:
        """Every variable that some equation or output needs."""
        jaxpr = self.closed.jaxpr
        needed = [v for eqn in jaxpr.eqns for v in eqn.invars] + jaxpr.outvars
        return tuple(dict.fromkeys(v for v in needed if not is_literal(v)))

    def run(self, offsets: Mapping[str, Array] | None = None) -> list[Any]:
        """The values of `variables`, with `offsets` added to the outputs at their paths."""
        jaxpr = self.closed.jaxpr
        added: dict[Any, list[Array]] = {}
        for path, offset in (offsets or {}).items():
            added.setdefault(self.taps[path], []).append(offset)
        given = [*jax.tree.leaves(self.arguments), *self.closed.consts]
        values = dict(zip([*jaxpr.invars, *jaxpr.constvars], given, strict=True))
        for eqn in jaxpr.eqns:
            inputs = _inputs(eqn)
            made = apply(eqn, inputs, *(values[v] for v in inputs))
            for v, x in zip(eqn.outvars, made, strict=True):
                values[v] = functools.reduce(jnp.add, added.get(v, ()), x)
        return [values[v] for v in self.variables]

    def outputs(self, values: Mapping[Any, Any]) -> Forward:
        """What a forward pass with these values gives, with all taps as outputs."""
        outputs = {path: values[var] for path, var in self.taps.items()}
        return Forward(values[self.logits], values[self.features], outputs)


@dataclass(frozen=True)
class Linearised:
    """A forward pass and its gradients at taps, by one linearisation however many are asked for."""

    traced: Traced
    values: dict[Any, Any]  # of every variable
    out: Forward
    gradient: Gradients  # at the taps that were differentiated

    def split(self, replaced: Mapping[str, Float[Array, "batch ..."]]) -> Gradients:
        """Gradients with taps replaced, each of them on its own; only what depends on it is run."""

        def run(replaced):
            return _rows(self.traced, self.values, replaced), None

        return _differentiate(run, dict(replaced), jax.vmap)[0]


def trace(model: Network, variables: Named, images: Images, taps: Iterable[str]) -> Traced:
    """Trace one forward pass, without computing it; of the images the shape is enough."""
    taps = tuple(dict.fromkeys(taps))

    def run(variables, images):
        out = forward(model, variables, images, record=taps)
        return [out.logits, out.features, *(out.outputs[k] for k in taps)]

    closed = jax.make_jaxpr(run)(variables, images)
    logits, features, *tapped = closed.jaxpr.outvars
    places = dict(zip(taps, tapped, strict=True))
    return Traced(closed, (variables, images), logits, features, places)


def outline(model: Network, taps: Sequence[str]) -> Traced:
    """One forward pass of one image, to be looked at; a network is traced once for all its taps."""
    if model not in OUTLINES:
        image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
        hidden = model.outline.hidden
        paths = [call.path for call in model.calls if call.shape and call.path not in hidden]
        OUTLINES[model] = trace(model, model.variables, image, paths)
    whole = OUTLINES[model]
    tapped = {tap: whole.taps[tap] for tap in taps}
    outvars = [whole.logits, whole.features, *tapped.values()]
    jaxpr = whole.closed.jaxpr.replace(outvars=outvars)
    return replace(whole, closed=whole.closed.replace(jaxpr=jaxpr), taps=tapped)


OUTLINES: WeakKeyDictionary[Network, Traced] = WeakKeyDictionary()


def linearise(
    model: Network, variables: Named, images: Images, taps: Iterable[str], watch: Iterable[str] = ()
) -> Linearised:
    """One forward pass, linearised from the first of the taps on; `watch` is recorded too."""
    taps = tuple(dict.fromkeys(taps))
    traced = trace(model, variables, images, (*taps, *watch))
    offsets = {k: jnp.zeros_like(traced.taps[k].aval) for k in taps}

    def run(offsets):
        values = dict(zip(traced.variables, traced.run(offsets), strict=True))
        return (values[traced.logits], values[traced.features]), list(values.values())

    gradient, values = _differentiate(run, offsets)
    values = dict(zip(traced.variables, values, strict=True))
    return Linearised(traced, values, traced.outputs(values), gradient)


def evaluate(jaxpr: Any, outputs: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """Values of the variables `outputs` of a jaxpr; `jit` computes only what they need."""
    part = jaxpr.replace(outvars=list(outputs), debug_info=jaxpr.debug_info.with_unknown_names())
    return jax.core.eval_jaxpr(part, (), *inputs)


def apply(eqn: Any, inputs: Iterable[Any], *operands: Any) -> list[Any]:
    """What an equation makes of the values of its `inputs`."""
    one = _empty().replace(invars=list(inputs), eqns=[eqn])
    return evaluate(one, eqn.outvars, operands)


@functools.cache
def _empty() -> Any:
    return jax.make_jaxpr(lambda: ())().jaxpr


def _inputs(eqn: Any) -> tuple[Any, ...]:
    """The variables that enter an equation, each once."""
    return tuple(dict.fromkeys(v for v in eqn.invars if not is_literal(v)))


def _differentiate(run, at, over=lambda function: function) -> tuple[Gradients, Any]:
    """(target -> gradients at `at`, auxiliary results) of `run`; `over` maps over rows, if any."""
    outputs, pullback, auxiliary = jax.vjp(run, at, has_aux=True)

    def gradient(target):
        each = over(lambda *row: target(Forward(*row, {})))
        cotangents = jax.grad(lambda outputs: jnp.sum(each(*outputs)))(outputs)
        return pullback(cotangents)[0]

    return gradient, auxiliary


def _rows(traced, values, replaced) -> tuple[Array, Array]:
    """Logits and features (taps, batch, ...) of the network with one tap replaced in each row.

    Every equation runs on those rows alone whose tap it depends on; elsewhere `values` stand.
    """
    # in the network's order, which JAX does not keep: it sorts the keys of what it differentiates
    replaced = {path: replaced[path] for path in traced.taps if path in replaced}
    begun: dict[Any, list[int]] = {}  # variable -> the rows that begin there
    for index, path in enumerate(replaced):
        begun.setdefault(traced.taps[path], []).append(index)
    new = [z[None] for z in replaced.values()]
    rows: dict[Any, tuple[list[int], Array]] = {}  # variable -> its rows, and their values

    for eqn in traced.closed.jaxpr.eqns:
        inputs = _inputs(eqn)
        indices = sorted({i for v in inputs if v in rows for i in rows[v][0]})
        made: list[list[Array]] = [[] for _ in eqn.outvars]
        if indices:
            operands = [
                _aligned(*rows[v], values[v], indices) if v in rows else values[v] for v in inputs
            ]
            axes = [0 if v in rows else None for v in inputs]
            made = [[x] for x in jax.vmap(partial(apply, eqn, inputs), in_axes=axes)(*operands)]
        for variable, parts in zip(eqn.outvars, made, strict=True):
            own = begun.get(variable, [])
            if parts := [*parts, *(new[i] for i in own)]:
                rows[variable] = ([*indices, *own], jnp.concatenate(parts))

    def all_rows(v):
        return _aligned(*rows.get(v, ([], None)), values[v], range(len(new)))

    return all_rows(traced.logits), all_rows(traced.features)


def _aligned(indices, stacked, plain, wanted) -> Array:
    """Rows `wanted`, in order, of which `stacked` holds `indices`; the others are `plain`."""
    if list(indices) == list(wanted):
        return stacked
    parts, taken = [], 0
    for given, group in itertools.groupby(wanted, key=set(indices).__contains__):
        count = len(list(group))
        if given:
            parts.append(stacked[taken : taken + count])
            taken += count
        else:
            parts.append(jnp.broadcast_to(plain, (count, *plain.shape)))
    return jnp.concatenate(parts)
