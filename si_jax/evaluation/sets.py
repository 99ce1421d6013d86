"""The sets that an evaluation runs on: a benchmark's, or those of one's own data."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data import benchmarks, downloads
from si_jax.data.benchmarks import BENCHMARKS, Resolved
from si_jax.data.cifar import LABELS
from si_jax.data.image_set import ImageSet, overlap, unlabelled
from si_jax.data.opening import as_image_set
from si_jax.data.own import resolve_own
from si_jax.data.preprocessing import preprocessing_for
from si_jax.model import Model


def is_own(benchmark: str | os.PathLike | None) -> bool:
    """Whether that is no benchmark but one's own data: a folder, or None for sets given apart."""
    if benchmark is None:
        return True
    return benchmark not in BENCHMARKS and Path(benchmark).expanduser().is_dir()


def find_sets(
    benchmark: str | os.PathLike | None,
    model: Model | None,
    protocol: str,
    *,
    data_dir: str | os.PathLike | None = None,
    ood_root: str | os.PathLike | None = None,
    id_set: Any = None,
    id_name: str = "",
    train_set: Any = None,
    ood: Mapping[str, Any] | None = None,
    shifted: Mapping[str, Any] | None = None,
    full_spectrum: bool = False,
    allow_missing: bool = False,
    download: bool = False,
    seed: int = 0,
) -> Resolved:
    """Find a benchmark's sets, or those of one's own data.

    Args:
        benchmark: a key of `BENCHMARKS`; a folder as `si_jax.data.own.resolve_own` takes; or None,
            where `id_set` and the others hold all there is.
        model: the network; its own size, and the classes on its card, are used for one's own data.
            A benchmark needs none.
        protocol: of a benchmark.
        data_dir: the folder of all data.
        ood_root: the folder for folders of images.
        id_set: in-distribution images in place of those that would be looked for.
        id_name: what to call them, where they are one's own; their folder's name by default.
        train_set: likewise the images that detectors are fitted on.
        ood: name -> further sets, or where one of the benchmark's is.
        shifted: name -> in-distribution images that look otherwise, for the full spectrum.
        full_spectrum: whether the benchmark's own sets of such images are taken too.
        allow_missing: whether absent sets of a benchmark are left out.
        download: whether public sets that are absent are downloaded.
        seed: of sets that are made up.

    Raises:
        ValueError: as `benchmarks.resolve` and `resolve_own`.
    """
    if is_own(benchmark):
        if model is None:
            raise ValueError("one's own data is brought to a network's size: give the model")
        if full_spectrum:
            raise ValueError("full_spectrum is for benchmarks: give sets of your own as shifted")
        sets = resolve_own(
            benchmark,
            num_classes=model.num_classes,
            preprocessing=preprocessing_for(model.input_size, model.card),
            classes=tuple(model.card.get("classes", ())),
            test=id_set,
            train=train_set,
            ood=ood,
            name=id_name,
            seed=seed,
        )
        return _with_shifted(sets, shifted)
    table = BENCHMARKS[str(benchmark)]
    given = {table.test.name: id_set, table.train.name: train_set}
    extra = {**(ood or {}), **{name: data for name, data in given.items() if data is not None}}
    if download:
        for outcome in downloads.prepare(
            table.name, protocol, data_dir, ood_root, full_spectrum=full_spectrum
        ):
            print(f"{outcome.name}: {outcome.state}; {outcome.detail}", file=sys.stderr)
    sets = benchmarks.resolve(
        table.name,
        protocol,
        data_dir,
        ood_root,
        extra=extra,
        allow_missing=allow_missing,
        fetch=download,
        full_spectrum=full_spectrum,
    )
    return _with_shifted(sets, shifted)


def _with_shifted(sets: Resolved, shifted: Mapping[str, Any] | None) -> Resolved:
    """Add in-distribution images that look otherwise; what a folder's folders are isn't known."""
    if not shifted:
        return sets
    added = []
    for name, data in shifted.items():
        images = as_image_set(data, name)
        is_folder = isinstance(data, (str, os.PathLike)) and Path(data).expanduser().is_dir()
        has_labels = not is_folder or (Path(data).expanduser() / LABELS).is_file()
        added.append(images if has_labels else unlabelled(images))
    return dataclasses.replace(sets, shifted=(*sets.shifted, *added))


def overlap_notes(train: ImageSet, image_sets: tuple[ImageSet, ...]) -> list[str]:
    """Say which sets share files with the images that detectors are fitted on."""
    counts = {images.name: overlap(images, train) for images in image_sets}
    return [
        f"{images.name}: {counts[images.name]} of its {len(images)} images are, byte for byte,"
        f" among the {len(train)} training images that detectors are fitted on"
        for images in image_sets
        if counts[images.name]
    ]


def order_note(images: ImageSet, predicted: Mapping[str, np.ndarray]) -> list[str]:
    """Say what the accuracy would be under the other order of numbered class folders.

    Args:
        images: the in-distribution set.
        predicted: `"score"`, the predicted class, and `"label"` of each image.
    """
    labels = predicted["label"]
    if not images.other_labels or (labels < 0).any():
        return []
    other = np.asarray(images.other_labels)[labels]
    taken, text = (float(np.mean(predicted["score"] == truth)) for truth in (labels, other))
    return [
        f"{images.name}: its class folders are numbers and taken in their order, accuracy"
        f" {taken:.2%}; sorted as text (0, 1, 10, ...), as PyTorch's ImageFolder does, it would be"
        f" {text:.2%}"
    ]
