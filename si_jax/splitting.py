"""Splitting: find the layers of any Linen network, record their outputs, and replace them.

A **tap** is the output of one sub-module's call, named by the module's path, such as
`"layer1_0/bn1"`. A module that is called again has `"#1"`, `"#2"` ... after its path. The network
itself knows nothing of taps: they are reached through `flax.linen.intercept_methods`.
"""

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

if TYPE_CHECKING:
    import si_jax.model

Taps = str | Sequence[str] | Callable[[nn.Module], bool] | None
NORMS = (nn.BatchNorm, nn.GroupNorm, nn.LayerNorm)
FEATURES = "(features)"
"""Name of the one tap that is no module's output: the input of the classifier head."""


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
    module: nn.Module = field(compare=False)
    shape: tuple[int, ...] | None
    leaf: bool


class Forward(NamedTuple):
    """What one forward pass gives.

    Logits and features are float32 whatever the network computes in, so that every score is;
    outputs are as the network has them.

    Attributes:
        logits: (batch, classes).
        features: (batch, features), the input of the classifier head.
        outputs: path -> output of the sub-modules that were to be recorded.
    """

    logits: Float[Array, "batch classes"]
    features: Float[Array, "batch features"]
    outputs: dict[str, Any]


def forward(
    model: "si_jax.model.Model",
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    *,
    record: Iterable[str] = (),
    edit: Mapping[str, Callable[[Array], Array]] | None = None,
    known: Mapping[str, Array] | None = None,
) -> Forward:
    """Run a network, recording, editing or skipping sub-modules on the way.

    Args:
        model: the network.
        variables: its variables.
        images: normalised images.
        record: paths (or `FEATURES`) whose outputs (after editing) are returned.
        edit: path (or `FEATURES`) -> function that is applied to that sub-module's output (or to
            the head's input).
        known: path -> output that is used in place of calling that sub-module. Only calls that
            contain no other call may be skipped.

    Returns:
        Logits, features and recorded outputs.

    Raises:
        ValueError: if the head is not called, or the network does not return logits.
    """
    record, edit, known = frozenset(record), edit or {}, known or {}
    outputs: dict[str, Any] = {}
    features: list[Array] = []

    def visit(path, module, call, args):
        if path == model.head:
            args = (done(FEATURES, args[0]), *args[1:])
            features.append(args[0].astype(jnp.float32))
        return done(path, known[path] if path in known else call(*args))

    def done(path, out):
        if path in edit:
            out = edit[path](out)
        if path in record:
            outputs[path] = out
        return out

    logits = _run(model, variables, images, visit)
    if not features:
        raise ValueError(
            f"head (={model.head!r}) is not called by the network; its sub-modules are: "
            + ", ".join(call.path for call in calls(model))
        )
    if getattr(logits, "ndim", None) != 2:
        raise ValueError(
            "the network must return logits of shape (batch, classes), got "
            f"{jax.tree.map(jnp.shape, logits)}"
        )
    return Forward(logits.astype(jnp.float32), features[-1], outputs)


def abstract_forward(model: "si_jax.model.Model") -> Forward:
    """Shapes and dtypes of one forward pass with one image, without computing it."""
    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    return jax.eval_shape(lambda v, x: forward(model, v, x), model.variables, image)


def calls(model: "si_jax.model.Model") -> tuple[Call, ...]:
    """All calls of sub-modules, in the order in which they end."""
    found: list[Call] = []

    def visit(path, module, call, args):
        before = len(found)
        out = call(*args)
        shape = tuple(out.shape[1:]) if isinstance(out, jax.Array) else None
        found.append(Call(path, module, shape, leaf=len(found) == before))
        return out

    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    jax.eval_shape(lambda v, x: _run(model, v, x, visit), model.variables, image)
    return tuple(found)


def select(model: "si_jax.model.Model", taps: Taps = None) -> tuple[str, ...]:
    """Paths of the taps that `taps` asks for, in the order in which the network computes them.

    Args:
        model: the network.
        taps: a path or a glob such as `"layer3_*/bn?"` (in which `*` also matches `/`), several of
            them, a predicate on modules, or None for the output of every BatchNorm, GroupNorm and
            LayerNorm.

    Raises:
        ValueError: if nothing matches, or a path or glob matches nothing.
    """
    if taps is None:
        found = [c for c in model.calls if isinstance(c.module, NORMS)]
        asked = "a BatchNorm, GroupNorm or LayerNorm"
    elif callable(taps):
        found = [c for c in model.calls if taps(c.module)]
        asked = "the predicate"
    else:
        patterns = [taps] if isinstance(taps, str) else list(taps)
        for pattern in patterns:
            if not matches(model, pattern):
                raise ValueError(
                    f"taps: nothing in the network matches {pattern!r}; its sub-modules are: "
                    + ", ".join(c.path for c in model.calls)
                )
        found = [c for c in model.calls if any(fnmatch.fnmatchcase(c.path, p) for p in patterns)]
        asked = ", ".join(patterns)
    if not found:
        raise ValueError(
            f"taps: no sub-module is {asked}; the network has: "
            + ", ".join(c.path for c in model.calls)
        )
    for call in found:
        if call.shape is None or not call.shape:
            raise ValueError(f"taps: the output of {call.path!r} is not an array with channels")
    return tuple(call.path for call in found)


def matches(model: "si_jax.model.Model", pattern: str) -> bool:
    """Whether a path or glob matches any sub-module's path."""
    return any(fnmatch.fnmatchcase(call.path, pattern) for call in model.calls)


def before(model: "si_jax.model.Model", tap: str) -> tuple[str, ...]:
    """Paths of the innermost calls that cannot depend on `tap`, with itself if it is one."""
    paths = [call.path for call in model.calls]
    end = paths.index(model.head) if tap == FEATURES else paths.index(tap) + 1
    return tuple(c.path for c in model.calls[:end] if c.leaf and c.shape is not None)


def _run(model, variables, images, visit) -> Array:
    """Apply the network with `visit(path, module, call, args)` around each sub-module's call."""
    counts: Counter[str] = Counter()

    def interceptor(call, args, kwargs, context):
        path = "/".join(context.module.path)
        if context.method_name != "__call__" or not path:
            return call(*args, **kwargs)
        count = counts[path]
        counts[path] += 1
        if count:
            path = f"{path}#{count}"
        return visit(path, context.module, lambda *args: call(*args, **kwargs), args)

    with jax.default_matmul_precision(model.precision), nn.intercept_methods(interceptor):
        return model.module.apply(variables, images, **model.call_kwargs)
