"""Checkpoints: an orbax tree of weights beside a card that says what they are."""

import dataclasses
import hashlib
import importlib.resources
import json
import numbers
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn

from si_jax.model import Model
from si_jax.models import architecture


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
    try:
        module = arch.build(num_classes=num_classes, **_tuples({**arch.options, **options}))
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take these options: {error}") from None
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
    new = build_model(
        card["model"],
        num_classes,
        input_size=model.input_size,
        mean=model.mean,
        std=model.std,
        variables={},
        precision=model.precision,
        **card["options"],
    )
    abstract = jax.eval_shape(lambda: init(new.module, new.input_size, 0))
    path = ("params", *model.head.split("/"))

    def keep(keys: tuple, leaf: Any, expected: Any) -> np.ndarray:
        inside = tuple(key.key for key in keys[: len(path)]) == path
        return np.zeros(expected.shape, expected.dtype) if inside else np.asarray(leaf)

    variables = jax.tree.map_with_path(keep, dict(model.variables), abstract)
    return dataclasses.replace(new, variables=variables)


def checked_size(input_size: Sequence[int]) -> tuple[int, int]:
    """A height and a width in pixels.

    Raises:
        ValueError: if they are not two positive whole numbers.
    """
    size = tuple(input_size)
    if len(size) != 2 or any(not isinstance(n, numbers.Integral) or n < 1 for n in size):
        raise ValueError(f"input_size (={size}) must be a height and a width of at least 1 pixel")
    return int(size[0]), int(size[1])


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
        model: a model made by `build_model`.
        dtype: dtype in which floating-point weights are stored, such as `jnp.bfloat16`; None keeps
            theirs. They are float32 again once loaded.
        overwrite: whether to replace an existing checkpoint.

    Returns:
        The directory.

    Raises:
        ValueError: if the directory exists, or the model's architecture has no name here.
    """
    directory = Path(directory).resolve()
    architecture(model.card.get("model", model.name))
    if directory.exists() and not (overwrite and (directory / "card.json").is_file()):
        raise ValueError(f"{directory} exists already: choose another directory or remove it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    weights = jax.tree.map(np.asarray, dict(model.variables))
    if dtype is not None:
        weights = jax.tree.map(lambda x: x.astype(dtype), weights)
    card = {**model.card, "sha256": weights_hash(weights)}
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(temporary / "weights", weights)
        # needed on storage without renaming alone, and it names this machine's directories
        (temporary / "weights" / "commit_success.txt").unlink(missing_ok=True)
        (temporary / "card.json").write_text(json.dumps(card, indent=2) + "\n")
        temporary.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def load_model(checkpoint: str | os.PathLike, *, precision: str = "highest") -> Model:
    """Load a bundled checkpoint by its name, or any checkpoint directory.

    Args:
        checkpoint: a name such as `"digits"`, or a directory that `save_checkpoint` wrote.
        precision: matrix precision, see `Model`.

    Raises:
        ValueError: if there is no such checkpoint, or it is damaged.
    """
    directory = find_checkpoint(checkpoint)
    try:
        card = json.loads((directory / "card.json").read_text())
        model = build_model(
            card["model"],
            card["num_classes"],
            input_size=tuple(card["input_size"]),
            mean=tuple(card["mean"]),
            std=tuple(card["std"]),
            variables={},
            card=card,
            precision=precision,
            **card["options"],
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{directory / 'card.json'} is no checkpoint card ({type(error).__name__}: {error})"
        ) from None
    abstract = jax.eval_shape(lambda: init(model.module, model.input_size, 0))
    weights = _restore(directory / "weights", abstract)
    if card.get("sha256") != weights_hash(weights):
        raise ValueError(
            f"{directory} is damaged: its weights do not have the hash that its card gives"
        )
    weights = jax.tree.map(lambda x, a: x.astype(a.dtype), weights, abstract)
    return dataclasses.replace(model, variables=weights)


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


def weights_hash(weights: Mapping[str, Any]) -> str:
    """Hex SHA-256 over the names, dtypes, shapes and bytes of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(weights):
        leaf = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}:{leaf.dtype}:{leaf.shape};".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))  # not copied
    return digest.hexdigest()


def _restore(path: Path, abstract: Any) -> Any:
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
            weights = checkpointer.restore(
                path, args=ocp.args.PyTreeRestore(item=abstract, restore_args=as_numpy)
            )
    # orbax raises many kinds of error for a damaged checkpoint, tensorstore's own among them
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(
            f"{path} cannot be read as orbax weights of this model"
            f" ({type(error).__name__}: {reason[:200]})"
        ) from None
    for (keys, leaf), expected in zip(
        jax.tree.leaves_with_path(weights), jax.tree.leaves(abstract), strict=True
    ):
        if leaf.shape != expected.shape:
            raise ValueError(
                f"{path}: {jax.tree_util.keystr(keys)} has shape {leaf.shape}, but the model that"
                f" the card names needs {expected.shape}"
            )
    return weights


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
