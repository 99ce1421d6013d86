"""Which layer gives the logits: its path is a model's `head`, and its input is the features."""

from collections.abc import Sequence

from si_jax.networks.network import HIDDEN, Network

SHOWN = 12
"""Most paths that a message names."""


def head_of(network: Network, head: str | None) -> str:
    """Path of the layer that gives the logits: the one asked for, or the only linear one.

    Raises:
        ValueError: if it is never called, or called twice, or is not linear while another layer can
            give the logits; or None is given and it is not certain which it is.
    """
    paths = [call.path for call in network.calls]
    layer = network.framework.linear_layer
    found = list(dict.fromkeys(path.partition("#")[0] for path in _candidates(network)))
    if head is None:
        if not found:
            raise ValueError(
                f"head must be given, since none of the network's linear layers ({layer}) gives the"
                f" logits: name what does, of {_listed(paths)}; detectors that need the logits"
                " alone serve such a network"
            )
        if len(found) > 1:
            raise ValueError(
                f"head must be given, since more than one linear layer ({layer}) may give the"
                f" logits: {_listed(found)}"
            )
        (head,) = found
    linear = [c.path for c in network.calls if network.framework.is_linear(c.module)]
    if head in network.outline.hidden:
        raise ValueError(f"head (={head!r}) {HIDDEN}")
    if head not in paths:
        shown, what = paths, "sub-modules and taps"
        if linear and len(paths) > SHOWN:
            shown, what = linear, f"linear layers ({layer})"
        raise ValueError(
            f"head (={head!r}) is not called by the network; its {what} are: {_listed(shown)}"
        )
    if f"{head.partition('#')[0]}#1" in paths:
        raise ValueError(
            f"head (={head!r}) is called more than once, so its input is not one set of features:"
            " give a network that calls its last linear layer once for each image"
        )
    if found and head not in linear and head not in found:
        raise ValueError(
            f"head (={head!r}) does not give the logits; what may is the linear layer ({layer})"
            f" {' or '.join(found)}"
        )
    return head


def _candidates(network: Network) -> Sequence[str]:
    """Paths of the calls that may give the logits.

    Linear layers, or else what has weights as one has: a tap of a function, or a layer that is
    linear by its options alone.
    """
    framework, classes = network.framework, network.num_classes
    if network.outline.heads:
        return network.outline.heads
    others = [c.path for c in network.calls if not framework.is_linear(c.module)]
    heads = {path: framework.head(network.module, network.variables, path) for path in others}
    return [path for path, head in heads.items() if head and head[0].shape[-1] == classes]


def _listed(paths: Sequence[str]) -> str:
    """Paths for a message; of many, the last."""
    if len(paths) <= SHOWN:
        return ", ".join(paths) or "none"
    return f"{len(paths)}, the last of them {', '.join(paths[-SHOWN:])}"
