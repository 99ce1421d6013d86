"""What a network ends in, read off its traced computation: logits, or a function of them."""

from collections.abc import Mapping
from typing import Any

from si_jax.networks.equations import inner, is_literal

PASSING = ("broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape")

ENDINGS = {
    "softmax": "probabilities (a softmax)",
    "log-softmax": "log-probabilities (a log-softmax)",
    "sigmoid": "probabilities (a sigmoid)",
}
"""What a network may end in -> what it returns then."""


def no_logits(kind: str) -> str:
    """What to say of a network that ends in a key of `ENDINGS`."""
    return (
        f"the network returns {ENDINGS[kind]}, not logits: give one that returns the logits"
        f" themselves, what enters the {kind}"
    )


def ending(jaxpr: Any, output: Any) -> str | None:
    """The key of `ENDINGS` that makes a variable; None if none does, or one cannot tell."""
    makers = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    last = _maker(makers, output)
    if last is None:
        return None
    if called := inner(last):
        place = [v is _source(makers, output) for v in last.outvars].index(True)
        return ending(called.jaxpr, called.jaxpr.outvars[place])
    name, operands = last.primitive.name, [_maker(makers, v) for v in last.invars]
    if name == "logistic":
        return "sigmoid"
    if name == "div" and _named(operands[0], "exp") and _is_sum(makers, operands[1]):
        return "softmax"
    if name == "log":
        return "log-softmax" if ending(jaxpr, last.invars[0]) == "softmax" else None
    if name == "sub":  # perhaps of a logarithm to which the largest logit was added again
        parts = [operands[1]]
        if _named(operands[1], "add"):
            parts = [_maker(makers, v) for v in operands[1].invars]
        logs = [_maker(makers, eqn.invars[0]) for eqn in parts if _named(eqn, "log")]
        return "log-softmax" if any(_is_sum(makers, eqn) for eqn in logs) else None
    return None


def _is_sum(makers: Mapping[Any, Any], eqn: Any) -> bool:
    """Whether an equation adds up exponentials."""
    return _named(eqn, "reduce_sum") and _named(_maker(makers, eqn.invars[0]), "exp")


def _named(eqn: Any, name: str) -> bool:
    return eqn is not None and eqn.primitive.name == name


def _source(makers: Mapping[Any, Any], variable: Any) -> Any:
    """A variable less what only changes its shape or its dtype."""
    while not is_literal(variable):
        eqn = makers.get(variable)
        if eqn is None or eqn.primitive.name not in PASSING:
            break
        variable = eqn.invars[0]
    return variable


def _maker(makers: Mapping[Any, Any], variable: Any) -> Any:
    source = _source(makers, variable)
    return None if is_literal(source) else makers.get(source)
