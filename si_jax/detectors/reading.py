"""The one generator of batches behind a detector's fit, calibrate, score, predict and explain."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from si_jax.batching import progress_bar
from si_jax.data.image_set import ImageSet, ImageStream
from si_jax.data.opening import as_images
from si_jax.data.pipeline import Batch, batches
from si_jax.model import Model


def batches_of(
    detector: Any,
    images: Any,
    batch_size: int,
    *,
    progress: str = "",
    may_be_empty: bool = False,
    **options: Any,
) -> Iterator[Batch]:
    """The batches of images of any form, as a detector prepares them."""
    shape = detector.model.image_shape
    source = as_images(images, channels=shape[-1])
    made = batches(source, detector.preprocessing, batch_size, image_shape=shape, **options)
    total = len(source) if isinstance(source, ImageSet) else None
    empty = not may_be_empty
    with progress_bar(progress, total) as bar:
        for batch in made:
            empty = False
            yield batch
            bar.update(batch.size)
    if empty:
        raise ValueError("images is empty: there is nothing to compute")


def training_images(model: Model, images: Any, labels: Any) -> ImageSet | ImageStream:
    """Images to fit on; the class folders of a folder are the network's classes."""
    matching: dict[str, Any] = {}
    if labels is None and isinstance(images, str | os.PathLike):
        path, classes = Path(images).expanduser(), tuple(model.card.get("classes", ()))
        if path.is_dir() and any(sub.is_dir() for sub in path.glob("[!.]*")):
            matching = {"classes": classes} if classes else {"num_classes": model.num_classes}
    return as_images(images, labels=labels, channels=model.image_shape[-1], **matching)
