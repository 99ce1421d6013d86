"""What the equations of a traced computation (a jaxpr) do: which of them are activations.

An activation counts as *like a ReLU* if it is element-wise and distinguishes positive inputs:
ReLU and those with a cap, such as ReLU6, which are zero for all others; those that vanish far below
zero and are proportional to their input far above, GELU in both its forms, SiLU, Mish, softplus;
and those that have another slope below zero, LeakyReLU, PReLU, ELU, CELU, SELU. Whether it is so
is seen from its values, so it does not matter how JAX spells it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr
from scipy import special

FAR = np.array([-80.0, -40.0, -20.0, -3.5, -0.5, 0.0, 1e-3, 0.5, 3.5, 20.0, 40.0, 80.0])
"""Where an activation is looked at; at -3.5 smooth ones are not zero, while a ReLU is."""

SLOPES = (0.1, 0.3)
"""Two values of a learnt factor, such as PReLU's slope, which must change nothing above zero."""

TOLERANCE = 1e-3
LONGEST = 32
"""Most equations of an activation, as far as one is looked for from its output."""


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "convert_element_type": np.asarray,
    "copy": np.asarray,
    "div": np.divide,
    "erf": special.erf,
    "erfc": special.erfc,
    "exp": np.exp,
    "expm1": np.expm1,
    "ge": np.greater_equal,
    "gt": np.greater,
    "integer_pow": lambda x, y: x**y,
    "le": np.less_equal,
    "log1p": np.log1p,
    "logistic": special.expit,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "pow": np.power,
    "select_n": lambda which, *cases: np.choose(which, cases),
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tanh": np.tanh,
}
"""Primitive -> what it does to NumPy arrays."""

PRODUCTS = ("conv_general_dilated", "dot_general")
"""Primitives that multiply by weights: linear in each operand where the others are constants."""

BROADCAST = ("broadcast_in_dim", "reshape", "squeeze")
"""Primitives that leave a constant scalar what it is."""


class Activation(NamedTuple):
    """An activation that is like a ReLU."""

    equations: frozenset[int]  # their `id`s
    made: frozenset[Any]  # the variables that they make
    output: Any  # the last of these
    switches: bool  # whether it is zero, and not only small, below zero


def is_literal(variable: Any) -> bool:
    """Whether an operand of an equation is a constant rather than a variable."""
    return hasattr(variable, "val")


def is_relu(eqn: Any) -> bool:
    """Whether an equation is max(x, 0), however often it is wrapped."""
    if eqn.primitive.name == "max":
        return any(is_literal(v) and not np.any(v.val) for v in eqn.invars)
    called = inner(eqn)
    equations = called.jaxpr.eqns if called else []
    return len(equations) == 1 and len(eqn.invars) == 1 and is_relu(equations[0])


CALLS = ("jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")


