"""A detector as one directory: a checkpoint of its network, `detector.json`, and its arrays.

The network's weights, the detector's options and fit, its threshold and its calibration scores
belong together and are saved together, see `si_jax.weights.saved`.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from si_jax.cli import versions
from si_jax.data.files import write_text
from si_jax.weights import checkpoint, saved

FORMAT = 2
CARD = "detector.json"
ARRAYS = "arrays"
LAYER = "layers."  # before the names of the threshold's arrays that are of layers


def _check_format(number: int) -> int:
    if number != FORMAT:
        raise ValueError("another version of si_jax wrote it, update the older of the two")
    return number


class ThresholdCard(BaseModel):
    """What is kept of a threshold beside its arrays."""

    model_config = ConfigDict(strict=True)

    tpr: float = Field(gt=0, lt=1)
    preprocessing: str


class Card(BaseModel):
    """What a saved detector is."""

    model_config = ConfigDict(title="detector's card", strict=True, allow_inf_nan=False)

    format: Annotated[int, AfterValidator(_check_format)]
    detector: str
    version: int
    options: dict[str, Any]
    settings: dict[str, Any]
    batch_size: int = Field(ge=1)
    precision: str
    preprocessing: dict[str, Any]
    threshold: ThresholdCard | None
    card: dict[str, Any]
    versions: dict[str, str]


def save_detector(directory: str | os.PathLike, detector: Any, *, overwrite: bool) -> Path:
    """Write a detector to a directory, whole or not at all; see `Detector.save`."""
    state = detector.check_fitted()
    if detector.version is None:
        raise ValueError(f"detector {detector.name!r} has no version: register it with one first")
    model, threshold = detector.model, detector.threshold
    parts: dict[str, dict[str, Any]] = {"state": dict(state)}
    if threshold is not None:
        found = {k: getattr(threshold, k) for k in ("scores", "examples", "example_features")}
        found |= {LAYER + name: values for name, values in threshold.layers.items()}
        parts["threshold"] = {k: values for k, values in found.items() if values is not None}
    if not checkpoint.is_known(model):
        parts["probe"] = {"logits": checkpoint.probe_logits(model)}
    parts = {part: jax.tree.map(np.asarray, arrays) for part, arrays in parts.items() if arrays}
    # predicates are saved as the paths that they chose
    options = {k: detector.settings[k] if callable(v) else v for k, v in detector.options.items()}
    promised = threshold and {"tpr": float(threshold.tpr), "preprocessing": threshold.preprocessing}
    content = {
        "format": FORMAT,
        "detector": detector.name,
        "options": options,
        **{key: getattr(detector, key) for key in ("version", "settings", "batch_size", "card")},
        "precision": model.precision,
        "preprocessing": dataclasses.asdict(detector.preprocessing),
        "threshold": promised,
        "versions": versions(),
    }
    text = json.dumps(content, indent=2, default=plain)
    with saved.saving(directory, CARD, overwrite) as hidden:
        checkpoint.save_checkpoint(hidden / checkpoint.INSIDE, model)
        if parts:
            saved.write_arrays(hidden / ARRAYS, parts)
        write_text(hidden / CARD, text + "\n")
    return Path(directory).resolve()


def plain(value: Any) -> Any:
    """NumPy's scalars and arrays as JSON's own kinds."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    raise ValueError(f"an option of the detector (={value!r}) cannot be saved: give it as a name")
