"""Which layers are tapped: those that a user names, or those that a family of networks names.

Each family in `si_jax.models` names them by role: `si-z` and `gaia-z` are the taps of
zero-deflation, `inner` and `outer` those of channel-average. `si-c` are those of the calibrated
form's densities: the norms and the stem, but no pooled tap, whose every density is 1, or what
enters GELU or its like, or leaves it, where that stands in for ReLU; `si-c-inner` are those of its
gradient, the norms of the last two stages (of BiT's last block, before which no gradient is
needed). `si-z:gn` is the variant `gn` of a role.

Patterns are globs over module paths (`*` also matches `/`); the order is always that in which the
network computes them.
"""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

from si_jax import activation
from si_jax.model import Model
from si_jax.models import family_of
from si_jax.models.family import IfPresent
from si_jax.networks.network import HIDDEN, Network
from si_jax.splitting import FEATURES

Taps = str | Sequence[str] | Callable[[Any], bool] | None
"""What names taps, see `select`."""


def default_taps(model: Model, role: str, variant: str | None = None) -> tuple[str, ...]:
    """Paths of a network's taps in order, for a role and its variant, such as BiT's `"gn"`.

    For a network that is not in the table of architectures, the output of every normalisation
    layer, and for the role `outer` the input of the classifier head. For the role `si-c`, where
    nothing switches the gradient at those off, every output that GELU, SiLU or their like follows,
    or that they make. A pattern of a family that is not `IfPresent` must match something.
    """
    family = family_of(model.module)
    table = {} if family is None else family.taps(model.module)
    variants = [k.split(":")[1] for k in table if k.startswith(f"{role}:")]
    if variant is not None and variant not in variants:
        known = ", ".join(variants) or "none"
        raise ValueError(
            f"variant (={variant!r}) is no variant of the taps of {model.name}: it has {known}"
        )
    if family is None and role == "outer":
        return (FEATURES,)
    if family is None:
        norms = select(model)
        if role != "si-c" or not activation.without_activation(model, norms):
            return norms
        if len(activation.taps_without_relu(model, norms)) < len(norms):
            return norms
        return _around_activations(model)
    patterns = table[f"{role}:{variant}" if variant else role]
    if patterns == (FEATURES,):
        return patterns
    asked = [p for p in patterns if not isinstance(p, IfPresent) or matches(model, p)]
    return select(model, asked)


def _around_activations(model: Network) -> tuple[str, ...]:
    """Of the calls inside which there are no others, but for the head, those at activations."""
    hidden = model.outline.hidden | {model.head}
    innermost = [c.path for c in model.calls if c.leaf and c.shape and c.path not in hidden]
    return activation.taps_with_activation(model, innermost)


def select(model: Network, taps: Taps = None) -> tuple[str, ...]:
    """Paths of the taps that `taps` asks for, in the order in which the network computes them.

    They are a path or a glob such as `"layer3_*/bn?"` (in which `*` also matches `/`), several of
    them, a predicate on modules, or None for the output of every normalisation layer; in a network
    without any, for what enters its activations.
    """
    calls, hidden = model.calls, model.outline.hidden
    names = ", ".join(call.path for call in calls)
    if taps is None:
        if hidden:
            raise ValueError(f"taps: {', '.join(sorted(hidden))} {HIDDEN}")
        chosen = [c for c in calls if c.path != model.head and model.framework.is_norm(c.module)]
        asked = (
            "a normalisation layer, the default, and no activation follows any: name others by taps"
            " (those of si-c's channel-average by inner)"
        )
        if not chosen:
            entering = _around_activations(model)
            chosen = [c for c in calls if c.path in entering]
    elif callable(taps):
        chosen = [c for c in calls if taps(c.module)]
        asked = "the predicate"
    else:
        patterns = [taps] if isinstance(taps, str) else list(taps)
        for pattern in patterns:
            if any(fnmatch.fnmatchcase(path, pattern) for path in hidden):
                raise ValueError(f"taps: {pattern!r} {HIDDEN}")
            if not matches(model, pattern):
                raise ValueError(
                    f"taps: nothing in the network matches {pattern!r}; it has {names}"
                )
        chosen = [c for c in calls if any(fnmatch.fnmatchcase(c.path, p) for p in patterns)]
        asked = ", ".join(patterns)
    if not chosen:
        raise ValueError(f"taps: no sub-module is {asked}; the network has: {names}")
    for call in chosen:
        if not call.shape:
            raise ValueError(f"taps: the output of {call.path!r} is not an array with channels")
        if call.path in model.outline.unknown:
            raise ValueError(
                f"taps: it is unclear which axis of {call.path!r} is its channels: name others"
            )
    return tuple(call.path for call in chosen)


def matches(model: Network, pattern: str) -> bool:
    """Whether a path or glob matches any sub-module's path."""
    return any(fnmatch.fnmatchcase(call.path, pattern) for call in model.calls)
