"""One call that evaluates detectors on a benchmark and writes what is to be kept."""

import contextlib
import dataclasses
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from si_jax.checks import check_least
from si_jax.data import benchmarks, sources
from si_jax.evaluation import defaults, fitting, measuring
from si_jax.evaluation.benchmark import chance_warning, evaluate
from si_jax.evaluation.job import Detectors, Job, check_job, labelled, make_detectors
from si_jax.evaluation.scoring import PREDICTION
from si_jax.evaluation.sets import find_sets, order_note, overlap_notes
from si_jax.evaluation.store import check_names
from si_jax.model import Model
from si_jax.reporting import html, runs
from si_jax.reporting.runs import RESULTS, Run

IDENTITY = ("benchmark", "protocol", "limit", "seed", "checkpoint", "settings", "groups")
"""In what two runs differ that must not replace each other in silence."""


def evaluate_benchmark(
    benchmark: str | os.PathLike | None = "digits",
    model: Model | str | os.PathLike | Callable[[], tuple[Model, str]] | None = None,
    *,
    detectors: Detectors | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    common: Mapping[str, Any] | None = None,
    protocol: str = "published",
    data_dir: str | os.PathLike | None = None,
    ood_root: str | os.PathLike | None = None,
    id_set: Any = None,
    id_name: str = "",
    train_set: Any = None,
    ood: Mapping[str, Any] | None = None,
    shifted: Mapping[str, Any] | None = None,
    full_spectrum: bool = False,
    download: bool = False,
    limit: int | None = None,
    fit_limit: int | None = 10_000,
    seed: int = 0,
    batch_size: int | None = None,
    allow_missing: bool = False,
    skip_unreadable: bool = False,
    out: str | os.PathLike | None = None,
    checkpoint: str | None = None,
    command: str = "",
) -> Run:
    """Score a benchmark's sets with detectors, measure, and write scores, tables and a report.

    Progress is shown on stderr. Everything is written before the call returns; a call that was
    interrupted goes on where it was if it is made again with the same `out`.

    Args:
        benchmark: a key of `si_jax.data.benchmarks.BENCHMARKS`; or a folder of one's own data with
            `val`, `train` if detectors are to be fitted (in both a folder a class) and `ood/NAME`.
            Images are then brought to the network's own size; class folders are matched by name
            where the checkpoint's card names its classes; and without `ood`, sets are made up.
            None for one's own data without such a folder, which `id_set` and the others hold.
        model: the network; or the name or directory of its checkpoint; or a function that gives
            it and its checkpoint's name, called once a benchmark's sets were found; None for the
            one that comes with the package.
        detectors: keys of `si_jax.DETECTORS`; None for `si_jax.evaluation.defaults.DETECTORS`,
            without those that must be fitted where there are no training images. A dictionary
            evaluates one detector several times, under labels that results, tables and files
            use: `{"lts-85": ("lts", {"percentile": 85}), "lts": "lts"}`.
        options: detector, or its label -> its options, such as `{"knn": {"k": 10}}`.
        common: options for all detectors that take them, such as `{"steps": 3}`.
        protocol: `"published"` or `"openood"`.
        data_dir: folder of all data; None for `$SI_JAX_DATA` or `~/.cache/si_jax/data`, where
            TFDS's own folder is looked into as well.
        ood_root: folder that holds folders of images; None for `data_dir`.
        id_set: in-distribution images in place of the benchmark's or the folder's: a path, arrays,
            a sequence or a loader, as `si_jax.data.opening.as_image_set` takes.
        id_name: what to call them, where they are one's own.
        train_set: likewise the images that detectors are fitted on.
        ood: name -> further images, likewise; the name of one of the benchmark's sets says where
            that set is.
        shifted: name -> in-distribution images that look otherwise, likewise. With some, all is
            measured a second time with them counted as in-distribution: the full spectrum.
        full_spectrum: whether the benchmark's own sets of such images are taken.
        download: whether a benchmark's public sets that are absent are downloaded.
        limit: random subset of this many images of each set; None for all.
        fit_limit: training images to fit on at most; None for all.
        seed: seed of the subsets.
        batch_size: images per batch; None for each detector's own. No score depends on it.
        allow_missing: whether absent sets are left out.
        skip_unreadable: whether images that cannot be read are left out; otherwise an error.
        out: directory for the results; None keeps nothing.
        checkpoint: what reports call the network's weights; None for `model` if that names them.
        command: the command line, for reports.

    Returns:
        The run: `run.results`, `print(run)`, `run.to_pandas()`.

    Raises:
        ValueError: if an argument makes no sense, a set is absent (`MissingSet`), the network does
            not fit the benchmark, an image cannot be read, or a score is not finite.
        OSError: if a file cannot be written.
    """
    table = defaults.own_or_table(benchmark)
    check_least(1, limit=limit, fit_limit=fit_limit)
    ood, options = dict(ood or {}), dict(options or {})
    check_names([*ood, *(shifted or {})])
    directory = None if out is None else checked_directory(out)
    if model is None or isinstance(model, (str, os.PathLike)):
        defaults.which_checkpoint(benchmark, model)
    elif table is not None and isinstance(model, Model):
        defaults.check_classes(model, table, checkpoint or model.name)
    labelled(defaults.DETECTORS if detectors is None else detectors)

    find = functools.partial(
        find_sets,
        benchmark,
        protocol=protocol,
        data_dir=data_dir,
        ood_root=ood_root,
        id_set=id_set,
        id_name=id_name,
        train_set=train_set,
        ood=ood,
        shifted=shifted,
        full_spectrum=full_spectrum,
        allow_missing=allow_missing,
        download=download,
        seed=seed,
    )

    def make(network: Model) -> dict:
        return make_detectors(names, network, common=common, options=options, batch_size=batch_size)

    # a benchmark's sets are looked for before any weights are loaded
    sets = None if table is None else find(None)
    if callable(model) and not isinstance(model, Model):
        model, checkpoint = model()
    elif not isinstance(model, Model):
        model, checkpoint = defaults.benchmark_model(benchmark, model)
    checkpoint = checkpoint or f"{model.name}, given as a model"
    if table is not None:
        defaults.check_classes(model, table, checkpoint)
    names = defaults.serving(model, options) if detectors is None else detectors
    if detectors is None:
        for name in (n for n in defaults.DETECTORS if n not in names):
            print(f"{name} is left out: no ReLU lies behind its taps", file=sys.stderr)
    make(model)  # refuses what it must before any image is read
    sets = find(model) if sets is None else sets
    # the protocol decides the size; every architecture here pools globally and takes any
    model = dataclasses.replace(model, input_size=sets.preprocessing.crop)
    made = make(model)
    if detectors is None and sets.train is None:
        made, left_out = defaults.without_fits(made, options)
        for name in left_out:
            why = f"it must be fitted on training images, which are absent: {sets.train_absent}"
            print(f"{name} is left out: {why}", file=sys.stderr)
    job = Job(
        model=model,
        detectors=made,
        id_set=sources.subset(sets.test, limit, seed),
        ood_sets={o.name: sources.subset(o.images, limit, seed) for o in sets.ood},
        groups={o.name: o.group for o in sets.ood},
        transform=sets.preprocessing,
        facts={
            "benchmark": sets.benchmark,
            "protocol": sets.protocol,
            "preprocessing": str(sets.preprocessing),
        },
        shifted_sets={s.name: sources.subset(s, limit, seed) for s in sets.shifted},
    )
    check_job(job)
    with contextlib.ExitStack() as stack:
        where = directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        where.mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {"limit": limit, "seed": seed, "checkpoint": checkpoint}
        if directory:
            _tell_of_other_run(where, job, about)
        fit, notes = _fit(job, sets, where, fit_limit, seed, skip_unreadable)
        results, arrays = evaluate(job, where / "scores", skip_unreadable=skip_unreadable)
        absent = [missing.name for missing in sets.absent]
        results = dataclasses.replace(
            results,
            **about,
            fit=fit,
            absent=absent,
            incomplete=list(sets.incomplete),
            notes=[
                *sets.notes,
                *notes,
                *order_note(job.id_set, arrays[job.id_set.name][PREDICTION]),
            ],
            warning=chance_warning(results.accuracy, model.num_classes),
            command=command,
            **measuring.intervals(job, arrays),
        )
        image_sets = (job.id_set, *job.ood_sets.values())
        runs.save_thumbnails(where, arrays, image_sets, job.transform, list(made))
        run = Run(where.resolve().name, results, arrays, runs.load_thumbnails(where))
        if not directory:  # the files are about to go
            whole = {
                name: {detector: dict(one) for detector, one in files.items()}
                for name, files in arrays.items()
            }
            return dataclasses.replace(run, name=sets.benchmark, arrays=whole)
        saved = [*runs.write(results, directory), html.write(run, directory)]
        return dataclasses.replace(run, saved=tuple(saved))


