"""Evaluate out-of-distribution detectors on a benchmark and print the tables.

si-jax evaluate                       # the offline default, `digits`
si-jax evaluate --dataset cifar100 --checkpoint checkpoints/resnet34
si-jax evaluate --dataset cifar100 --model resnet34 --checkpoint resnet34.pth
si-jax evaluate --dataset FOLDER --torch nets:make --checkpoint net.pth  # PyTorch, as it is
si-jax evaluate --dataset FOLDER --checkpoint CHECKPOINT            # your own classes
si-jax evaluate --id VAL --train TRAIN --ood cars=CARS --checkpoint CHECKPOINT   # or one by one
"""

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from si_jax.benchmarking import checked_directory, evaluate, find_and_load, find_sets
from si_jax.commands.options import command, plain_value
from si_jax.data.benchmarks import BENCHMARKS
from si_jax.data.files import json_hash
from si_jax.detectors import DETECTORS, describe
from si_jax.detectors.si import si_z
from si_jax.evaluation import job
from si_jax.evaluation.sharing import score_share, score_with_ray
from si_jax.evaluation.store import escaped

ASIDE = (
    *("benchmark", "protocol", "out", "data_dir", "ood_root", "download", "batch_size"),
    *("share", "ray", "gpus"),
)
"""Options on which no result depends, or which the directory's name says."""

HIDDEN = dict.fromkeys(("label", "taps", "variant", "tap_chunk"), "")  # they are no options


@command("si-jax evaluate", find_sets, evaluate, job.benchmark_model, si_z, **HIDDEN)
def main(
    find: partial,
    run: partial,
    load: partial,
    si: partial,
    *,
    benchmark: str | None = None,
    id_set: str | None = None,
    full_spectrum: bool = False,
    out: str | None = None,
    list_detectors: bool = False,
    list_taps: bool = False,
    share: str | None = None,
    ray: int | None = None,
    gpus: float = 0,
    given: Mapping[str, Any],
) -> None:
    """Evaluate and print.

    Args:
        benchmark: digits, cifar10, cifar100 or imagenet; or a folder of custom data with val, train
            and ood/NAME in it; default: digits.
        detectors: names, see --list-detectors, or LABEL=NAME:OPTION=VALUE,OPTION=VALUE for one
            several times, such as lts-85=lts:percentile=85; default: si-c si-z gaia-z msp max-logit
            energy; without training images, those of them that need none.
        options: DETECTOR.OPTION=VALUE, such as knn.k=10; --list-detectors prints them.
        id_set: PATH or NAME=PATH of the in-distribution images: a folder with a folder a class,
            .npz or list (.txt); without --dataset, they are of custom classes; default: looked for.
        train_set: where the images to fit on are, likewise.
        ood: NAME=PATH of a folder of images, .npz or .mat file, to add, or to say where a set is.
        shifted: NAME=PATH of covariate-shifted in-distribution images, for the full spectrum.
        full_spectrum: take the benchmark's own sets of such images.
        checkpoint: bundled name, checkpoint directory, or (with --model) a file of another
            framework, or with --torch its state dict; random for fresh weights; default: the
            bundled one that was trained on the benchmark.
        seed: of the subsets and of fresh weights.
        out: directory for the results; default: results/DATASET-PROTOCOL, with more to its name
            where an option differs from its default.
        list_detectors: print the detectors and leave.
        list_taps: print each detector's taps and leave.
        share: K/N: score the K-th of N shares and write no results; the same command without it
            collects them, and scores what is lacking.
        ray: let so many of Ray's workers score; on a cluster, $RAY_ADDRESS says where it is.
        gpus: GPUs of each of them.
    """
    if list_detectors:
        return print(*map(describe, DETECTORS), sep="\n")
    if ray is not None:  # this process leaves the GPUs' memory to the workers
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    dataset = "digits" if benchmark is None and id_set is None else benchmark
    images = in_distribution(dataset, id_set)
    directory = checked_directory(out or default_directory(dataset, images, given))
    part = None if share is None else re.fullmatch(r"(\d+)/(\d+)", share)
    if share is not None and not part:
        raise ValueError(f"--share {share}: write it as K/N, such as 1/8")
    detectors = run.keywords.get("detectors")
    job.labelled(detectors or ())
    common = {name: plain_value(text) for name, text in si.keywords.items()}
    options = {job.EVERY: common, **run.keywords.get("options", {})}
    if list_taps:
        model, _ = load(dataset)()
        names = detectors or job.applicable(model, options)
        return print_taps(job.make_detectors(names, model, options=options))
    search = {**find.keywords, "id_set": images}
    if full_spectrum:
        own = BENCHMARKS[dataset].shifted if dataset in BENCHMARKS else ()
        both = {**{spec.name: None for spec in own}, **search.get("shifted", {})}
        search["shifted"] = both if own else True
    sets, model, label = find_and_load(dataset, search, load(dataset))
    run = partial(run, model, sets, options=options, out=directory)
    scoring = {k: v for k, v in run.keywords.items() if k != "command"}
    if part:
        score_share(model, sets, share=(int(part[1]), int(part[2])), **scoring)
        return print(f"saved share {share} below {directory / 'scores'}")
    if ray is not None:
        score_with_ray(model, sets, workers=ray, gpus=gpus, **scoring)
    done = run(label=label)
    print(f"\n{done}\n")
    for path in done.saved:
        print(f"saved {path}")
    print(f"saved {directory / 'scores'}/<detector>/<set>/<chunk>.npz")


def in_distribution(dataset: str | None, text: str | None) -> str | dict[str, str] | None:
    """What `--id` says: a path, or its name and path; a benchmark's set has a name already."""
    name, equals, path = (text or "").partition("=")
    if text is None or not equals:
        return text
    if (table := BENCHMARKS.get(dataset or "")) is None:
        return {name: path}
    if name != table.test.name:
        raise ValueError(f"--id {text}: {dataset}'s set is called {table.test.name}")
    return path


def default_directory(dataset: str | None, images: Any, given: Mapping[str, Any]) -> Path:
    """Where results go by default: another directory for other options, the same for the same."""
    name = f"{dataset}-{given.get('protocol', 'published')}"
    if job.benchmark_table(dataset) is None:
        named = isinstance(images, dict)
        called = next(iter(images)) if named else Path(dataset or images or ".").resolve().name
        name = f"{escaped(called)[:40]}-own"
    changed = {k: v for k, v in given.items() if k not in ASIDE}
    if not changed:
        return Path("results", name)
    if "checkpoint" in given:
        name += f"-{escaped(Path(given['checkpoint']).name)[:40]}"
    if "limit" in given:
        name += f"-limit{given['limit']}"
    return Path("results", f"{name}-{json_hash(changed)[:8]}")


def print_taps(detectors: Mapping[str, Any]) -> None:
    """Print the taps of every detector that has some, in order."""
    for name, detector in detectors.items():
        for role in ("taps", "inner", "outer"):
            taps = detector.settings.get(role, [])
            for index, tap in enumerate([taps] if isinstance(taps, str) else taps):
                print(f"{name}  {role}  {index:3d}  {tap}")
