"""Checkpoints: the weights of a network beside a card that says what they are."""

import dataclasses
import importlib.resources
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator

from si_jax.data.files import write_text
from si_jax.model import Model, checked_size
from si_jax.models import ARCHITECTURES, NORMALISATIONS, architecture
from si_jax.weights import saved

CARD = "card.json"
INSIDE = "checkpoint"
"""The folder of a saved detector that is a checkpoint."""

Text = Annotated[str, Field(max_length=200)]
Pixels = Annotated[int, Field(ge=1, le=16384)]
Number = Annotated[float, Field(ge=-1e6, le=1e6)]
Option = bool | Annotated[int, Field(ge=-1_000_000, le=1_000_000)] | Number | Text


class Card(BaseModel):
    """What a checkpoint's network is and how images enter it; what else it says is for people."""

    model_config = ConfigDict(
        title="checkpoint card", strict=True, extra="allow", allow_inf_nan=False
    )

    model: Text
    num_classes: int = Field(ge=1, le=10_000_000)
    input_size: list[Pixels] = Field(min_length=2, max_length=2)
    mean: list[Number] = Field(min_length=1, max_length=4096)
    std: list[Annotated[float, Field(ge=1e-12, le=1e6)]] = Field(min_length=1, max_length=4096)
    options: dict[str, Option | Annotated[list[Option], Field(max_length=64)]] = {}
    head: Text | None = None
    classes: list[Text] | None = None
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # of a checkpoint without sums

    @model_validator(mode="after")
    def _lengths(self) -> "Card":
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std must have one number a channel each")
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(f"classes names {len(self.classes)} of {self.num_classes} classes")
        return self


def bundled_directory() -> Path:
    """Where the bundled checkpoints lie: in the installed package, or beside it in a checkout."""
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
    own_mean, own_std = NORMALISATIONS[arch.normalisation]
    mean, std = tuple(mean or own_mean), tuple(std or own_std)
    fed: dict[str, Any] = {"input_size": input_size, "mean": mean, "std": std}
    module = make_module(name, num_classes, options)
    if variables is None:
        variables = jax.device_get(init(module, input_size, seed))
    facts = {"model": name, "options": {**arch.options, **options}, "num_classes": num_classes}
    return Model(
        module,
        variables,
        **fed,
        head=arch.family.head,
        name=name,
        call_kwargs={"train": False},
        precision=precision,
        card={**facts, **{key: list(values) for key, values in fed.items()}, **(card or {})},
    )


def with_new_head(model: Model, num_classes: int) -> Model:
    """The model with a head of zeros for `num_classes` classes, to be fine-tuned.

    Args:
        model: a model made by `build_model` or `load_model`.
        num_classes: number of logits.
    """
    options = model.card["options"]
    abstract = abstract_variables(make_module(model.name, num_classes, options), model.input_size)
    path = ("params", *model.head.split("/"))

    def keep(keys: tuple, leaf: Any, expected: Any) -> np.ndarray:
        inside = tuple(key.key for key in keys[: len(path)]) == path
        return np.zeros(expected.shape, expected.dtype) if inside else np.asarray(leaf)

    variables = jax.tree.map_with_path(keep, dict(model.variables), abstract)
    kept = {key: getattr(model, key) for key in ("input_size", "mean", "std", "precision")}
    return build_model(model.name, num_classes, variables=variables, **kept, **options)


