"""Fit detectors on a training split: one forward pass for all of them, kept beside the scores."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.image_set import ImageSet, overlap
from si_jax.data.pipeline import batches as image_batches
from si_jax.data.pipeline import shown, tell_unreadable
from si_jax.detectors import Detector
from si_jax.detectors.fitting import Batches
from si_jax.evaluation.job import Job
from si_jax.evaluation.keys import detector_facts, key_of
from si_jax.evaluation.store import escaped, read_keyed, write_keyed


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
    bytes an image. A fit is stored as `<directory>/<detector>.npz`; the other arguments are those
    of `si_jax.evaluation.scoring.score_chunks`.
    """
    keys = {
        name: key_of(
            {
                **facts,
                **detector_facts(d),
                "fit": image_set.fingerprint,
                "skip_unreadable": skip_unreadable,
            }
        )
        for name, d in detectors.items()
        if d.needs_fit
    }
    missing = []
    for name, key in keys.items():
        state = read_keyed(_path(directory, name), key)
        if state is None:
            missing.append(name)
        else:
            detectors[name].load_state(state)
    if not missing:
        return

    unreadable: dict[str, None] = {}  # in order, each once

    def stream():
        options = {"workers": workers, "skip_unreadable": skip_unreadable}
        options["image_shape"] = model.image_shape
        made = image_batches(image_set, transform, batch_size, **options)
        for batch in shown(made, image_set, "fitting"):
            unreadable.update(dict.fromkeys(batch.unreadable))
            yield batch.readable

    model = detectors[missing[0]].model
    batches = Batches(stream, model, keep=True)
    for name in missing:
        detectors[name].fit_batches(batches)
        fitted = detectors[name].check_fitted()
        if other := read_keyed(_path(directory, name), keys[name]):  # of another share, meanwhile
            detectors[name].load_state(other)
        else:
            write_keyed(_path(directory, name), keys[name], fitted)
    if unreadable:
        tell_unreadable(image_set, tuple(unreadable))


def _path(directory: Path, name: str) -> Path:
    return directory / f"{escaped(name)}.npz"


def fit_job(
    job: Job, directory: Path, *, skip_unreadable: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Fit a job's detectors; returns what to report of it, and notes on the sets."""
    unfitted = [name for name, detector in job.detectors.items() if detector.needs_fit]
    if job.train is None or not unfitted:
        return {}, []
    fit_detectors(
        job.detectors,
        job.train,
        job.transform,
        facts=job.score_facts,
        directory=directory,
        skip_unreadable=skip_unreadable,
    )
    counts = {images.name: (overlap(images, job.train), len(images)) for images in job.sets}
    notes = [
        f"{name}: {count} of its {size} images are, byte for byte, among the {len(job.train)}"
        " training images that detectors are fitted on"
        for name, (count, size) in counts.items()
        if count
    ]
    return {"set": job.train.name, "images": len(job.train), "detectors": unfitted}, notes
