"""Fit detectors on a training split: one forward pass for all of them, kept beside the scores."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from si_jax.data.files import BROKEN, read_arrays, write_atomically
from si_jax.data.image_set import ImageSet
from si_jax.data.pipeline import batches as image_batches
from si_jax.data.pipeline import tell_unreadable
from si_jax.detectors import Detector
from si_jax.detectors.base import CachedBatches
from si_jax.evaluation.store import key_of
from si_jax.weights.variables import weights_hash


def fit_detectors(
    detectors: Mapping[str, Detector],
    image_set: ImageSet,
    transform: Callable[[np.ndarray], np.ndarray],
    *,
    facts: Mapping[str, Any],
    directory: Path,
    batch_size: int = 64,
    workers: int = 4,
    skip_unreadable: bool = False,
) -> None:
    """Fit those detectors that need it, in place, or load their fits where they are stored.

    The logits and features of all fitting images are kept while fitting: (features + classes) * 4
    bytes an image.

    Args:
        detectors: name -> detector, all of one model.
        image_set: in-distribution training images, with labels where a detector needs them.
        transform: a decoded image -> an image in the model's input size.
        facts: what else determines the fit (weights, protocol), for the files' keys.
        directory: where fits are kept, as `<directory>/<detector>.npz`.
        batch_size: images per batch.
        workers: threads that decode.
        skip_unreadable: whether to leave out images that cannot be read, and say so; otherwise an
            error.

    Raises:
        ValueError: if an image cannot be read, or a detector cannot be fitted on these images.
    """
    keys = {
        name: key_of(
            {
                **facts,
                "detector": d.name,
                "settings": d.settings,
                "fit": image_set.fingerprint,
                "skip_unreadable": skip_unreadable,
            }
        )
        for name, d in detectors.items()
        if d.needs_fit
    }
    missing = []
    for name, key in keys.items():
        state = _load(directory / f"{name}.npz", key)
        if state is None:
            missing.append(name)
        else:
            detectors[name].load_state(state)
    if not missing:
        return

    unreadable: dict[str, None] = {}  # in order, each once

    def stream():
        bar = tqdm(total=len(image_set), desc=f"{image_set.name}: fitting", unit="img")
        options = {"workers": workers, "skip_unreadable": skip_unreadable}
        with bar:
            for batch in image_batches(image_set, transform, batch_size, **options):
                unreadable.update(dict.fromkeys(batch.unreadable))
                yield batch.images[batch.mask], batch.labels[batch.mask]
                bar.update(int((batch.indices >= 0).sum()))

    model = detectors[missing[0]].model
    cached = CachedBatches(stream, model)
    for name in missing:
        detectors[name].fit_batches(cached)
        arrays = {"key": np.array(keys[name]), **detectors[name].state}
        path = directory / f"{name}.npz"
        write_atomically(path, lambda file, a=arrays: np.savez_compressed(file, **a))
    if unreadable:
        tell_unreadable(image_set, tuple(unreadable))


def fit_hash(detector: Detector) -> str:
    """Hex hash of what a detector has learnt; empty for one that learns nothing."""
    return weights_hash(detector.state) if detector.state else ""


def _load(path: Path, key: str) -> dict[str, np.ndarray] | None:
    try:
        state = read_arrays(path)
    except BROKEN:
        return None
    return state if str(state.pop("key", "")) == key else None