def make_module(name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    """The network of a known architecture, with `options` in place of its own."""
    arch = architecture(name)
    merged = {**arch.options, **options}
    merged = {k: tuple(v) if isinstance(v, list) else v for k, v in merged.items()}
    try:
        return arch.family.build(num_classes=num_classes, **merged)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take these options: {error}") from None


def abstract_variables(module: nn.Module, input_size: tuple[int, int]) -> Any:
    """Names, shapes and dtypes of a network's variables."""
    return jax.eval_shape(lambda: init(module, input_size, 0))


def init(module: nn.Module, input_size: tuple[int, int], seed: int) -> dict[str, Any]:
    """Fresh variables of a network that takes RGB images of that size."""
    image = jnp.zeros((1, *input_size, 3), jnp.float32)
    return jax.jit(module.init)(jax.random.key(seed), image)


def probe_logits(model: Model) -> Float[np.ndarray, "2 classes"]:
    """The logits of two random images, by which a network is known again."""
    images = np.random.default_rng(0).normal(size=(2, *model.image_shape)).astype(np.float32)
    return model.logits(images, batch_size=2)


def save_checkpoint(
    directory: str | os.PathLike, model: Model, *, dtype: Any = None, overwrite: bool = False
) -> Path:
    """Write `model` to `directory`: `weights/` by orbax, `card.json`, and the sums of both.

    Everything is written beside the directory and renamed at the end, so a directory of that name
    is always whole.

    Args:
        directory: the checkpoint directory; it must not exist unless `overwrite`.
        model: a model made by `build_model`, or of a custom network, which is loaded again by
            `load_model(directory, like=model)`.
        dtype: dtype in which floating-point weights are stored, such as `jnp.bfloat16`; None keeps
            theirs. They are float32 again once loaded.
        overwrite: whether to replace an existing checkpoint.

    Returns:
        The directory.

    Raises:
        ValueError: if the directory exists, or a weight is not finite or not in `dtype`.
    """
    card = {key: value for key, value in model.card.items() if key != "sha256"}
    if not is_known(model):
        card.pop("options", None)
        card |= {"model": model.name, "head": model.head, "num_classes": model.num_classes}
    card |= {key: list(getattr(model, key)) for key in ("input_size", "mean", "std")}
    with saved.saving(directory, CARD, overwrite) as hidden:
        saved.write_arrays(hidden / saved.WEIGHTS, saved.to_store(model.variables, dtype))
        write_text(hidden / CARD, json.dumps(card, indent=2) + "\n")
    return Path(directory).resolve()


def load_model(
    checkpoint: str | os.PathLike, *, precision: str = "highest", like: Model | None = None
) -> Model:
    """Load a bundled checkpoint by its name, or any checkpoint directory.

    Args:
        checkpoint: a name such as `"digits"`, a directory that `save_checkpoint` wrote, or that of
            a saved detector, which contains one.
        precision: matrix precision, see `Model`.
        like: for a checkpoint of a custom network, a model of that network, whose weights are
            replaced; None for a known architecture.

    Raises:
        ValueError: if there is no such checkpoint, it is damaged, or its weights have other names
            or shapes than the network's.
    """
    directory = find_checkpoint(checkpoint)
    listed = saved.check_sums(directory)
    card = saved.read_card(directory / CARD, Card)
    if not listed and card.sha256 is None:
        raise ValueError(f"{directory} is damaged: its file {saved.SUMS} is missing")
    facts = card.model_dump(exclude_unset=True)
    shapes = like.variables if like is not None else _shapes(directory, facts)
    sha256 = None if listed else card.sha256
    variables = saved.read_variables(directory / saved.WEIGHTS, shapes, sha256=sha256)
    given: dict[str, Any] = {"variables": variables, "card": facts, "precision": precision}
    given |= {key: tuple(facts[key]) for key in ("input_size", "mean", "std")}
    if like is not None:
        return dataclasses.replace(like, **given)
    return build_model(card.model, card.num_classes, **given, **facts["options"])


def _shapes(directory: Path, card: dict[str, Any]) -> Any:
    """Names and shapes of the variables of the network that a card describes."""
    if "options" not in card:
        raise ValueError(
            f"{directory} holds the weights of a custom network: pass like=, a model of that"
            " network, whose weights are replaced"
        )
    options = card["options"]
    try:
        module = make_module(card["model"], card["num_classes"], options)
        return abstract_variables(module, tuple(card["input_size"]))
    except (TypeError, OverflowError) as error:
        raise ValueError(
            f"{directory / CARD}: the options {options} do not make a {card['model']} ({error})"
        ) from None


def find_checkpoint(checkpoint: str | os.PathLike) -> Path:
    """Directory of a bundled checkpoint's name, of a checkpoint, or of that in a saved detector."""
    for place in (Path(checkpoint), bundled_directory() / checkpoint):
        for directory in (place, place / INSIDE):
            if (directory / CARD).is_file():
                return directory.resolve()
    raise ValueError(
        f"unknown checkpoint {str(checkpoint)!r}: give the directory of a converted or trained"
        f" checkpoint, or one of the bundled: {', '.join(bundled()) or 'none'}"
    )


def bundled() -> list[str]:
    """Names of the checkpoints that come with the package."""
    found = {*bundled_directory().glob(f"*/{CARD}"), *bundled_directory().glob(f"*/*/{CARD}")}
    return sorted(card.relative_to(bundled_directory()).parts[0] for card in found)


def is_known(model: Model) -> bool:
    """Whether the network can be built again from its card."""
    card = model.card
    if card.get("model") not in ARCHITECTURES or "options" not in card:
        return False
    built = build_model(card["model"], card["num_classes"], variables={}, **card["options"])
    return repr(built.module) == repr(model.module) and built.head == model.head
