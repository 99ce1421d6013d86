"""`resolve`, which finds the sets of a benchmark."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from si_jax.checks import check_choice
from si_jax.data import finding
from si_jax.data.catalogue import Listing, SetEntry
from si_jax.data.image_set import ImageSet, MissingSet
from si_jax.data.preprocessing import PREPROCESSING, Preprocessing
from si_jax.data.sequences import as_image_set
from si_jax.data.tables import BENCHMARKS, Benchmark

__all__ = ["BENCHMARKS", "Absent", "Benchmark", "OodSet", "Resolved", "resolve"]


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
    `absent` holds everything else that is missing, `unlisted` the sets that were taken otherwise
    than OpenOOD lists them, and `incomplete` the groups whose averages must not go by the
    benchmark's name for either reason. `notes` are sentences to tell beside the results. `shifted`
    are in-distribution images that look otherwise, for the full spectrum.
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
    unlisted: tuple[str, ...] = ()
    shifted: tuple[ImageSet, ...] = ()

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Groups, sorted, whose averages aren't the benchmark's."""
        entries = self.benchmark.ood[self.protocol]
        lacking = {item.name for item in self.absent} | set(self.unlisted)
        whole_test = self.benchmark.test.name not in lacking
        return tuple(
            sorted({entry.group for entry in entries if entry.name in lacking or not whole_test})
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences to tell beside the results."""
        sets = [self.test, *(item.images for item in self.ood), *self.shifted]
        notes = [f"{images.name}: {note}" for images in sets for note in images.notes]
        if self.unlisted:
            notes.append(
                f"OpenOOD's lists aren't used for {', '.join(self.unlisted)}, taken whole here:"
                " averages are not the benchmark's. The lists lie in benchmark_imglist/ and the"
                " images they name in images_classic/ and images_largescale/ below the data root."
            )
        return tuple(notes)


def resolve(
    benchmark: str,
    protocol: str = "published",
    data_dir: str | os.PathLike | None = None,
    ood_root: str | os.PathLike | None = None,
    *,
    extra: Mapping[str, Any] | None = None,
    allow_missing: bool = False,
    fetch: bool = False,
    full_spectrum: bool = False,
) -> Resolved:
    """Find the sets of a benchmark.

    Args:
        benchmark: a key of `BENCHMARKS`.
        protocol: 'published' or 'openood'.
        data_dir: the folder of all data; `sources.default_data_dir()` by default, where TFDS's sets
            are also looked for in TFDS's own folder.
        ood_root: the folder that holds image folders; `data_dir` by default.
        extra: paths, or whatever else `as_image_set` takes, by name; the name of one of the
            benchmark's own sets says where that set is, any other adds a set to the group 'extra'.
            None where the user has no way to give them, so that messages do not advise it.
        allow_missing: whether absent sets are left out (or represented by their stand-in, under its
            own name) rather than an error. The in-distribution set can't be left out.
        fetch: whether TFDS sets that aren't prepared may be downloaded.
        full_spectrum: whether the benchmark's covariate-shifted sets are looked for too.

    Returns:
        The sets found and the absent ones.

    Raises:
        ValueError: if `benchmark` or `protocol` is unknown, or a path of `extra` isn't a data set.
        MissingSet: if sets are absent and `allow_missing` doesn't cover it; names all of them.
    """
    check_choice(BENCHMARKS, benchmark=benchmark)
    table = BENCHMARKS[benchmark]
    check_choice(table.ood, protocol=protocol)
    entries = table.ood[protocol]
    if full_spectrum and not table.shifted:
        having = ", ".join(name for name, entry in BENCHMARKS.items() if entry.shifted)
        raise ValueError(f"full_spectrum: {benchmark} has no shifted sets; these have: {having}.")
    options = ("ood_root",) if extra is None else ("ood_root", "ood")
    where = finding.Where(data_dir, ood_root, dict(extra or {}), fetch, options)
    absent: list[Absent] = []
    unlisted: list[str] = []

    test, stand_in_for = _find_or_stand_in(
        table.id_entry("test", protocol), where, absent, unlisted
    )
    ood = []
    for entry in entries:
        images, replaced = _find_or_stand_in(entry, where, absent, unlisted)
        if images is not None:
            name = (entry.stand_in if replaced else None) or entry.name
            ood.append(OodSet(name, entry.group, images, replaced))
    shifted = []
    for entry in table.shifted if full_spectrum else ():
        images, _ = _find_or_stand_in(entry, where, absent, unlisted)
        if images is not None:
            shifted.append(images)
    own = {table.test.name, table.train.name, *(e.name for e in (*entries, *table.shifted))}
    added = {name: path for name, path in where.extra.items() if name not in own}
    ood = [item for item in ood if item.name not in added]
    ood += [OodSet(name, "extra", as_image_set(data, name)) for name, data in added.items()]
    if test is None or (absent and not allow_missing):
        raise MissingSet(_report(table, protocol, absent, allow_missing))
    train, train_absent = None, ""
    try:
        train = finding.find(table.id_entry("train", protocol), where)
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
        unlisted=tuple(unlisted),
        shifted=tuple(shifted),
    )


def _find_or_stand_in(
    entry: SetEntry, where: finding.Where, absent: list[Absent], unlisted: list[str]
) -> tuple[ImageSet | None, str]:
    """Give the set and '', or its stand-in and the set's name; note what is absent or unlisted."""
    try:
        images, place = finding.locate(entry, where)
        if entry.has_list and not isinstance(place, Listing):
            unlisted.append(entry.name)
        return images, ""
    except MissingSet as error:
        if entry.name in where.extra:
            raise  # the user said where it is, so that's where it must be
        if entry.group == "extra":
            return None, ""
        instead = finding.find_stand_in(entry, where)
        stand_in = "" if instead is None else entry.stand_in or ""
        absent.append(Absent(entry.name, str(error), stand_in))
        return instead, entry.name if stand_in else ""


def _report(table: Benchmark, protocol: str, absent: list[Absent], allow_missing: bool) -> str:
    lines = "\n".join(
        f"  {item.name}: {item.what_to_do}"
        + (f" Its stand-in {item.stand_in} is there." if item.stand_in else "")
        for item in absent
    )
    advice = (
        f"{table.test.name} can't be left out, being in-distribution."
        if allow_missing
        else "Or pass allow_missing=True to leave them out, or to use their stand-ins."
    )
    brings = f"si-jax prepare-data --dataset {table.name} --protocol {protocol}"
    return (
        f"{table.name} ({protocol}) lacks {len(absent)} of its sets.\n{lines}\nDownload what is"
        f" public: {brings}\n{advice}"
    )
