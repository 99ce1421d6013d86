"""The network of a saved detector: what is written of it, and how it comes back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from si_jax.model import Model
from si_jax.models import ARCHITECTURES
from si_jax.weights.checkpoint import abstract_variables, build_model

PROBE_SEED = 0
PROBE_TOLERANCE = 1e-3  # of the largest logit; other matrix kernels differ by 1e-6


def describe(
    model: Model,
) -> tuple[dict[str, Any], dict[str, np.ndarray], Float[np.ndarray, "images classes"] | None]:
    """What is saved of a network.

    Returns:
        Its facts as JSON; its variables by number, named in the facts; and, where its code is not
        this library's, its logits of two random images, by which its code is known again.
    """
    names, leaves = _leaves(model.variables)
    variables = {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    own = _is_own(model)
    facts = {
        "architecture": model.card["model"] if own else None,
        "name": model.name,
        "input_size": list(model.input_size),
        "mean": list(model.mean),
        "std": list(model.std),
        "head": model.head,
        "precision": model.precision,
        "card": dict(model.card),
        "variables": _table(names, variables.values()),
    }
    return facts, variables, None if own else model.logits(_probe(model), batch_size=2)


def rebuild(
    facts: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    probe: Float[np.ndarray, "images classes"] | None,
    given: Model | None,
) -> Model:
    """The network with the saved weights.

    Args:
        facts: as `describe` gave them.
        arrays: the variables by number.
        probe: the logits that its code is known by.
        given: the network, where its code is not this library's.

    Raises:
        ValueError: if the network is needed and not given, or is another.
    """
    expected: dict[str, Any] = {
        "input_size": tuple(facts["input_size"]),
        "mean": tuple(facts["mean"]),
        "std": tuple(facts["std"]),
    }
    if given is not None:
        model, structure = given, given.variables
        for key, value in {**expected, "head": facts["head"]}.items():
            if getattr(model, key) != value:
                raise ValueError(
                    f"the model's {key} (={getattr(model, key)!r}) is not the one that the detector"
                    f" was saved with, {value!r}"
                )
    elif facts["architecture"] is None:
        raise ValueError(
            f"the detector is of a network {facts['name']!r} whose code is not saved with it: give"
            " it again, load_detector(directory, model=si_jax.Model(...))"
        )
    else:
        card = facts["card"]
        model = build_model(
            facts["architecture"],
            card["num_classes"],
            **expected,
            variables={},
            card=card,
            precision=facts["precision"],
            **card["options"],
        )
        structure = abstract_variables(model.module, model.input_size)
    names, leaves = _leaves(structure)
    _compare(_table(names, leaves), facts["variables"])
    values = [arrays[key] for key in sorted(arrays)]
    variables = jax.tree.unflatten(jax.tree.structure(structure), values)
    model = dataclasses.replace(model, variables=variables)
    if probe is not None:
        logits = model.logits(_probe(model), batch_size=2)
        if not np.abs(logits - probe).max() <= PROBE_TOLERANCE * np.abs(probe).max():
            raise ValueError(
                "the model is not the one that the detector was saved with: of the same weights it"
                " makes other logits"
            )
    return model


def _compare(now: list, saved: list) -> None:
    """Raise a ValueError that says how the variables of two networks differ."""
    if now == saved:
        return
    have, want = ({row[0]: row[1:] for row in rows} for rows in (now, saved))
    told = [f"{name} is missing" for name in want if name not in have]
    told += [f"{name} is new" for name in have if name not in want]
    told += [
        f"{name} is {have[name]}, was {want[name]}"
        for name in want
        if name in have and have[name] != want[name]
    ]
    told = told or ["its variables come in another order"]
    more = f"; and {len(told) - 5} more" if len(told) > 5 else ""
    raise ValueError(
        "the model is not the one that the detector was saved with: " + "; ".join(told[:5]) + more
    )


def _is_own(model: Model) -> bool:
    """Whether the network can be built again from its card."""
    card = model.card
    if card.get("model") not in ARCHITECTURES or "options" not in card:
        return False
    built = build_model(card["model"], card["num_classes"], variables={}, **card["options"])
    return repr(built.module) == repr(model.module) and built.head == model.head


def _table(names, leaves) -> list[list[Any]]:
    """A row of name, shape and dtype for each variable."""
    pairs = zip(names, leaves, strict=True)
    return [[name, list(np.shape(leaf)), str(leaf.dtype)] for name, leaf in pairs]


def _leaves(tree: Any) -> tuple[list[str], list[Any]]:
    pairs = jax.tree.leaves_with_path(tree)
    return [jax.tree_util.keystr(path) for path, _ in pairs], [leaf for _, leaf in pairs]


def _probe(model: Model) -> Float[np.ndarray, "2 height width channels"]:
    shape = (2, *model.image_shape)
    return np.random.default_rng(PROBE_SEED).normal(size=shape).astype(np.float32)
