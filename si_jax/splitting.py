"""Splitting: find the layers of any network, record their outputs, and replace them.

A **tap** is the output of one sub-module's call, named by the module's path, such as
`"layer1_0/bn1"`. A module that is called again has `"#1"`, `"#2"` ... after its path. The network
itself knows nothing of taps: `si_jax.networks` reaches them in every framework.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from si_jax.networks.network import Network, run

Taps = str | Sequence[str] | Callable[[Any], bool] | None
FEATURES = "(features)"
"""Name of the one tap that is no module's output: the input of the classifier head."""


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
    model: Network,
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

    logits = run(model, variables, images, visit)
    return Forward(logits.astype(jnp.float32), features[-1], outputs)


def select(model: Network, taps: Taps = None) -> tuple[str, ...]:
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
        chosen = [c for c in model.calls if model.framework.is_norm(c.module)]
        asked = "a BatchNorm, GroupNorm or LayerNorm"
    elif callable(taps):
        chosen = [c for c in model.calls if taps(c.module)]
        asked = "the predicate"
    else:
        patterns = [taps] if isinstance(taps, str) else list(taps)
        for pattern in patterns:
            if not matches(model, pattern):
                raise ValueError(
                    f"taps: nothing in the network matches {pattern!r}; its sub-modules are: "
                    + ", ".join(c.path for c in model.calls)
                )
        chosen = [c for c in model.calls if any(fnmatch.fnmatchcase(c.path, p) for p in patterns)]
        asked = ", ".join(patterns)
    if not chosen:
        raise ValueError(
            f"taps: no sub-module is {asked}; the network has: "
            + ", ".join(c.path for c in model.calls)
        )
    for call in chosen:
        if call.shape is None or not call.shape:
            raise ValueError(f"taps: the output of {call.path!r} is not an array with channels")
    return tuple(call.path for call in chosen)


def matches(model: Network, pattern: str) -> bool:
    """Whether a path or glob matches any sub-module's path."""
    return any(fnmatch.fnmatchcase(call.path, pattern) for call in model.calls)


def before(model: Network, tap: str) -> tuple[str, ...]:
    """Paths of the innermost calls that cannot depend on `tap`, with itself if it is one."""
    paths = [call.path for call in model.calls]
    end = paths.index(model.head) if tap == FEATURES else paths.index(tap) + 1
    return tuple(c.path for c in model.calls[:end] if c.leaf and c.shape is not None)
