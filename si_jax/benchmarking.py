"""Evaluate detectors in two steps: find the sets of images, then score and measure.

Scores, tables and a report are written where a directory is given for them.
"""

import contextlib
import dataclasses
import inspect
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from si_jax import cli
from si_jax.data import benchmarks, downloads
from si_jax.data.benchmarks import Resolved
from si_jax.data.opening import IMAGE_KEYS
from si_jax.data.own import resolve_own
from si_jax.data.preprocessing import preprocessing_for
from si_jax.evaluation import results as record
from si_jax.evaluation.job import Detectors, benchmark_model, benchmark_table, labelled, make_job
from si_jax.evaluation.results import Results
from si_jax.evaluation.scoring import fit_job, score_job
from si_jax.evaluation.store import PREDICTION, check_names
from si_jax.model import Model
from si_jax.reporting import runs
from si_jax.reporting.runs import RESULTS, Run

IDENTITY = ("benchmark", "protocol", "limit", "seed", "checkpoint", "settings", "groups")
"""In what two runs differ that must not replace each other in silence."""


def find_sets(
    benchmark: str | os.PathLike | None = "digits",
    *,
    protocol: str = "published",
    data_dir: str | os.PathLike | None = None,
    ood_root: str | os.PathLike | None = None,
    id_set: Any = None,
    train_set: Any = None,
    ood: Mapping[str, Any] | None = None,
    shifted: Mapping[str, Any] | bool | None = None,
    download: bool = False,
    allow_missing: bool = False,
    seed: int = 0,
    model: Model | None = None,
) -> Resolved:
    """Find a benchmark's sets, or those of custom data; the first of two steps.

    Images are in any form that `si_jax.data.opening.as_images` takes; what a loader or a generator
    gives is held in memory.

    Args:
        benchmark: a key of `si_jax.data.benchmarks.BENCHMARKS`; or a folder of custom data with
            `val`, `train` if detectors are to be fitted (in both a folder a class) and `ood/NAME`.
            Images are then brought to the network's own size; class folders are matched by name
            where the checkpoint's card names its classes; and without `ood`, sets are synthetic.
            None for custom data without such a folder, which `id_set` and the others hold.
        protocol: `"published"` or `"openood"`.
        data_dir: folder of all data; None for `$SI_JAX_DATA` or `~/.cache/si_jax/data`, where
            TFDS's own folder is looked into as well.
        ood_root: folder that holds folders of images; None for `data_dir`.
        id_set: in-distribution images in place of the benchmark's or the folder's; of custom data
            also name -> images.
        train_set: likewise the images that detectors are fitted on.
        ood: name -> further images; the name of one of the benchmark's sets says where that set is.
        shifted: name -> covariate-shifted in-distribution images; of a benchmark's own sets also
            name -> None, and True for all of them. With some, all is measured a second time with
            them counted as in-distribution: the full spectrum.
        download: whether a benchmark's public sets that are absent are downloaded.
        allow_missing: whether absent sets are left out.
        seed: of synthetic sets.
        model: the network; custom data is brought to its size, a benchmark needs none.

    Returns:
        The sets; `print` shows them.

    Raises:
        ValueError: if an argument makes no sense, or a set is absent (`MissingSet`).
    """
    check_names([*(ood or {}), *(shifted if isinstance(shifted, Mapping) else ())])
    table = benchmark_table(benchmark)
    if table is None:
        if model is None:
            raise ValueError("custom data is brought to a network's size: give the model")
        if shifted is True:
            raise ValueError("shifted=True is for benchmarks: give custom sets by name")
        name = ""
        if isinstance(id_set, Mapping) and len(id_set) == 1 and not {*IMAGE_KEYS} & id_set.keys():
            ((name, id_set),) = id_set.items()  # else columns
        return resolve_own(
            benchmark,
            num_classes=model.num_classes,
            preprocessing=preprocessing_for(model.input_size, model.card),
            classes=tuple(model.card.get("classes", ())),
            test=id_set,
            train=train_set,
            ood=ood,
            shifted=shifted or None,
            name=name,
            seed=seed,
        )
    where = table.name, protocol, data_dir, ood_root
    if download:
        own = shifted is True or bool(shifted and None in shifted.values())
        for outcome in downloads.prepare(*where, full_spectrum=own):
            print(f"{outcome.name}: {outcome.state}; {outcome.detail}", file=sys.stderr)
    given = {table.test.name: id_set, table.train.name: train_set}
    extra = {**(ood or {}), **{k: data for k, data in given.items() if data is not None}}
    return benchmarks.resolve(
        *where, extra=extra, allow_missing=allow_missing, fetch=download, shifted=shifted
    )


