"""A saved detector, checked and loaded again; see `si_jax.detectors.saving`."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from si_jax.data.files import json_hash, read_json
from si_jax.data.preprocessing import preprocessing_for
from si_jax.detectors import DETECTORS, make_detector
from si_jax.detectors.detector import Detector
from si_jax.detectors.saving import ARRAYS, CARD, FORMAT, LAYER, Card, plain
from si_jax.detectors.threshold import Threshold
from si_jax.model import Model
from si_jax.weights import checkpoint, saved

PROBE_TOLERANCE = 1e-3  # of the largest logit; other matrix kernels differ by 1e-6


def load_detector(directory: str | os.PathLike, *, model: Model | None = None) -> Detector:
    """Load a detector that `Detector.save` wrote, or a bundled one by its name, such as `"digits"`.

    Args:
        directory: the directory, or the name.
        model: the network, where its code is not this library's: a `Model` of the same module, with
            any weights, fresh ones for instance; those that were saved take their place.

    Returns:
        The detector, fitted and calibrated as it was saved.

    Raises:
        ValueError: if there is no such detector; it is damaged, edited, or was written by a newer
            version; the detector's score has changed since; or `model` is missing or another.
    """
    directory = find_detector(directory)
    if saved.check_sums(directory):
        card, facts = saved.read_card(directory / CARD, Card), None
        arrays = saved.read_arrays(directory / ARRAYS) if (directory / ARRAYS).is_dir() else {}
    else:
        card, facts, arrays = _read_former(directory)
    name = card.detector
    if name not in DETECTORS:
        raise ValueError(f"{directory} holds a detector {name!r}, which this version has not")
    if card.version != DETECTORS[name].version:
        raise ValueError(
            f"the score of {name!r} has changed since {directory} was saved (version"
            f" {card.version}, now {DETECTORS[name].version}): fit, calibrate and save it again"
        )
    if "probe" in arrays and model is None:
        raise ValueError(
            f"{directory} holds a detector of a network whose code is not saved with it: give it"
            " again, load_detector(directory, model=si_jax.Model(...))"
        )
    if facts is None:
        inside = directory / checkpoint.INSIDE
        loaded = checkpoint.load_model(inside, precision=card.precision, like=model)
    else:
        loaded = _former_network(facts, arrays["variables"], model)
    if model is not None:
        same = {key: getattr(loaded, key) for key in ("input_size", "mean", "std")}
        for key, value in {**same, "head": loaded.card.get("head", model.head)}.items():
            if (found := getattr(model, key)) != value:
                raise ValueError(
                    f"the model's {key} (={found!r}) is not the one that was saved, {value!r}"
                )
    if "probe" in arrays:
        expected = arrays["probe"]["logits"]
        difference = np.abs(checkpoint.probe_logits(loaded) - expected).max()
        if not difference <= PROBE_TOLERANCE * np.abs(expected).max():
            raise ValueError("model is another one: of the same weights it makes other logits")
    detector = make_detector(name, loaded, batch_size=card.batch_size, **card.options)
    settings = json.loads(json.dumps(detector.settings, default=plain))
    if any(settings.get(key) != value for key, value in card.settings.items()):
        raise ValueError(
            f"{directory} was saved with other defaults of {name!r}: its settings were"
            f" {card.settings}, and would be {detector.settings}; fit and save it again"
        )
    if detector.needs_fit:
        detector.load_state(arrays["state"])
    prepared = {"preprocessing": card.preprocessing}
    detector.preprocessing = preprocessing_for(loaded.input_size, prepared)
    if card.threshold:
        known = arrays["threshold"]
        layers = {k.removeprefix(LAYER): v for k, v in known.items() if k.startswith(LAYER)}
        others = {k: v for k, v in known.items() if not k.startswith(LAYER)}
        detector.threshold = Threshold(**others, **dict(card.threshold), layers=layers)
    detector.card = card.card
    return detector


def find_detector(directory: str | os.PathLike) -> Path:
    """The directory of a saved detector, or of a bundled one by its name."""
    for place in (Path(directory).expanduser(), checkpoint.bundled_directory() / directory):
        if (place / CARD).is_file():
            return place.resolve()
    if Path(directory).is_dir():
        raise ValueError(
            f"{directory} holds no {CARD}: it is no saved detector, or that file is missing"
        )
    names = sorted(card.parent.name for card in checkpoint.bundled_directory().glob(f"*/{CARD}"))
    raise ValueError(
        f"there is no detector {str(directory)!r}: give the directory of one that was saved by"
        f" detector.save, or one of the bundled: {', '.join(names) or 'none'}"
    )


def _read_former(directory: Path) -> tuple[Card, dict[str, Any], dict[str, Any]]:
    """Card, facts of the network, and arrays of the first saved form, compared with their hashes.

    There, variables have numbers, and each part has a hash.
    """
    try:
        content = read_json(directory / CARD)
        hashes = content.pop("sha256")
        noted = hashes.pop("json")
        if content["format"] != 1 or json_hash({**content, "sha256": hashes}) != noted:
            raise ValueError("it does not have its own hash")
        arrays = saved.read_arrays(directory / ARRAYS)
        for part, expected in hashes.items():
            if saved.weights_hash(arrays.get(part, {})) != expected:
                raise ValueError(f"its {part} do not have their hash")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{directory} is damaged or was edited: it has no file {saved.SUMS}, and is no detector"
            f" of an older version ({type(error).__name__}: {error})"
        ) from None
    facts = content["model"]
    content |= {"format": FORMAT, "precision": facts["precision"]}
    return Card.model_validate(content), facts, arrays


def _former_network(facts: Mapping, arrays: Mapping[str, Any], like: Model | None) -> Model:
    """The network of that form; `like` is it, where its code is not this library's."""
    if like is None:
        card = facts["card"]
        like = checkpoint.build_model(
            facts["architecture"], card["num_classes"], variables={}, card=card, **card["options"]
        )
    size = tuple(facts["input_size"])
    variables = like.variables or checkpoint.abstract_variables(like.module, size)
    rows = [
        [jax.tree_util.keystr(path), list(np.shape(leaf)), str(leaf.dtype)]
        for path, leaf in jax.tree.leaves_with_path(variables)
    ]
    if rows != facts["variables"]:
        others = [
            f"{n} {shape} {x}" for n, shape, x in facts["variables"] if [n, shape, x] not in rows
        ]
        raise ValueError(
            "the model is not the one that the detector was saved with, which has"
            f" {', '.join(others[:5]) or 'its variables in another order'}"
        )
    leaves = [arrays[key] for key in sorted(arrays)]
    known: dict[str, Any] = {key: tuple(facts[key]) for key in ("input_size", "mean", "std")}
    known["variables"] = jax.tree.unflatten(jax.tree.structure(variables), leaves)
    return dataclasses.replace(like, precision=facts["precision"], **known)
