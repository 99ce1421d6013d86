"""Custom data: a folder with training, held-out and out-of-distribution images."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from si_jax.data import synthetic
from si_jax.data.benchmarks import OodSet, Resolved, SearchPaths, find
from si_jax.data.datasets import DatasetSpec
from si_jax.data.image_set import MissingSet
from si_jax.data.opening import as_image_set
from si_jax.data.preprocessing import Preprocessing

PROTOCOL = "own"
HELD_OUT = ("val", "test")  # names of the folder with in-distribution images, by preference


def resolve_own(
    root: str | os.PathLike | None,
    *,
    num_classes: int,
    preprocessing: Preprocessing,
    classes: Sequence[str] = (),
    test: Any = None,
    train: Any = None,
    ood: Mapping[str, Any] | None = None,
    shifted: Mapping[str, Any] | None = None,
    name: str = "",
    seed: int = 0,
) -> Resolved:
    """Find the sets of custom data, of which `si_jax.find_sets` says more."""
    folder = None if root is None else Path(root).expanduser()
    if folder is not None and not folder.is_dir():
        raise MissingSet(f"{folder} is not a folder: give one with val and ood in it")
    below = {path.name: path for path in folder.iterdir() if path.is_dir()} if folder else {}
    if test is None:
        test = next((below[part] for part in HELD_OUT if part in below), None)
    if test is None:
        raise MissingSet(
            f"{folder or 'the data set'} has no folder val or test with in-distribution images;"
            " make one with a folder a class, or say where they are"
        )
    train = below.get("train") if train is None else train
    if folder:
        name = name or folder.resolve().name
    elif isinstance(test, str | os.PathLike):
        name = name or Path(test).expanduser().resolve().stem
    name = name or "in-distribution"
    matching = {"classes": tuple(classes)} if classes else {"num_classes": num_classes}
    tested = as_image_set(test, name, **matching)
    paths = sorted(below["ood"].glob("[!.]*")) if "ood" in below else []
    given = {p.stem if p.is_file() else p.name: p for p in paths} | dict(ood or {})
    sets = [OodSet(key, "ood", as_image_set(data, key)) for key, data in given.items()]
    if not sets:
        made = synthetic.sets_of(tested, preprocessing, seed)
        sets = [OodSet(key, "made", images) for key, images in made.items()]
    moved = [DatasetSpec(called, class_folders=False) for called in shifted or ()]
    look = SearchPaths(given=shifted or {})
    absent = "give a folder train beside val, with a folder a class, or say where training images"
    return Resolved(
        benchmark=name,
        num_classes=num_classes,
        protocol=PROTOCOL,
        preprocessing=preprocessing,
        test=tested,
        train=None if train is None else as_image_set(train, f"{name}_train", **matching),
        ood=tuple(sets),
        train_absent=f"{absent} are",
        shifted=tuple(find(spec, look, num_classes).images for spec in moved),
    )