def inner(eqn: Any) -> Any:
    """The closed jaxpr that an equation calls, as `jax.jit` and `jax.custom_jvp` do; else None."""
    if eqn.primitive.name not in CALLS:
        return None
    called = eqn.params.get("call_jaxpr") or eqn.params["jaxpr"]
    return called if hasattr(called, "consts") else ClosedJaxpr(called, ())


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """Every jaxpr that an equation may run, those of branches and loops too."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else [value]:
            called = getattr(part, "jaxpr", part)
            if hasattr(called, "eqns"):
                yield called


def spread(jaxpr: Any, facts: dict[Any, Any], others: set[Any], rule: Callable[..., Any]) -> None:
    """Find what is known of the variables that depend on those in `facts` or in `others`.

    `rule(equation, output, facts, whether each operand depends on them)` is the fact of an output;
    None makes it one of the `others`.
    """
    for eqn in jaxpr.eqns:
        depends = [not is_literal(v) and (v in facts or v in others) for v in eqn.invars]
        if not any(depends):
            continue
        if called := inner(eqn):
            pairs = zip(called.jaxpr.invars, eqn.invars, depends, strict=True)
            entering = [(a, v) for a, v, does in pairs if does]
            own = {a: facts[v] for a, v in entering if v in facts}
            rest = {a for a, _ in entering} - own.keys()
            spread(called.jaxpr, own, rest, rule)
            made = zip(eqn.outvars, called.jaxpr.outvars, strict=True)
            found = {v: own.get(a) for v, a in made if not is_literal(a) and a in own.keys() | rest}
        else:
            found = {v: rule(eqn, v, facts, depends) for v in eqn.outvars}
        for v, fact in found.items():
            if fact is None and v not in facts:
                others.add(v)
            elif v not in facts:
                facts[v] = fact


class Equations:
    """The equations of a closed jaxpr, looked at from one variable on."""

    def __init__(self, closed: Any):
        self.jaxpr = closed.jaxpr
        self._closed = closed

    @cached_property
    def _order(self) -> dict[int, int]:
        return {id(eqn): place for place, eqn in enumerate(self.jaxpr.eqns)}

    @cached_property
    def users(self) -> dict[Any, list[Any]]:
        """Variable -> the equations that it enters."""
        users: dict[Any, list[Any]] = {}
        for eqn in self.jaxpr.eqns:
            for variable in dict.fromkeys(v for v in eqn.invars if not is_literal(v)):
                users.setdefault(variable, []).append(eqn)
        return users

    @cached_property
    def _constants(self) -> dict[Any, Any]:
        """Variables that hold one number, whatever the images are -> the number."""
        return _computed(self._closed, {})

    def activation(self, x: Any, made_of_it: Any = None) -> Activation | None:
        """The activation like a ReLU whose input is the variable `x`; None if there is none.

        Other equations may use `x` too, but none may use what lies inside the activation. Its
        output is the last possible one, or the variable `made_of_it`.
        """
        made: dict[Any, Any] = {}
        found = []
        for slope in SLOPES:
            values = {x: FAR, **self._constants}
            for eqn in self._behind(x, values):
                out = eqn.outvars[0]
                if len(eqn.outvars) != 1 or out.aval.shape != x.aval.shape:
                    continue
                unknown = {v: slope for v in eqn.invars if not is_literal(v) and v not in values}
                value = _apply(eqn, {**values, **unknown})
                if value is not None:
                    values[out], made[out] = value, eqn
            found.append(values)
        for output in reversed(made) if made_of_it is None else {made_of_it} & made.keys():
            one, other = (values.get(output) for values in found)
            if one is None or other is None or not (_like_relu(one) and _like_relu(other)):
                continue
            if not np.array_equal(one[FAR > 0], other[FAR > 0]):  # a factor of what is above zero
                continue
            if inside := self._inside(output, made):
                switches = not abs(one[FAR == -3.5]).item() > 1e-6
                ids = frozenset(id(made[v]) for v in inside)
                return Activation(ids, frozenset(inside), output, switches)
        return None

    def input_of(self, y: Any) -> Any:
        """The variable of which `y` is GELU, SiLU or their like, which switch nothing off.

        None if there is none: the search goes back through a few equations that are element-wise.
        """
        makers = {v: eqn for eqn in self.jaxpr.eqns for v in eqn.outvars}
        waiting = [y]
        for variable in itertools.islice(waiting, LONGEST):
            eqn = makers.get(variable)
            if eqn is None or not (eqn.primitive.name in ELEMENTWISE or inner(eqn)):
                continue
            for x in eqn.invars:
                if is_literal(x) or x in waiting or x.aval.shape != y.aval.shape:
                    continue
                activation = self.activation(x, y)
                if activation and not activation.switches:
                    return x
                waiting.append(x)
        return None

    def _behind(self, x: Any, values: Mapping[Any, Any]) -> Iterator[Any]:
        """The equations of `values`, which may grow, or, for products, of one of them."""
        seen, waiting = set(), list(self.users.get(x, ()))
        while waiting:
            eqn = min(waiting, key=lambda e: self._order[id(e)])
            waiting.remove(eqn)
            unknown = sum(not is_literal(v) and v not in values for v in eqn.invars)
            if id(eqn) in seen or unknown > (eqn.primitive.name == "mul"):
                continue
            seen.add(id(eqn))
            yield eqn
            if eqn.outvars[0] in values:
                waiting += self.users.get(eqn.outvars[0], ())

    def _inside(self, output: Any, made: Mapping[Any, Any]) -> set[Any]:
        """What is made on the way to an output; nothing if anything else uses it."""
        inside, waiting = set(), [output]
        while waiting:
            variable = waiting.pop()
            if variable in made and variable not in inside:
                inside.add(variable)
                waiting += [v for v in made[variable].invars if not is_literal(v)]
        ids = {id(made[v]) for v in inside}
        inner = inside - {output}
        closed = all(id(eqn) in ids for v in inner for eqn in self.users.get(v, ()))
        return inside if closed and not inner & outputs(self.jaxpr) else set()


def _computed(closed: Any, inputs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Variable -> value, for what follows from inputs and scalars by element-wise arithmetic."""
    pairs = zip(closed.jaxpr.constvars, closed.consts, strict=True)
    scalars = {v: x for v, x in pairs if np.ndim(x) == 0 and not isinstance(x, jax.core.Tracer)}
    known = {**scalars, **inputs}
    for eqn in closed.jaxpr.eqns:
        given = all(is_literal(v) or v in known for v in eqn.invars)
        value = _apply(eqn, known) if given and len(eqn.outvars) == 1 else None
        if value is not None:
            known[eqn.outvars[0]] = value
    return known


