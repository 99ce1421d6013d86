"""Evaluate out-of-distribution detectors on a benchmark and print the tables.

si-jax evaluate                       # the offline default, `digits`
si-jax evaluate --dataset cifar100 --checkpoint checkpoints/resnet34
si-jax evaluate --dataset cifar100 --model resnet34 --checkpoint resnet34.pth
si-jax evaluate --dataset FOLDER --checkpoint CHECKPOINT            # your own classes
si-jax evaluate --id VAL --train TRAIN --ood cars=CARS --checkpoint CHECKPOINT   # or one by one
"""

import argparse
import functools
from pathlib import Path

from si_jax import cli
from si_jax.commands import options
from si_jax.data.json_files import json_hash
from si_jax.data.tables import BENCHMARKS
from si_jax.detectors import DETECTORS, describe
from si_jax.evaluation import defaults
from si_jax.evaluation.job import make_detectors
from si_jax.evaluation.processes import ALONE, Processes, start
from si_jax.evaluation.sets import is_own
from si_jax.evaluation.store import escaped
from si_jax.reporting.evaluate import checked_directory, evaluate_benchmark

COMMON = ("preset", "steps", "step_size", "combine", "objective", "engine")
"""Options of detectors that are options of the command as well."""

DISTRIBUTED = ("distributed", "coordinator", "processes", "process_id")
"""Options of runs of several processes."""

ASIDE = (
    *("out", "data_dir", "ood_root", "download", "batch_size", "list_detectors", "list_taps"),
    *DISTRIBUTED,
)
"""Options on which no result depends."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = cli.parser("evaluate", __doc__)
    add = made.add_argument
    options.add_benchmark(made)
    made.set_defaults(dataset=None)  # `digits`, unless there is --id
    options.add_network(made)
    add("--detectors", nargs="+", action="extend", metavar="NAME", help="default:"
        f" {' '.join(defaults.DETECTORS)}; without training images, those of them that need"
        " none; LABEL=NAME:OPTION=VALUE,OPTION=VALUE for one detector several times, such as"
        " lts-85=lts:percentile=85")  # fmt: skip
    add("--set", nargs="+", action="extend", default=[], metavar="DETECTOR.OPTION=VALUE",
        dest="options", help="an option of one detector, such as knn.k=10; --list-detectors"
        " prints them; may be given several times")  # fmt: skip
    add("--preset", help="S&I: published (default) or published-defaults")
    add("--steps", type=int, help="S&I: number of gradients integrated; default: the preset's")
    add("--step-size", help="S&I: length of the adversarial step; default: the preset's")
    add("--combine", help="S&I: add or multiply; default: the preset's")
    add("--objective", help="S&I: ce or max; default: ce")
    add("--engine", help="S&I and GAIA: auto (default), activation, gradient, closed or general")
    add("--limit", type=int, help="use a random subset of this many images of each set;"
        " default: all")  # fmt: skip
    add("--fit-limit", type=int, default=10_000, help="training images to fit on; default 10000")
    options.add_batch_size(made)
    options.add_seed(made, "the subsets")
    add("--out", help="directory for the results; default: results/DATASET-PROTOCOL, with more"
        " to its name where an option differs from its default")  # fmt: skip
    options.add_places(made)
    add("--id", metavar="[NAME=]PATH", help="where the in-distribution images are: a folder with a"
        " folder a class, .npz or list (.txt); without --dataset, they are those of classes of your"
        " own; default: looked for")  # fmt: skip
    add("--train", metavar="PATH", help="where the images to fit on are, likewise")
    options.add_ood(made, "a folder of images, .npz or .mat file; may be given several times")
    add("--full-spectrum", action="store_true", help="measure a second time with"
        " covariate-shifted sets (CIFAR-10-C, ImageNet-R, ...) as in-distribution")  # fmt: skip
    add("--shifted", nargs="+", action="extend", default=[], metavar="NAME=PATH", help="the same"
        " with shifted in-distribution images of your own")  # fmt: skip
    add("--download", action="store_true", help="download the public sets that are absent, as"
        " si-jax prepare-data does")  # fmt: skip
    options.add_allow_missing(made)
    add("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    add("--distributed", action="store_true", help="this is one of several processes, each of which"
        " scores a share of every set; --out must be on a file system of them all")  # fmt: skip
    add("--coordinator", metavar="HOST:PORT", help="with --distributed: where process 0 is reached;"
        " default: $JAX_COORDINATOR_ADDRESS, or what Slurm, Open MPI or a TPU tells")  # fmt: skip
    add("--processes", type=int, metavar="N", help="how many there are; default:"
        " $JAX_NUM_PROCESSES, or likewise")  # fmt: skip
    add("--process-id", type=int, metavar="K", help="which one this is, from 0 on; default:"
        " $JAX_PROCESS_ID, or likewise")  # fmt: skip
    add("--list-detectors", action="store_true", help="print the detectors and leave")
    add("--list-taps", action="store_true", help="print each detector's taps and leave")
    return made


def main(argv: list[str] | None = None) -> None:
    """Evaluate and print."""
    args = parser().parse_args(argv)
    if args.list_detectors:
        return list_detectors()
    args.dataset = dataset_of(args)
    if args.out and Path(args.out).exists():
        checked_directory(args.out)
    with started(args) as processes:
        evaluate(args, cli.command_line("evaluate", argv), processes)


def evaluate(args: argparse.Namespace, command: str, processes: Processes) -> None:
    """Evaluate; process 0 prints."""
    options.check_network(args)
    id_name, id_path = in_distribution(args)
    common = {k: value for k in COMMON if (value := getattr(args, k)) is not None}
    own = options.detector_options(args.options)
    detectors = None if args.detectors is None else options.labelled_detectors(args.detectors)
    if args.list_taps:
        model, _ = options.network(args)
        names = detectors or defaults.serving(model, own)
        return list_taps(make_detectors(names, model, common=common, options=own))
    run = evaluate_benchmark(
        args.dataset,
        functools.partial(options.network, args),
        detectors=detectors,
        options=own,
        common=common,
        protocol=args.protocol,
        data_dir=args.data_dir,
        ood_root=args.ood_root,
        id_set=id_path,
        id_name=id_name,
        train_set=args.train,
        ood=options.pairs(args.ood, "--ood"),
        shifted=options.pairs(args.shifted, "--shifted"),
        full_spectrum=args.full_spectrum,
        download=args.download,
        limit=args.limit,
        fit_limit=args.fit_limit,
        seed=args.seed,
        batch_size=args.batch_size,
        allow_missing=args.allow_missing,
        skip_unreadable=args.skip_unreadable,
        out=args.out or default_directory(args),
        command=command,
        processes=processes,
    )
    if processes.index:
        return
    print(f"\n{run}\n")
    for path in run.saved:
        print(f"saved {path}")
    print(f"saved {run.saved[0].parent / 'scores'}/<detector>/<set>.npz")


def started(args: argparse.Namespace) -> Processes:
    """The processes of this run, before JAX is used for anything else."""
    if args.distributed:
        directory = args.out or default_directory(args)
        return start(directory, args.coordinator, args.processes, args.process_id)
    if given := [name for name in DISTRIBUTED if getattr(args, name) not in (None, False)]:
        raise ValueError(f"--{given[0].replace('_', '-')} needs --distributed")
    return ALONE


def in_distribution(args: argparse.Namespace) -> tuple[str, str | None]:
    """The name ('' for none) and the path of `--id`; a benchmark's set has a name already."""
    if args.id is None:
        return "", None
    name, equals, path = args.id.partition("=") if "=" in args.id else ("", "", args.id)
    table = BENCHMARKS.get(args.dataset)
    if equals and table is not None and name != table.test.name:
        raise ValueError(f"--id {args.id}: {args.dataset}'s set is called {table.test.name}")
    return ("" if table is not None else name), path