def evaluate(
    model: Model,
    sets: Resolved,
    *,
    detectors: Detectors | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    limit: int | None = None,
    fit_limit: int | None = 10_000,
    seed: int = 0,
    batch_size: int | None = None,
    skip_unreadable: bool = False,
    scale: str | None = None,
    out: str | os.PathLike | None = None,
    label: str | None = None,
    command: str = "",
) -> Run:
    """Score sets with detectors, measure, and write scores, tables and a report.

    Progress is shown on stderr. Everything is written before the call returns; a call that was
    interrupted goes on where it was if it is made again with the same `out`. What
    `si_jax.evaluation.sharing` scored there is not computed again.

    Args:
        model: the network.
        sets: what `find_sets` found.
        detectors: keys of `si_jax.DETECTORS`; None for `si_jax.evaluation.job.DEFAULT`, without
            those that must be fitted where there are no training images. A dictionary evaluates one
            detector several times, under labels that results, tables and files use:
            `{"lts-85": ("lts", {"percentile": 85}), "lts": "lts"}`.
        options: detector, or its label -> its options, such as `{"knn": {"k": 10}}`; `"*"` ->
            options for all detectors that take them, such as `{"*": {"steps": 3}}`.
        limit: random subset of this many images of each set; None for all.
        fit_limit: training images to fit on at most; None for all.
        seed: of the subsets.
        batch_size: images per batch; None for each detector's own. No score depends on it.
        skip_unreadable: whether images that cannot be read are left out; otherwise an error.
        scale: what the numbers in arrays of images that are not uint8 mean, see `Model`; None for
            the model's own.
        out: directory for the results; None keeps nothing.
        label: what reports call the network's weights; None for the network's name.
        command: the command line, for reports.

    Returns:
        The run: `run.results`, `print(run)`, `run.to_pandas()`.

    Raises:
        ValueError: if an argument makes no sense, the network does not fit the sets, an image
            cannot be read, or a score is not finite.
        OSError: if a file cannot be written.
    """
    began = time.monotonic()
    directory = None if out is None else checked_directory(out)
    drawn: dict[str, Any] = {"limit": limit, "seed": seed}
    given: dict[str, Any] = {"fit_limit": fit_limit, "batch_size": batch_size, "scale": scale}
    given["skip_unreadable"] = skip_unreadable
    job = make_job(model, sets, detectors, options, **drawn, **given)
    about = {**drawn, "checkpoint": label or f"{model.name}, given as a model", **job.facts}
    about |= {"groups": job.groups, "settings": job.settings}
    with contextlib.ExitStack() as stack:
        where = directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        where.mkdir(parents=True, exist_ok=True)
        if directory:
            _report_other_run(where, about)
        fit, notes = fit_job(job, where / "fits")
        scored = score_job(job, where / "scores")
        arrays = {name: one.arrays for name, one in scored.items()}
        known = arrays[sets.test.name][PREDICTION]
        seconds = {name: one.seconds for name, one in scored.items()}
        results = Results(
            **record.measure(job, arrays),
            **record.intervals(job, arrays),
            **about,
            counts={name: len(one[PREDICTION]["score"]) for name, one in arrays.items()},
            model={
                "name": model.name,
                "classes": model.num_classes,
                "parameters": model.num_parameters,
                **{k: job.score_facts[k] for k in ("input_size", "mean", "std", "precision")},
                "weights_sha256": job.score_facts["weights"],
            },
            in_distribution=sets.test.name,
            fit=fit,
            absent=[missing.name for missing in sets.absent],
            incomplete=list(sets.incomplete),
            unreadable={name: list(s.unreadable) for name, s in scored.items() if s.unreadable},
            notes=[*sets.notes, *notes, *record.order_note(sets.test, known)],
            warning=record.chance_warning(known, model.num_classes),
            device=f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
            computed={name: one.computed for name, one in scored.items()},
            seconds={**seconds, "total": time.monotonic() - began},
            versions=cli.versions(),
            command=command,
        )
        shown = job.sets[: 1 + len(job.groups)]  # not the shifted ones
        runs.save_thumbnails(where, arrays, shown, job.found.preprocessing)
        run = Run(where.resolve().name, results, arrays, runs.load_thumbnails(where))
        if not directory:  # the files are about to go
            whole = {k: {d: dict(x) for d, x in found.items()} for k, found in arrays.items()}
            return dataclasses.replace(run, name=sets.benchmark, arrays=whole)
        from si_jax.reporting import html  # here, as matplotlib takes a while to import

        saved = [*runs.write(results, directory), html.write(run, directory)]
        return dataclasses.replace(run, saved=tuple(saved))


