"""`find`, which opens a data set where it lies, and `resolve`, which finds those of a benchmark."""

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from si_jax.checks import check_choice
from si_jax.data import sources
from si_jax.data.datasets import BENCHMARKS, Benchmark, DatasetSpec, Tfds
from si_jax.data.files import default_data_dir
from si_jax.data.image_set import ImageSet, MissingSet, unlabelled
from si_jax.data.opening import as_image_set
from si_jax.data.preprocessing import PREPROCESSING, Preprocessing
from si_jax.data.tfds_sets import find_prepared, from_tfds

__all__ = ["BENCHMARKS", "Benchmark", "MissingDataset", "OodSet", "Resolved", "find", "resolve"]


@dataclasses.dataclass(frozen=True)
class SearchPaths:
    """Where to look for data sets: below the folders, or where the user says by a set's name."""

    data_dir: str | os.PathLike | None = None  # None for the default folder and TFDS's own
    ood_root: str | os.PathLike | None = None  # else `data_dir`
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fetch: bool = False  # whether a TFDS set that is not prepared may be downloaded

    @property
    def root(self) -> Path:
        """The folder that holds folders of images."""
        chosen = self.data_dir if self.ood_root is None else self.ood_root
        return default_data_dir() if chosen is None else Path(chosen).expanduser()


class Found(NamedTuple):
    """A data set that was found, where, and whether it is the images that OpenOOD lists."""

    images: ImageSet
    where: str
    is_listed: bool = False


class OodSet(NamedTuple):
    """An out-of-distribution set that was found, under its name in reports."""

    name: str
    group: str
    images: ImageSet


class MissingDataset(NamedTuple):
    """A set that was not found, and one sentence on what to do."""

    name: str
    what_to_do: str


@dataclasses.dataclass(frozen=True)
class Resolved:
    """The sets of an evaluation as they were found; `print` shows them."""

    benchmark: str  # or the name of custom data
    num_classes: int
    protocol: str  # "published", "openood" or "own"
    preprocessing: Preprocessing
    test: ImageSet  # in-distribution images
    train: ImageSet | None  # images that detectors are fitted on
    ood: tuple[OodSet, ...]
    absent: tuple[MissingDataset, ...] = ()  # sets of the benchmark that are missing
    train_absent: str = ""  # what to do about training images where `train` is None
    unlisted: tuple[str, ...] = ()  # sets that were taken whole where OpenOOD lists a part of them
    incomplete: tuple[str, ...] = ()  # groups whose averages are not the benchmark's, sorted
    shifted: tuple[ImageSet, ...] = ()  # covariate-shifted images of the same classes

    def __str__(self) -> str:
        rows = [("in-distribution", self.test), *((o.group, o.images) for o in self.ood)]
        rows += [("covariate-shifted", images) for images in self.shifted]
        lines = [f"{self.benchmark}, {self.protocol}: {self.preprocessing}"]
        lines += [f"{len(images):>7,} {images.name} ({kind})" for kind, images in rows]
        if self.train is None:
            lines.append(f"no training images: {self.train_absent}")
        else:
            lines.append(f"{len(self.train):>7,} {self.train.name} (training)")
        lines += [f"absent: {name}; {what}" for name, what in self.absent]
        return "\n".join([*lines, *self.notes])

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences to report beside the results."""
        sets = [self.test, *(item.images for item in self.ood), *self.shifted]
        notes = [f"{images.name}: {note}" for images in sets for note in images.notes]
        if self.unlisted:
            notes.append(
                f"OpenOOD's lists are not used for {', '.join(self.unlisted)}, taken whole here:"
                " averages are not the benchmark's. The lists lie in benchmark_imglist/ and the"
                " images they name in images_classic/ and images_largescale/ below the data root"
            )
        return tuple(notes)


def find(spec: DatasetSpec, paths: SearchPaths, num_classes: int | None = None) -> Found:
    """Open a set where it lies; `num_classes` is the classifier's whose classes its labels are."""
    if spec.name in paths.given:
        data, folders = paths.given[spec.name], num_classes if spec.class_folders else None
        images = as_image_set(data, spec.name, num_classes=folders)
        is_path = isinstance(data, str | os.PathLike)
        if num_classes and not folders and is_path and sources.kind_of(data) == "folder":
            images = unlabelled(images)
        return Found(images, "given by the user")
    if spec.make:
        return Found(as_image_set(spec.make(), spec.name), "made on the spot")
    reasons = []
    for where, is_listed, opened in _places(spec, paths, num_classes):
        try:
            images = opened()
        except MissingSet as error:
            reasons.append(str(error))
            continue
        if num_classes and not (spec.class_folders or is_listed):
            images = unlabelled(images)
        return Found(images, where, is_listed)
    if advice := spec.manually or "run si-jax prepare-data" * bool(spec.download or spec.openood):
        reasons.append(advice)
    if below := [source for source in spec.sources if isinstance(source, str)]:
        others = f" (or {', '.join(below[1:])})" if below[1:] else ""
        reasons.append(f"save it below {paths.root} as {below[0]}{others}")
    raise MissingSet("; or ".join(dict.fromkeys(reasons)) or f"it is not in {paths.root}")