def checked_directory(out: str | os.PathLike) -> Path:
    """A directory to write to, which need not exist.

    Raises:
        ValueError: if there is a file of that name, or a link that leads nowhere.
    """
    path = Path(out)
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to {path.readlink()}, which is not there: give another")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: give a directory")
    return path


def _tell_of_other_run(directory: Path, job: Job, about: Mapping[str, Any]) -> None:
    """Say on stderr that another run's results will be replaced, and in what it differs."""
    if not (directory / RESULTS).is_file():
        return
    try:
        old = runs.load(directory, scores=False).results
    except ValueError:
        print(f"{directory / RESULTS} cannot be read and will be replaced", file=sys.stderr)
        return
    new = {
        **job.facts,
        **about,
        "groups": dict(job.groups),
        "settings": job.settings,
    }
    new = json.loads(json.dumps(new))  # as the file has it
    if different := [key for key in IDENTITY if getattr(old, key) != new[key]]:
        print(
            f"{directory} holds the results of a run that differs in {', '.join(different)}; they"
            " will be replaced by this run's: give another directory to keep both",
            file=sys.stderr,
        )


def _fit(job, sets: benchmarks.Resolved, out: Path, limit, seed: int, skip_unreadable: bool):
    """Fit the detectors that need it on the training split; returns what to report, and notes."""
    needy = [name for name, d in job.detectors.items() if d.needs_fit]
    if not needy:
        return {}, []
    if sets.train is None:
        raise ValueError(
            f"{', '.join(needy)} must be fitted on training images, which are absent:"
            f" {sets.train_absent}"
        )
    train = sources.subset(sets.train, limit, seed)
    fitting.fit_detectors(
        job.detectors,
        train,
        job.transform,
        facts=job.score_facts,
        directory=out / "fits",
        skip_unreadable=skip_unreadable,
    )
    notes = overlap_notes(train, job.sets)
    return {"set": train.name, "images": len(train), "detectors": needy}, notes
