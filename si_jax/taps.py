"""Which layers are tapped: each family of networks in `si_jax.models` says it, by role.

`si-z` and `gaia-z` are the taps of zero-deflation, `inner` and `outer` those of channel-average.
`si-c` are those of the calibrated form's densities: the norms and the stem, but no pooled tap,
whose every density is 1, or what enters GELU or its like where that stands in for ReLU.
`si-c-inner` are those of its gradient, the norms of the last two stages (of BiT's last block,
before which no gradient is needed). `si-z:gn` is the variant `gn` of a role.

Patterns are globs over module paths (`*` also matches `/`); the order is always that in which the
network computes them.
"""

from si_jax import activation, splitting
from si_jax.model import Model
from si_jax.models import family_of
from si_jax.models.family import IfPresent


def default_taps(model: Model, role: str, variant: str | None = None) -> tuple[str, ...]:
    """Paths of a network's taps in order.

    For a network that is not in the table of architectures, the output of every normalisation
    layer, and for the role `outer` the input of the classifier head. For the role `si-c`, where
    nothing switches the gradient at those off, every output that GELU, SiLU or their like follows.

    Args:
        model: the network.
        role: `"si-z"`, `"gaia-z"`, `"inner"`, `"outer"`, `"si-c"` or `"si-c-inner"`.
        variant: a named variant of the role, such as BiT's `"gn"`; None for the default.

    Raises:
        ValueError: if the network has no such variant, or a pattern of its family that is not
            `IfPresent` matches nothing.
    """
    family = family_of(model.module)
    table = {} if family is None else family.taps(model.module)
    variants = [k.split(":")[1] for k in table if k.startswith(f"{role}:")]
    if variant is not None and variant not in variants:
        known = ", ".join(variants) or "none"
        raise ValueError(
            f"variant (={variant!r}) is no variant of the taps of {model.name}: it has {known}"
        )
    if family is None:
        if role == "si-c":
            return _density_taps(model)
        return (splitting.FEATURES,) if role == "outer" else splitting.select(model)
    patterns = table[f"{role}:{variant}" if variant else role]
    if patterns == (splitting.FEATURES,):
        return patterns
    return splitting.select(
        model,
        [p for p in patterns if not isinstance(p, IfPresent) or splitting.matches(model, p)],
    )


def _density_taps(model: Model) -> tuple[str, ...]:
    norms = splitting.select(model)
    if not activation.without_relu(model, norms, smooth=True):
        return norms
    if len(activation.never_off(model, norms)) < len(norms):
        return norms
    innermost = [call.path for call in model.calls if call.leaf and call.shape]
    return activation.followed(model, innermost)
