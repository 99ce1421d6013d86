"""Evaluate out-of-distribution detectors on a benchmark and print the tables.

si-jax evaluate                       # the offline default, `digits`
si-jax evaluate --dataset cifar100 --checkpoint checkpoints/resnet34
si-jax evaluate --dataset cifar100 --model resnet34 --checkpoint resnet34.pth
si-jax evaluate --dataset FOLDER --torch nets:make --checkpoint net.pth  # PyTorch, as it is
si-jax evaluate --dataset FOLDER --checkpoint CHECKPOINT            # your own classes
si-jax evaluate --id VAL --train TRAIN --ood cars=CARS --checkpoint CHECKPOINT   # or one by one
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from si_jax.commands.options import command, plain_value
from si_jax.data.benchmarks import BENCHMARKS
from si_jax.data.json_files import json_hash
from si_jax.detectors import DETECTORS, describe
from si_jax.detectors.si import si_z
from si_jax.evaluation import defaults
from si_jax.evaluation.job import make_detectors
from si_jax.evaluation.sets import is_own
from si_jax.evaluation.store import escaped
from si_jax.reporting.evaluate import checked_directory, evaluate_benchmark

ASIDE = ("benchmark", "protocol", "out", "data_dir", "ood_root", "download", "batch_size")
"""Options on which no result depends, or which the directory's name says."""


@command(
    "si-jax evaluate",
    evaluate_benchmark,
    defaults.benchmark_model,
    si_z,
    **dict.fromkeys(("id_name", "taps", "variant", "tap_chunk"), ""),
)
def main(
    run: partial,
    load: partial,
    si: partial,
    *,
    benchmark: str | None = None,
    id_set: str | None = None,
    out: str | None = None,
    list_detectors: bool = False,
    list_taps: bool = False,
    given: Mapping[str, Any],
) -> None:
    """Evaluate and print.

    Args:
        run: evaluates.
        load: loads the network.
        si: has the options that are not of one detector alone.
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
        checkpoint: bundled name, checkpoint directory, or (with --model) a file of another
            framework, or with --torch its state dict; random for fresh weights; default: the
            bundled one that was trained on the benchmark.
        seed: of the subsets and of fresh weights.
        out: directory for the results; default: results/DATASET-PROTOCOL, with more to its name
            where an option differs from its default.
        list_detectors: print the detectors and leave.
        list_taps: print each detector's taps and leave.
        given: the options that are not at their defaults.
    """
    if list_detectors:
        print(*map(describe, DETECTORS), sep="\n")
        return
    dataset = "digits" if benchmark is None and id_set is None else benchmark
    id_name, id_path = in_distribution(dataset, id_set)
    directory = checked_directory(out or default_directory(dataset, id_set, given))
    checkpoint, architecture = given.get("checkpoint"), given.get("architecture")
    if checkpoint == "random" and not architecture:
        raise ValueError("--checkpoint random needs --model NAME")
    if "torch" not in given:
        defaults.which_checkpoint(dataset, checkpoint, architecture)
    network = partial(load, dataset)
    common = {name: plain_value(text) for name, text in si.keywords.items()}
    if list_taps:
        model, _ = network()
        own = run.keywords.get("options", {})
        names = run.keywords.get("detectors") or defaults.serving(model, own)
        print_taps(make_detectors(names, model, common=common, options=own))
        return
    done = run(dataset, network, common=common, id_set=id_path, id_name=id_name, out=directory)
    print(f"\n{done}\n")
    for path in done.saved:
        print(f"saved {path}")
    print(f"saved {directory / 'scores'}/<detector>/<set>/<chunk>.npz")


def in_distribution(dataset: str | None, text: str | None) -> tuple[str, str | None]:
    """The name ('' for none) and the path of `--id`; a benchmark's set has a name already."""
    if text is None:
        return "", None
    name, equals, path = text.partition("=") if "=" in text else ("", "", text)
    table = BENCHMARKS.get(dataset or "")
    if equals and table is not None and name != table.test.name:
        raise ValueError(f"--id {text}: {dataset}'s set is called {table.test.name}")
    return ("" if table is not None else name), path


def default_directory(dataset: str | None, id_set: str | None, given: Mapping[str, Any]) -> Path:
    """Where results go by default: another directory for other options, the same for the same."""
    name = f"{dataset}-{given.get('protocol', 'published')}"
    if is_own(dataset):
        id_name, id_path = in_distribution(dataset, id_set)
        called = id_name or Path(dataset or id_path or ".").resolve().name
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