def outputs(jaxpr: Any) -> set[Any]:
    """The variables that a computation returns."""
    return {v for v in jaxpr.outvars if not is_literal(v)}


def _like_relu(y: Any) -> bool:
    """Whether values at `FAR` are those of one of the three kinds of activations."""
    if np.shape(y) != FAR.shape or not np.isfinite(y).all():
        return False
    steps = np.diff(y)
    slope = (y / np.where(FAR, FAR, 1))[FAR >= 20]
    straight = slope[0] > 0 and bool((abs(slope / slope[0] - 1) <= TOLERANCE).all())
    vanishes = straight and bool((abs(y[FAR <= -20]) <= TOLERANCE * slope[0]).all())
    switches = not y[FAR <= 0].any() and bool((y[FAR > 0] > 0).all() and (steps >= 0).all())
    below = y[FAR == -20].item() / -20
    bent = abs(y[FAR == 0].item()) == 0 and bool((steps >= 0).all() and (y[FAR < 0] < 0).all())
    bent = bent and straight and below < slope[0] * (1 - TOLERANCE)
    return bool(vanishes or switches or bent)


def _apply(eqn: Any, values: Mapping[Any, Any]) -> Any:
    """The value of an equation's output; None if it does anything but element-wise arithmetic."""
    operands = [v.val if is_literal(v) else values[v] for v in eqn.invars]
    if any(np.ndim(x) and np.shape(x) != FAR.shape for x in operands):
        return None
    if called := inner(eqn):
        known = _computed(called, dict(zip(called.jaxpr.invars, operands, strict=True)))
        out = called.jaxpr.outvars[0]
        return out.val if is_literal(out) else known.get(out)
    name = eqn.primitive.name
    if name in BROADCAST:
        constant = len(operands) == 1 and np.ndim(operands[0]) == 0
        return operands[0] if constant else None
    if name not in ELEMENTWISE:
        return None
    params = {"y": eqn.params["y"]} if name == "integer_pow" else {}
    with np.errstate(all="ignore"):
        return ELEMENTWISE[name](*operands, **params)


def uses(jaxpr: Any, names: Sequence[str]) -> bool:
    """Whether some operation of these names is needed for what a computation returns."""
    needed = outputs(jaxpr)
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            needed.update(v for v in eqn.invars if not is_literal(v))
            if eqn.primitive.name in names or any(uses(x, names) for x in inner_jaxprs(eqn)):
                return True
    return False