def _places(spec: DatasetSpec, paths: SearchPaths, num_classes: int | None) -> Iterator[tuple]:
    """Where a set lies, the preferred place first, whether as OpenOOD lists it; what opens it."""
    root, name, folders = paths.root, spec.name, num_classes if spec.class_folders else None
    if listing := next((root / p for p in spec.list_files if (root / p).exists()), None):
        roots = [root / folder for folder in ("images_classic", "images_largescale", ".")]
        read = partial(sources.from_list, listing, roots=roots, num_classes=num_classes, name=name)
        yield str(listing), True, read
    for source in spec.sources:
        if isinstance(source, Tfds):
            if prepared := find_prepared(source.name, paths.data_dir):
                yield str(prepared), False, partial(from_tfds, *source, paths.data_dir, called=name)
        elif isinstance(source, str):
            if (path := root / source).exists():
                read = partial(sources.from_path, path, name=name, num_classes=folders)
                yield str(path), False, read
        elif (root / source[0]).exists():
            files = [root / file for file in source]
            yield str(files[0]), False, partial(sources.from_cifar_binary, files, name=name)
    for source in spec.sources if paths.fetch and not spec.manually else ():
        if isinstance(source, Tfds):
            read = partial(from_tfds, *source, paths.data_dir, fetch=True, called=name)
            yield "prepared by TFDS", False, read


def resolve(
    benchmark: str,
    protocol: str = "published",
    data_dir: str | os.PathLike | None = None,
    ood_root: str | os.PathLike | None = None,
    *,
    extra: Mapping[str, Any] | None = None,
    allow_missing: bool = False,
    fetch: bool = False,
    shifted: Mapping[str, Any] | bool | None = None,
) -> Resolved:
    """Find the sets of a benchmark, of which `si_jax.find_sets` says more."""
    check_choice(BENCHMARKS, benchmark=benchmark)
    table = BENCHMARKS[benchmark]
    check_choice(table.ood, protocol=protocol)
    own = {spec.name: spec for spec in table.shifted}
    if shifted is True:
        if not own:
            having = ", ".join(name for name, other in BENCHMARKS.items() if other.shifted)
            raise ValueError(f"{benchmark} has no shifted sets of its own; these have: {having}")
        shifted = dict.fromkeys(own)
    given = {name: data for name, data in (shifted or {}).items() if data is not None}
    paths = SearchPaths(data_dir, ood_root, {**(extra or {}), **given}, fetch)
    specs, groups = table.specs(protocol), table.ood[protocol]
    specs += [("shifted", own.get(n, DatasetSpec(n, class_folders=False))) for n in shifted or ()]
    known = {spec.name for _, spec in specs}
    specs += [("extra", DatasetSpec(name)) for name in paths.given if name not in known]
    sets = collections.defaultdict[str, list[OodSet]](list)
    absent: list[MissingDataset] = []
    unlisted: list[str] = []
    train_absent = ""
    for group, spec in specs:
        try:
            is_known = group in ("test", "train", "shifted")
            found = find(spec, paths, table.num_classes if is_known else None)
        except MissingSet as error:
            if spec.name in paths.given:
                raise  # the user said where it is, so that is where it must be
            if group == "train":
                train_absent = str(error)
            elif group != "extra":
                absent.append(MissingDataset(spec.name, str(error)))
            continue
        sets[group].append(OodSet(spec.name, group, found.images))
        if spec.list_files and not found.is_listed and group != "train":
            unlisted.append(spec.name)
    if not sets["test"] or (absent and not allow_missing):
        lines = "".join(f"  {name}: {what_to_do}\n" for name, what_to_do in absent)
        advice = "Or pass allow_missing=True to leave them out"
        if allow_missing:
            advice = f"{table.test.name} cannot be left out, being in-distribution"
        command = f"si-jax prepare-data --dataset {table.name} --protocol {protocol}"
        where = "ood={NAME: PATH}, --ood NAME=PATH, --id PATH"
        raise MissingSet(
            f"{table.name} ({protocol}) lacks {len(absent)} of its sets\n{lines}Download what is"
            f" public: {command}\nOr say where a set is: {where}\n{advice}"
        )
    lacking = {item.name for item in absent} | set(unlisted)
    incomplete = {g for g, spec in specs if g in groups and lacking & {spec.name, table.test.name}}
    return Resolved(
        benchmark=benchmark,
        num_classes=table.num_classes,
        protocol=protocol,
        preprocessing=PREPROCESSING[protocol, table.size],
        test=sets["test"][0].images,
        train=sets["train"][0].images if sets["train"] else None,
        ood=tuple(item for group in {**groups, "extra": ()} for item in sets[group]),
        absent=tuple(absent),
        train_absent=train_absent,
        unlisted=tuple(unlisted),
        incomplete=tuple(sorted(incomplete)),
        shifted=tuple(item.images for item in sets["shifted"]),
    )
