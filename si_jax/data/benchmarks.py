"""The benchmarks as tables, and `resolve`, which finds their sets.

To add a set to a benchmark, add it to a line here (and, where it's new, to the catalogue).

Two protocols: `published` crops the centre without resizing (480x480 for ImageNet), `openood`
resizes the shorter side and then crops; their out-of-distribution sets differ too. `far` sets
share nothing with the in-distribution classes, `near` sets resemble them; they are averaged apart.
`extra` sets are used where they lie, in no average. The near set of `published` on CIFAR is an
addition: the published averages are over the far sets.
"""

import dataclasses
import os
from collections.abc import Mapping

from si_jax.data import catalogue as cat
from si_jax.data import digits, finding, sources
from si_jax.data.catalogue import Digits, Folder, SetEntry, Tfds
from si_jax.data.image_set import ImageSet, MissingSet
from si_jax.data.preprocessing import PREPROCESSING, PROTOCOLS, Preprocessing


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """In-distribution splits and, for each protocol, out-of-distribution sets.

    `size` is the key of `PREPROCESSING` next to the protocol; `train` is what detectors are
    fitted on.
    """

    name: str
    num_classes: int
    size: str
    test: SetEntry
    train: SetEntry
    ood: Mapping[str, tuple[SetEntry, ...]]


def _group(group: str, *entries: SetEntry) -> tuple[SetEntry, ...]:
    return tuple(entry.within(group) for entry in entries)


def _cifar(name: str, num_classes: int, test: SetEntry, other: SetEntry) -> Benchmark:
    far = _group("far", cat.SVHN, cat.LSUN, cat.TINY_IMAGENET, cat.PLACES365, cat.TEXTURES)
    extra = _group("extra", cat.LSUN_RESIZE, cat.ISUN, cat.TINY_IMAGENET_RESIZE)
    return Benchmark(
        name=name,
        num_classes=num_classes,
        size="small",
        test=test,
        train=SetEntry(
            f"{name}_train", (Tfds(name, "train"), Folder(f"{name}/train", num_classes))
        ),
        ood={
            "published": far + _group("near", other) + extra,
            "openood": _group("far", cat.MNIST, cat.SVHN, cat.TEXTURES, cat.PLACES365)
            + _group("near", other, cat.TINY_IMAGENET),
        },
    )


_DIGITS_OOD = tuple(
    SetEntry(part, (Digits(part),), group)
    for part, group in (
        ("photos", "far"),
        ("shuffled", "far"),
        ("noise", "far"),
        ("letters", "near"),
    )
)

