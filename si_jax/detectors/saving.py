"""A detector as one directory: `detector.json`, and every array beside it, written by orbax.

The network's weights, the detector's options and fit, its threshold and its calibration scores
belong together and are saved together, with hashes of all. Nothing is pickled.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from si_jax.cli import versions
from si_jax.data.directories import check_new, written_whole
from si_jax.data.json_files import json_hash
from si_jax.detectors import saved_network
from si_jax.detectors.threshold import Threshold
from si_jax.weights.stored import write_arrays
from si_jax.weights.variables import weights_hash

FORMAT = 1
CARD = "detector.json"


def save_detector(
    directory: str | os.PathLike,
    detector: Any,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a detector to a directory, whole or not at all; see `Detector.save`."""
    detector.check_fitted()
    if detector.version is None:
        raise ValueError(
            f"detector {detector.name!r} has no version, by which a saved one is known to be stale:"
            " register it with one"
        )
    directory = Path(directory).resolve()
    replace = overwrite and (directory / CARD).is_file()
    if not replace:
        check_new(directory)
    model, threshold = detector.model, detector.threshold
    network, variables, probe = saved_network.describe(model)
    arrays: dict[str, Any] = {
        "variables": variables,
        "state": {name: np.asarray(array) for name, array in detector.state.items()},
        "threshold": _threshold_arrays(threshold) if threshold else {},
    }
    if probe is not None:
        arrays["probe"] = {"logits": probe}
    content = {
        "format": FORMAT,
        "detector": detector.name,
        "version": detector.version,
        "options": _options(detector),
        "settings": detector.settings,
        "batch_size": detector.batch_size,
        "model": network,
        "preprocessing": dataclasses.asdict(detector.preprocessing),
        "threshold": threshold
        and {
            "tpr": float(threshold.tpr),
            "value": threshold.value,
            "images": threshold.count,
            "preprocessing": threshold.preprocessing,
        },
        "card": detector.card,
        "versions": versions(),
        "sha256": {part: weights_hash(tree) for part, tree in arrays.items()},
    }
    content = json.loads(json.dumps(content, default=plain))
    content["sha256"]["json"] = card_hash(content)
    with written_whole(directory) as temporary:
        filled = {part: tree for part, tree in arrays.items() if tree}
        write_arrays(temporary / "arrays", filled)
        (temporary / CARD).write_text(json.dumps(content, indent=2) + "\n")
    return directory


def _threshold_arrays(threshold: Threshold) -> dict[str, Any]:
    arrays: dict[str, Any] = {"scores": threshold.scores}
    arrays |= {f"layers.{name}": values for name, values in threshold.layers.items()}
    if threshold.examples is not None:
        arrays["examples"] = threshold.examples
        arrays["example_features"] = threshold.example_features
    return {name: np.asarray(array) for name, array in arrays.items()}


def _options(detector: Any) -> dict[str, Any]:
    """The options as given, predicates replaced by the paths that they chose."""
    return {
        key: detector.settings[key] if callable(value) else value
        for key, value in detector.options.items()
    }


def plain(value: Any) -> Any:
    """NumPy's scalars and arrays as JSON's own kinds."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    raise ValueError(f"an option of the detector (={value!r}) cannot be saved: give it as a name")


def card_hash(content: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a card's content, its own hash left out."""
    hashes = {part: digest for part, digest in content["sha256"].items() if part != "json"}
    return json_hash({**content, "sha256": hashes})
