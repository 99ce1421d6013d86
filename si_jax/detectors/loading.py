"""A saved detector, checked and loaded again; see `si_jax.detectors.saving`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.preprocessing import preprocessing_for
from si_jax.detectors import DETECTORS, make_detector, saved_network
from si_jax.detectors.detector import Detector
from si_jax.detectors.saving import CARD, FORMAT, card_hash, plain
from si_jax.detectors.threshold import Threshold
from si_jax.model import Model
from si_jax.weights.checkpoint import bundled_directory
from si_jax.weights.stored import read_arrays
from si_jax.weights.variables import weights_hash


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
    content = _read_card(directory / CARD)
    arrays = _restore(directory / "arrays")
    for part, expected in content["sha256"].items():
        if part != "json" and weights_hash(arrays.get(part, {})) != expected:
            raise ValueError(
                f"{directory} is damaged: its {part} do not have the hash that {CARD} gives"
            )
    name = content["detector"]
    if name not in DETECTORS:
        raise ValueError(f"{directory} holds a detector {name!r}, which this version has not")
    if content["version"] != DETECTORS[name].version:
        raise ValueError(
            f"the score of {name!r} has changed since {directory} was saved (version"
            f" {content['version']}, now {DETECTORS[name].version}): fit, calibrate and save it"
            " again"
        )
    probe = arrays.get("probe", {}).get("logits")
    model = saved_network.rebuild(content["model"], arrays["variables"], probe, model)
    detector = make_detector(name, model, batch_size=content["batch_size"], **content["options"])
    if json.loads(json.dumps(detector.settings, default=plain)) != content["settings"]:
        raise ValueError(
            f"{directory} was saved with other defaults of {name!r}: its settings were"
            f" {content['settings']}, and would be {detector.settings}; fit and save it again"
        )
    if detector.needs_fit:
        detector.load_state(arrays["state"])
    entry = {"preprocessing": content["preprocessing"]}
    detector.preprocessing = preprocessing_for(model.input_size, entry)
    if content["threshold"]:
        detector.threshold = _threshold(content["threshold"], arrays["threshold"])
    detector.card = content["card"]
    return detector


def find_detector(directory: str | os.PathLike) -> Path:
    """The directory of a saved detector, or of a bundled one by its name.

    Raises:
        ValueError: if there is none; the message lists the bundled ones.
    """
    shipped = bundled_directory()
    for place in (Path(directory).expanduser(), shipped / f"{directory}_detector"):
        if (place / CARD).is_file():
            return place.resolve()
    if Path(directory).is_dir():
        raise ValueError(
            f"{directory} holds no {CARD}: it is no saved detector, or that file is missing"
        )
    bundled = sorted(p.parent.name[: -len("_detector")] for p in shipped.glob(f"*/{CARD}"))
    raise ValueError(
        f"there is no detector {str(directory)!r}: give the directory of one that was saved by"
        f" detector.save, or one of the bundled: {', '.join(bundled) or 'none'}"
    )


def _read_card(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        number, hashes = content["format"], content["sha256"]
        written = hashes["json"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no detector's card ({type(error).__name__}: {error})"
        ) from None
    if number != FORMAT:
        raise ValueError(
            f"{path} is of format {number!r}, and this version of si_jax reads {FORMAT}: it was"
            " written by another version, update the older of the two"
        )
    if written != card_hash(content):
        raise ValueError(
            f"{path} was edited: it does not have its own hash. Load the detector, change it by the"
            " library and save it again"
        )
    return content


def _restore(path: Path) -> dict[str, dict[str, np.ndarray]]:
    if not path.is_dir():
        raise ValueError(f"{path.parent} is damaged: its folder 'arrays' is missing")
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for key, array in read_arrays(path).items():
        part, _, name = key.partition(".")
        arrays.setdefault(part, {})[name] = array
    return arrays


def _threshold(content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Threshold:
    layers = {k[len("layers.") :]: v for k, v in arrays.items() if k.startswith("layers.")}
    return Threshold(
        arrays["scores"],
        content["tpr"],
        content["preprocessing"],
        layers,
        arrays.get("examples"),
        arrays.get("example_features"),
    )