def dataset_of(args: argparse.Namespace) -> str | None:
    """The benchmark asked for; `digits` by default, unless `--id` gives classes of one's own."""
    return "digits" if args.dataset is None and args.id is None else args.dataset


def default_directory(args: argparse.Namespace) -> Path:
    """Where results go unless told: another directory for other options, the same for the same."""
    dataset = dataset_of(args)
    name = f"{dataset}-{args.protocol}"
    if is_own(dataset):
        id_name, id_path = in_distribution(args)
        called = id_name or Path(dataset or id_path or ".").resolve().name
        name = f"{escaped(called)[:40]}-own"
    usual = vars(parser().parse_args([]))
    changed = {k: v for k, v in vars(args).items() if k not in ASIDE and v != usual[k]}
    changed = {k: v for k, v in changed.items() if k not in ("dataset", "protocol")}
    if not changed:
        return Path("results", name)
    digest = json_hash(changed)
    if args.checkpoint:
        name += f"-{escaped(Path(args.checkpoint).name)[:40]}"
    if args.limit is not None:
        name += f"-limit{args.limit}"
    return Path("results", f"{name}-{digest[:8]}")


def list_detectors() -> None:
    """Print every detector: what it is, what it needs, which values its options take."""
    for name in DETECTORS:
        print(describe(name))


def list_taps(detectors) -> None:
    """Print the taps of every detector that has some, in order."""
    for name, detector in detectors.items():
        for role in ("taps", "inner", "outer"):
            taps = detector.settings.get(role, [])
            for index, tap in enumerate([taps] if isinstance(taps, str) else taps):
                print(f"{name}  {role}  {index:3d}  {tap}")
