"""Checkpoints: an orbax tree of weights beside a card that says what they are."""

import dataclasses
import importlib.resources
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from si_jax.data.directories import check_new, written_whole
from si_jax.model import Model, checked_size
from si_jax.models import ARCHITECTURES, architecture
from si_jax.weights.card import read_card
from si_jax.weights.variables import load_variables, save_variables


def bundled_directory() -> Path:
    """Where the bundled checkpoints lie: inside the installed package, or beside it in a checkout.

    An editable install is a checkout.
    """
    package = Path(str(importlib.resources.files("si_jax")))
    inside = package / "checkpoints"
    return inside if inside.is_dir() else package.parent / "checkpoints"


def build_model(
    name: str,
    num_classes: int | None = None,
    *,
    seed: int = 0,
    input_size: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    variables: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
    precision: str = "highest",
    **options: Any,
) -> Model:
    """A `Model` of a known architecture, with fresh weights unless `variables` are given.

    Args:
        name: a key of `si_jax.models.ARCHITECTURES`.
        num_classes: number of logits; None for the architecture's default.
        seed: seed of fresh weights.
        input_size: height and width of the images; None for the architecture's default.
        mean: mean of each channel in [0, 1] units; None for the architecture's default.
        std: standard deviation of each channel; None for the architecture's default.
        variables: weights and statistics.
        card: what is known of the checkpoint.
        precision: matrix precision, see `Model`.
        options: overrides of the architecture's own options, such as `shortcut="pad"`.

    Raises:
        ValueError: if the architecture is unknown or does not take an option, or the input size
            is not two positive numbers.
    """
    arch = architecture(name)
    num_classes = num_classes or arch.num_classes
    input_size = checked_size(input_size or arch.input_size)
    module = make_module(name, num_classes, options)
    if variables is None:
        variables = jax.device_get(init(module, input_size, seed))
    return Model(
        module,
        variables,
        input_size=input_size,
        mean=tuple(mean or arch.mean),
        std=tuple(std or arch.std),
        head=arch.head,
        name=name,
        call_kwargs={"train": False},
        precision=precision,
        card={
            "model": name,
            "options": {**arch.options, **options},
            "num_classes": num_classes,
            "input_size": list(input_size),
            "mean": list(mean or arch.mean),
            "std": list(std or arch.std),
            **(card or {}),
        },
    )


def with_new_head(model: Model, num_classes: int) -> Model:
    """The model with a head of zeros for `num_classes` classes, to be fine-tuned.

    Args:
        model: a model made by `build_model` or `load_model`.
        num_classes: number of logits.
    """
    card = {k: model.card[k] for k in ("model", "options", "input_size", "mean", "std")}
    abstract = abstract_variables(
        make_module(card["model"], num_classes, card["options"]), model.input_size
    )
    path = ("params", *model.head.split("/"))

    def keep(keys: tuple, leaf: Any, expected: Any) -> np.ndarray:
        inside = tuple(key.key for key in keys[: len(path)]) == path
        return np.zeros(expected.shape, expected.dtype) if inside else np.asarray(leaf)

    return build_model(
        card["model"],
        num_classes,
        input_size=model.input_size,
        mean=model.mean,
        std=model.std,
        variables=jax.tree.map_with_path(keep, dict(model.variables), abstract),
        precision=model.precision,
        **card["options"],
    )