BENCHMARKS = {
    "digits": Benchmark(
        name="digits",
        num_classes=digits.CLASSES,
        size="small",
        test=SetEntry("digits", (Digits("test"),)),
        train=SetEntry("digits_train", (Digits("train"),)),
        ood=dict.fromkeys(PROTOCOLS, _DIGITS_OOD),
    ),
    "cifar10": _cifar("cifar10", 10, test=cat.CIFAR10_TEST, other=cat.CIFAR100_TEST),
    "cifar100": _cifar("cifar100", 100, test=cat.CIFAR100_TEST, other=cat.CIFAR10_TEST),
    "imagenet": Benchmark(
        name="imagenet",
        num_classes=1000,
        size="imagenet",
        test=SetEntry(
            "imagenet",
            (
                Tfds("imagenet2012", "validation", fetch=False),
                Folder("imagenet/val", 1000),
                Folder("images_largescale/imagenet_1k/val", 1000),
                Folder("ILSVRC2012_img_val", 1000),
            ),
            stand_in="imagenet_sample",
            hint="sort the validation images into one folder a class",
        ),
        train=SetEntry(
            "imagenet_train",
            (
                Tfds("imagenet2012", "train", fetch=False),
                Folder("imagenet/train", 1000),
                Folder("images_largescale/imagenet_1k/train", 1000),
            ),
        ),
        ood={
            "published": _group("far", cat.INATURALIST, cat.SUN, cat.PLACES, cat.TEXTURES),
            "openood": _group("far", cat.INATURALIST, cat.TEXTURES, cat.OPENIMAGE_O)
            + _group("near", cat.SSB_HARD, cat.NINCO),
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class OodSet:
    """An out-of-distribution set that was found; `stand_in_for` names the absent set, or is ''."""

    name: str
    group: str
    images: ImageSet
    stand_in_for: str = ""


@dataclasses.dataclass(frozen=True)
class Absent:
    """A set that wasn't found, one sentence on what to do, and its stand-in's name or ''."""

    name: str
    what_to_do: str
    stand_in: str = ""


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A benchmark's sets as they were found.

    `train` is None where the training split is absent, and `train_absent` then says what to do.
    `absent` holds everything else that is missing: where it isn't empty, averages must not go by
    the benchmark's name.
    """

    benchmark: Benchmark
    protocol: str
    preprocessing: Preprocessing
    test: ImageSet
    train: ImageSet | None
    ood: tuple[OodSet, ...]
    absent: tuple[Absent, ...] = ()
    train_absent: str = ""
    test_stand_in_for: str = ""


def resolve(
    benchmark: str,
    protocol: str = "published",
    data_dir: str | os.PathLike | None = None,
    ood_root: str | os.PathLike | None = None,
    *,
    extra: Mapping[str, str | os.PathLike] | None = None,
    allow_missing: bool = False,
    fetch: bool = True,
) -> Resolved:
    """Find the sets of a benchmark.

    Args:
        benchmark: a key of `BENCHMARKS`.
        protocol: 'published' or 'openood'.
        data_dir: the folder of TFDS's sets (`sources.default_data_dir()` by default).
        ood_root: the folder that holds image folders.
        extra: paths of folders, `.npz` or `.mat` files by name; the name of one of the benchmark's
            own sets says where that set is, any other adds a set to the group 'extra'. None where
            the user has no way to give them, so that messages do not advise it.
        allow_missing: whether absent sets are left out (or represented by their stand-in, under its
            own name) rather than an error. The in-distribution set can't be left out.
        fetch: whether TFDS sets that aren't prepared may be downloaded.

    Returns:
        The sets found and the absent ones.

    Raises:
        ValueError: if `benchmark` or `protocol` is unknown, or a path of `extra` isn't a data set.
        MissingSet: if sets are absent and `allow_missing` doesn't cover it; names all of them.
    """
    table = _choose("benchmark", benchmark, BENCHMARKS)
    entries = _choose("protocol", protocol, table.ood)
    options = ("--ood-root",) if extra is None else ("--ood-root", "--ood")
    where = finding.Where(data_dir, ood_root, dict(extra or {}), fetch, options)
    absent: list[Absent] = []

    test, stand_in_for = _find_or_stand_in(table.test, where, absent)
    ood = []
    for entry in entries:
        images, replaced = _find_or_stand_in(entry, where, absent)
        if images is not None:
            ood.append(
                OodSet(entry.stand_in if replaced else entry.name, entry.group, images, replaced)
            )
    own = {table.test.name, table.train.name, *(entry.name for entry in entries)}
    added = {name: path for name, path in where.extra.items() if name not in own}
    ood = [found for found in ood if found.name not in added]
    ood += [OodSet(name, "extra", sources.from_path(p, name=name)) for name, p in added.items()]
    if absent and (test is None or not allow_missing):
        raise MissingSet(_report(table, protocol, absent, allow_missing))
    train, train_absent = None, ""
    try:
        train = finding.find(table.train, where)
    except MissingSet as error:
        if table.train.name in where.extra:
            raise
        train_absent = str(error)
    return Resolved(
        benchmark=table,
        protocol=protocol,
        preprocessing=PREPROCESSING[protocol, table.size],
        test=test,
        train=train,
        ood=tuple(ood),
        absent=tuple(absent),
        train_absent=train_absent,
        test_stand_in_for=stand_in_for,
    )


def _choose(argument: str, key: str, table: Mapping):
    if key not in table:
        raise ValueError(f"{argument} (={key!r}) must be one of {', '.join(table)}.")
    return table[key]


def _find_or_stand_in(
    entry: SetEntry, where: finding.Where, absent: list[Absent]
) -> tuple[ImageSet | None, str]:
    """Give the set and '', or its stand-in and the set's name; note the set if it's absent."""
    try:
        return finding.find(entry, where), ""
    except MissingSet as error:
        if entry.name in where.extra:
            raise  # the user said where it is, so that's where it must be
        if entry.group == "extra":
            return None, ""
        images = finding.find_stand_in(entry, where)
        stand_in = "" if images is None else entry.stand_in
        absent.append(Absent(entry.name, str(error), stand_in))
        return images, entry.name if stand_in else ""


def _report(table: Benchmark, protocol: str, absent: list[Absent], allow_missing: bool) -> str:
    lines = "\n".join(
        f"  {item.name}: {item.what_to_do}"
        + (f" Its stand-in {item.stand_in} is there." if item.stand_in else "")
        for item in absent
    )
    advice = (
        f"{table.test.name} can't be left out, being in-distribution."
        if allow_missing
        else "Or pass --allow-missing to leave them out, or to use their stand-ins."
    )
    return f"{table.name} ({protocol}) lacks {len(absent)} of its sets.\n{lines}\n{advice}"