def evaluate_benchmark(
    benchmark: str | os.PathLike | None = "digits",
    model: Model | str | os.PathLike | None = None,
    **options: Any,
) -> Run:
    """Both steps in one call.

    Args:
        benchmark: as for `find_sets`.
        model: the network, or the name or directory of its checkpoint; None for the one that comes
            with the package.
        **options: those of `find_sets` and of `evaluate`.

    Raises:
        ValueError: as `find_sets` and `evaluate`; or if there is no such checkpoint.
        OSError: as `evaluate`.
    """
    names = inspect.signature(find_sets).parameters
    search = {k: v for k, v in options.items() if k in names}
    rest = {k: v for k, v in options.items() if k not in names or k == "seed"}
    labelled(rest.get("detectors") or ())  # refuses before anything is looked for
    if isinstance(model, Model):
        return evaluate(model, find_sets(benchmark, model=model, **search), **rest)
    sets, model, label = find_and_load(benchmark, search, benchmark_model(benchmark, model))
    return evaluate(model, sets, **{"label": label, **rest})


def find_and_load(
    benchmark: str | os.PathLike | None,
    search: Mapping[str, Any],
    load: Callable[[], tuple[Model, str]],
) -> tuple[Resolved, Model, str]:
    """The sets, the network and what reports call it; of a benchmark, weights are loaded last.

    `search` are options of `find_sets`; `load` comes from `si_jax.evaluation.job.benchmark_model`.
    """
    if benchmark_table(benchmark) is not None:
        return (find_sets(benchmark, **search), *load())
    model, label = load()
    return find_sets(benchmark, model=model, **search), model, label


def checked_directory(out: str | os.PathLike) -> Path:
    """A directory to write to, which need not exist."""
    path = Path(out)
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to {path.readlink()}, which is not there: give another")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: give a directory")
    return path


def _report_other_run(directory: Path, about: Mapping[str, Any]) -> None:
    """Say on stderr that another run's results will be replaced, and in what it differs."""
    if not (directory / RESULTS).is_file():
        return
    try:
        old = runs.load(directory, scores=False).results
    except ValueError:
        print(f"{directory / RESULTS} cannot be read and will be replaced", file=sys.stderr)
        return
    new = json.loads(json.dumps(about))  # as the file has it
    if different := [key for key in IDENTITY if getattr(old, key) != new[key]]:
        print(
            f"{directory} holds the results of a run that differs in {', '.join(different)}; they"
            " will be replaced by this run's: give another directory to keep both",
            file=sys.stderr,
        )