def make_module(name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    """The network of a known architecture, with `options` in place of its own.

    Raises:
        ValueError: if the architecture is unknown or does not take an option.
    """
    arch = architecture(name)
    merged = {k: tuple(v) if isinstance(v, list) else v for k, v in arch.options.items()}
    merged |= {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        return arch.build(num_classes=num_classes, **merged)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take these options: {error}") from None


def abstract_variables(module: nn.Module, input_size: tuple[int, int]) -> Any:
    """Names, shapes and dtypes of a network's variables."""
    return jax.eval_shape(lambda: init(module, input_size, 0))


def init(module: nn.Module, input_size: tuple[int, int], seed: int) -> dict[str, Any]:
    """Fresh variables of a network that takes RGB images of that size."""
    image = jnp.zeros((1, *input_size, 3), jnp.float32)
    return jax.jit(module.init)(jax.random.key(seed), image)


def save_checkpoint(
    directory: str | os.PathLike, model: Model, *, dtype: Any = None, overwrite: bool = False
) -> Path:
    """Write `model` to `directory`: `weights/` by orbax, and `card.json`.

    Everything is written beside the directory and renamed at the end, so a directory of that name
    is always whole.

    Args:
        directory: the checkpoint directory; it must not exist unless `overwrite`.
        model: a model made by `build_model`, or of a network of your own, which is loaded again by
            `load_model(directory, like=model)`.
        dtype: dtype in which floating-point weights are stored, such as `jnp.bfloat16`; None keeps
            theirs. They are float32 again once loaded.
        overwrite: whether to replace an existing checkpoint.

    Returns:
        The directory.

    Raises:
        ValueError: if the directory exists, or a weight is not finite or not in `dtype`.
    """
    directory = Path(directory).resolve()
    if not (overwrite and (directory / "card.json").is_file()):
        check_new(directory)
    card = dict(model.card) if _is_known(model) else _card_of_own_network(model)
    with written_whole(directory) as temporary:
        card["sha256"] = save_variables(temporary / "weights", model.variables, dtype=dtype)
        (temporary / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return directory


def load_model(
    checkpoint: str | os.PathLike, *, precision: str = "highest", like: Model | None = None
) -> Model:
    """Load a bundled checkpoint by its name, or any checkpoint directory.

    Args:
        checkpoint: a name such as `"digits"`, or a directory that `save_checkpoint` wrote.
        precision: matrix precision, see `Model`.
        like: for a checkpoint of a network of your own, a model of that network, whose weights are
            replaced; None for a known architecture.

    Raises:
        ValueError: if there is no such checkpoint, it is damaged, or its weights have other names
            or shapes than the network's.
    """
    directory = find_checkpoint(checkpoint)
    card = read_card(directory / "card.json")
    if like is not None:
        weights = load_variables(directory / "weights", like.variables, sha256=card["sha256"])
        return dataclasses.replace(
            like,
            variables=weights,
            input_size=tuple(card["input_size"]),
            mean=tuple(card["mean"]),
            std=tuple(card["std"]),
            precision=precision,
            card=card,
        )
    if "options" not in card:
        raise ValueError(
            f"{directory} holds the weights of a network of your own: pass like=, a model of that"
            " network, whose weights are replaced"
        )
    try:
        module = make_module(card["model"], card["num_classes"], card["options"])
        abstract = abstract_variables(module, tuple(card["input_size"]))
    except (TypeError, OverflowError) as error:
        raise ValueError(
            f"{directory / 'card.json'}: the options {card['options']} do not make a"
            f" {card['model']} ({error})"
        ) from None
    return build_model(
        card["model"],
        card["num_classes"],
        input_size=tuple(card["input_size"]),
        mean=tuple(card["mean"]),
        std=tuple(card["std"]),
        variables=load_variables(directory / "weights", abstract, sha256=card["sha256"]),
        card=card,
        precision=precision,
        **card["options"],
    )


def find_checkpoint(checkpoint: str | os.PathLike) -> Path:
    """Directory of a bundled checkpoint's name or of a checkpoint directory.

    Raises:
        ValueError: if there is none; the message lists the bundled ones.
    """
    for directory in (Path(checkpoint), bundled_directory() / checkpoint):
        if (directory / "card.json").is_file():
            return directory.resolve()
    raise ValueError(
        f"unknown checkpoint {str(checkpoint)!r}: give the directory of a converted or trained"
        f" checkpoint, or one of the bundled: {', '.join(bundled()) or 'none'}"
    )


def bundled() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(card.parent.name for card in bundled_directory().glob("*/card.json"))


def _is_known(model: Model) -> bool:
    """Whether the model's card tells how to build its network."""
    arch = ARCHITECTURES.get(model.card.get("model", ""))
    return arch is not None and type(model.module) is arch.build and "options" in model.card


def _card_of_own_network(model: Model) -> dict[str, Any]:
    facts = {k: v for k, v in model.card.items() if k not in ("options", "sha256")}
    return facts | {
        "model": model.name,
        "head": model.head,
        "num_classes": model.num_classes,
        "input_size": list(model.input_size),
        "mean": list(model.mean),
        "std": list(model.std),
    }
