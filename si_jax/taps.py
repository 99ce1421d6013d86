"""Which layers are tapped: one table for each architecture, after the published code.

Patterns are globs over module paths (`*` also matches `/`); the order is always that in which the
network computes them. `{last}` and `{before_last}` are the numbers of a ResNet's last two stages,
`{final}` the index of the last block of its last stage.
"""

from si_jax import splitting
from si_jax.model import Model
from si_jax.models.bit import BiT
from si_jax.models.resnet import ResNet
from si_jax.models.wide_resnet import WideResNet

_BLOCK4 = "block4_*/gn?"

TAPS: dict[type, dict[str, tuple[str, ...]]] = {
    ResNet: {
        "si-z": ("conv1", "layer*/bn?", "layer*/shortcut_bn"),
        "gaia-z": ("bn1", "layer*/bn?", "layer*/shortcut_bn"),
        "inner": (
            "layer{before_last}_*/bn?",
            "layer{before_last}_*/shortcut_bn",
            "layer{last}_*/bn?",
            "layer{last}_*/shortcut_bn",
        ),
        "outer": ("layer{last}_{final}",),
        "si-c": ("conv1", "layer*/bn?", "layer*/shortcut_bn"),
        "si-c-inner": (
            "layer{before_last}_*/bn?",
            "layer{before_last}_*/shortcut_bn",
            "layer{last}_*/bn?",
            "layer{last}_*/shortcut_bn",
        ),
    },
    WideResNet: {
        "si-z": ("block*/bn?", "bn1", "pool"),
        "gaia-z": ("block*/bn?", "bn1"),
        "inner": ("block*/bn?", "bn1"),
        "outer": ("pool",),
        "si-c": ("block*/bn?", "bn1"),
        "si-c-inner": ("block2_*/bn?", "block3_*/bn?", "bn1"),
    },
    BiT: {
        "si-z": (_BLOCK4, "before_head"),
        "si-z:gn": (_BLOCK4, "before_head/gn"),
        "gaia-z": (_BLOCK4, "before_head"),
        "gaia-z:gn": (_BLOCK4, "before_head/gn"),
        "inner": (_BLOCK4,),
        "outer": ("before_head",),
        "si-c": (_BLOCK4, "before_head/gn"),
        "si-c-inner": (_BLOCK4,),
    },
}
"""Network -> role -> patterns.

`si-z` and `gaia-z` are the taps of zero-deflation, `inner` and `outer` those of channel-average.
`si-c` are those of the calibrated form's densities: the norms
and the stem, but no pooled tap, whose every density is 1; `si-c-inner` are those of its gradient,
the norms of the last two stages (of BiT's last block, before which no gradient is needed).
A role with `:gn` behind it is the named variant of BiT's tenth tap: the GroupNorm inside
`before_head` in place of `before_head` itself, which the published evaluation uses for Textures.
"""


def default_taps(model: Model, role: str, variant: str | None = None) -> tuple[str, ...]:
    """Paths of a network's taps in order.

    For a network that is not in `TAPS`, the output of every normalisation layer, and for the role
    `outer` the input of the classifier head.

    Args:
        model: the network.
        role: `"si-z"`, `"gaia-z"`, `"inner"`, `"outer"`, `"si-c"` or `"si-c-inner"`.
        variant: a named variant of the role, such as BiT's `"gn"`; None for the default.

    Raises:
        ValueError: if the network has no such variant.
    """
    table = TAPS.get(type(model.module))
    variants = [k.split(":")[1] for k in table or () if k.startswith(f"{role}:")]
    if variant is not None and variant not in variants:
        known = ", ".join(variants) or "none"
        raise ValueError(
            f"variant (={variant!r}) is no variant of the taps of {model.name}: it has {known}"
        )
    if table is None:
        return (splitting.FEATURES,) if role == "outer" else splitting.select(model)
    patterns = table[f"{role}:{variant}" if variant else role]
    if isinstance(model.module, ResNet):
        blocks = model.module.blocks
        numbers = {
            "last": len(blocks),
            "before_last": max(1, len(blocks) - 1),
            "final": blocks[-1] - 1,
        }
        patterns = tuple(pattern.format(**numbers) for pattern in patterns)
    present = [p for p in patterns if splitting.matches(model, p)]
    return splitting.select(model, present)
