"""A PyTorch network by its name: a custom function, timm's or `transformers`'.

A function that is named so is code that runs; the weights file that is read beside it is not.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.model import Model
from si_jax.weights.convert import load_state


def torch_model(
    name: str,
    checkpoint: str | os.PathLike | None = None,
    *,
    input_size: int | Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    part: str | None = None,
    pretrained: bool = True,
) -> Model:
    """A `Model` of a PyTorch network, and how images enter it, from its own configuration.

    Args:
        name: `"module:function"` for a function without arguments that returns the module,
            `"timm:NAME"` for `timm.create_model`, `"transformers:NAME"` for a classifier of
            `transformers`, a name or a folder.
        checkpoint: a file with its state dict, PyTorch's (read with `weights_only=True`) or
            safetensors; None for the weights that the network has.
        input_size: height and width of the images, pixels; None for the network's own.
        mean: mean of each channel in [0, 1] units; None for the network's own.
        std: standard deviation of each channel, likewise.
        part: which of several state dicts in the file.
        pretrained: whether timm's and transformers' weights are fetched where there is no
            `checkpoint`.

    Raises:
        ValueError: if there is no such network, the weights do not fit it, or it does not say how
            images enter it.
    """
    place, colon, what = name.partition(":")
    if not (place and colon and what):
        raise ValueError(
            f"torch (={name!r}) must be MODULE:FUNCTION of a Python module, timm:NAME or"
            " transformers:NAME"
        )
    make = {"timm": _timm, "transformers": _transformers}.get(place, _function)
    network, found = make(place, what, pretrained and checkpoint is None)
    card = {"model": name, **found.pop("card", {})}
    if checkpoint is not None:
        state, source = load_state(Path(checkpoint), part, [])
        _load(network, state, Path(checkpoint))
        card |= source
    given = {"input_size": input_size, "mean": mean, "std": std}
    found |= {key: value for key, value in given.items() if value is not None}
    if missing := [key for key in given if key not in found]:
        raise ValueError(
            f"{name} does not say with what images it was trained: give {' and '.join(missing)}"
        )
    if input_size is not None:
        card.pop("preprocessing", None)
    return Model(network, name=name, card=card, **found)


def _function(place: str, what: str, pretrained: bool) -> tuple[Any, dict[str, Any]]:
    sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(place), what)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"torch (={place}:{what}) cannot be made: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    config = getattr(made, "pretrained_cfg", None)  # as timm's networks have it
    return made, _of_timm(config) if isinstance(config, Mapping) else {}


def _timm(place: str, what: str, pretrained: bool) -> tuple[Any, dict[str, Any]]:
    timm = _package("timm")
    try:
        network = timm.create_model(what, pretrained=pretrained)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"timm has no network {what!r}: {_line(error)}") from error
    return network, _of_timm(timm.data.resolve_model_data_config(network))


def _of_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """How images enter a network by timm's configuration; they are resized bilinearly here."""
    crop = tuple(config["input_size"][1:])
    resize = int(crop[0] / config.get("crop_pct", 1.0)) if crop[0] == crop[1] else crop
    return {
        "input_size": crop,
        "mean": config["mean"],
        "std": config["std"],
        "card": {"preprocessing": {"resize": resize, "crop": list(crop)}},
    }


def _transformers(place: str, what: str, pretrained: bool) -> tuple[Any, dict[str, Any]]:
    package = _package("transformers")
    classifier = package.AutoModelForImageClassification
    try:
        config = package.AutoConfig.from_pretrained(what)
        network = classifier.from_pretrained(what) if pretrained else classifier.from_config(config)
        images, _ = package.image_processing_base.ImageProcessingMixin.get_image_processor_dict(
            what
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"transformers has no classifier {what!r}: {_line(error)}") from error
    labels = config.id2label
    card: dict[str, Any] = {"classes": [labels[i] for i in sorted(labels)]}
    found: dict[str, Any] = {"output": "logits", "card": card}
    size = images.get("crop_size") or images.get("size") or {}
    size = size if isinstance(size, dict) else {"height": size, "width": size}
    crop = [size.get(side) or size.get("shortest_edge") for side in ("height", "width")]
    if all(crop):
        found["input_size"] = tuple(crop)
        edge = images.get("size") or {}
        edge = edge.get("shortest_edge") if isinstance(edge, dict) else None
        card["preprocessing"] = {"resize": edge or crop, "crop": crop}
    found |= {key: images[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in images}
    return network, found


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} cannot be imported ({error}): pip install {name}") from None


def _load(network: Any, state: Mapping[str, Any], path: Path) -> None:
    """Put a state dict into a network; names may begin with `module.`, as DataParallel's do."""
    import torch

    tensors = {
        key.removeprefix("module."): torch.from_numpy(x) if isinstance(x, np.ndarray) else x
        for key, x in state.items()
    }
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} holds weights of another network: {_line(error)}") from error


def _line(error: Exception) -> str:
    """An error's text in one line of bounded length."""
    return " ".join(str(error).split())[:300]
