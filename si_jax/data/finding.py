"""Find an entry of the catalogue on this machine."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from si_jax.data import digits, sources
from si_jax.data.catalogue import (
    SHIFTED,
    STAND_INS,
    CifarBinary,
    Digits,
    Folder,
    Listing,
    Place,
    SetEntry,
    Tfds,
)
from si_jax.data.cifar import from_cifar_binary
from si_jax.data.image_set import ImageSet, MissingSet
from si_jax.data.roots import folders_root, tfds_dirs
from si_jax.data.sequences import as_image_set
from si_jax.data.tfds_sets import find_prepared


@dataclasses.dataclass(frozen=True)
class Where:
    """Where to look.

    Attributes:
        data_dir: the folder of TFDS's sets, None for the default one.
        ood_root: the folder that holds image folders, None for `data_dir` or its default.
        extra: paths, or whatever else holds images, that the user gives by the name of the set.
        fetch: whether a TFDS set that isn't prepared may be downloaded.
        options: the arguments by which the user can give a place, of `ood_root` and `ood`;
            messages advise no other.
    """

    data_dir: str | os.PathLike | None = None
    ood_root: str | os.PathLike | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fetch: bool = False
    options: Collection[str] = ("ood_root",)

    @property
    def root(self) -> Path:
        """The folder that holds folders of images."""
        return folders_root(self.data_dir, self.ood_root)


def find(entry: SetEntry, where: Where) -> ImageSet:
    """Open a set, as `locate` does."""
    return locate(entry, where)[0]


def locate(entry: SetEntry, where: Where) -> tuple[ImageSet, Place | None]:
    """Open a set at the first of its places where it is; only then think of downloading it.

    Args:
        entry: the catalogue's entry.
        where: where to look.

    Returns:
        The set, and its place; None where the user gave its path.

    Raises:
        MissingSet: if it's nowhere; one sentence says what to do.
        ValueError: if what is there isn't what it should be.
    """
    if entry.name in where.extra:
        data = where.extra[entry.name]
        if not isinstance(data, (str, os.PathLike)):
            return as_image_set(data, entry.name), None
        return sources.from_path(data, name=entry.name, num_classes=_num_classes(entry)), None
    reasons = []
    for fetch in (False, True) if where.fetch else (False,):
        for place in entry.places:
            if fetch and not (isinstance(place, Tfds) and place.fetch):
                continue
            try:
                return _open(place, entry.name, where, fetch, entry.group == SHIFTED), place
            except MissingSet as error:
                if fetch or _is_there(place, where):
                    reasons.append(str(error).rstrip("."))
    advice = ", or ".join(_advice(entry, where))
    raise MissingSet("; or ".join(filter(None, [*dict.fromkeys(reasons), advice])) + ".")


def find_stand_in(entry: SetEntry, where: Where) -> ImageSet | None:
    """Open an entry's stand-in under its own name, or give None if it has none or it's absent."""
    if entry.stand_in is None:
        return None
    stand_in = SetEntry(entry.stand_in, STAND_INS[entry.stand_in])
    try:
        return find(stand_in, dataclasses.replace(where, fetch=False))
    except MissingSet:
        return None


def _open(place: Place, name: str, where: Where, fetch: bool, shifted: bool) -> ImageSet:
    match place:
        case Digits(part):
            if part in digits.OOD_SETS:
                return sources.from_arrays(name, digits.OOD_SETS[part]())
            return sources.from_arrays(name, *digits.load(part))
        case Tfds(tfds_name, split):
            return dataclasses.replace(
                sources.from_tfds(tfds_name, split, where.data_dir, fetch=fetch), name=name
            )
        case Folder(path, num_classes):
            images = sources.from_path(where.root / path, name=name, num_classes=num_classes)
            return images if num_classes or not shifted else sources.unlabelled(images)
        case CifarBinary(paths, num_classes):
            return from_cifar_binary([where.root / p for p in paths], num_classes, name=name)
        case Listing(paths, roots, num_classes):
            listing = next((where.root / p for p in paths if (where.root / p).exists()), None)
            return sources.from_list(
                listing or where.root / paths[0],
                name=name,
                roots=[where.root / root for root in roots],
                num_classes=num_classes,
            )


def describe(place: Place | None, where: Where) -> str:
    """Say where a set that was located is."""
    match place:
        case Tfds(name, split):
            return f"{find_prepared(name, where.data_dir)}, {split}"
        case Folder(path, _):
            return str(where.root / path)
        case CifarBinary(paths, _):
            return str((where.root / paths[0]).parent)
        case Listing(paths, _, _):
            return str(next(where.root / p for p in paths if (where.root / p).exists()))
        case Digits():
            return "made on the spot"
    return "given by the user"


def _is_there(place: Place, where: Where) -> bool:
    """Say whether a place holds something, so that the reason why it's no use is worth telling."""
    match place:
        case Tfds(name, _):
            return find_prepared(name, where.data_dir) is not None
        case Folder(path, _):
            return (where.root / path).exists()
        case CifarBinary(paths, _):
            return (where.root / paths[0]).exists()
        case Listing():
            return False  # what it lists may be elsewhere; that it's unused is told apart
    return True


def _num_classes(entry: SetEntry) -> int | None:
    counts = [place.num_classes for place in entry.places if isinstance(place, Folder)]
    return counts[0] if counts else None


def _advice(entry: SetEntry, where: Where) -> list[str]:
    tfds = [place for place in entry.places if isinstance(place, Tfds)]
    folders = [place.path for place in entry.places if isinstance(place, Folder)]
    advice = []
    if entry.hint:
        advice.append(entry.hint)
    if folders and "ood_root" in where.options:
        root = where.root
        others = f" (or {', '.join(folders[1:])})" if folders[1:] else ""
        advice.append(f"put it below {root} as {folders[0]}{others}")
    if any(not (where.fetch and place.fetch) for place in tfds):
        data_dir = tfds_dirs(where.data_dir)[0]
        advice.append(f"prepare TFDS's {tfds[0].name} in {data_dir} (array_record format)")
    if "ood" in where.options:
        advice.append(f"name its path with ood={{{entry.name!r}: PATH}}")
    return advice
