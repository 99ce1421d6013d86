"""Evaluate out-of-distribution detectors on a benchmark and print the tables.

si-jax evaluate                       # the offline default, `digits`
si-jax evaluate --dataset cifar100 --checkpoint checkpoints/resnet34
si-jax evaluate --dataset cifar100 --model resnet34 --checkpoint resnet34.pth
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path

import si_jax
from si_jax import cli
from si_jax.data import benchmarks, sources
from si_jax.detectors import DETECTORS, describe
from si_jax.evaluation import benchmark, fitting
from si_jax.evaluation.store import Store
from si_jax.reporting import extremes, html, report
from si_jax.reporting.runs import Run

DEFAULT_DETECTORS = ("si-c", "si-z", "gaia-z", "msp", "max-logit", "energy")
DEFAULT_CHECKPOINTS = {"digits": "digits", "cifar100": "cifar100_resnet20"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("evaluate", __doc__)
    add = parser.add_argument
    add("--dataset", default="digits", help=f"benchmark: {', '.join(benchmarks.BENCHMARKS)}")
    add("--protocol", default="published", help="published (default) or openood")
    add("--checkpoint", help="bundled name, checkpoint directory, or (with --model) a file of"
        " another framework; 'random' for fresh weights")  # fmt: skip
    add("--model", help="architecture, for --checkpoint FILE or --checkpoint random")
    add("--normalisation", help="of a FILE's network: cifar10, cifar100, imagenet or half")
    add("--detectors", nargs="+", metavar="NAME", help=f"default: {' '.join(DEFAULT_DETECTORS)};"
        " without training images, those of them that need none")  # fmt: skip
    add("--set", nargs="+", default=[], metavar="DETECTOR.OPTION=VALUE", dest="options",
        help="an option of one detector, such as knn.k=5; see --list-detectors")  # fmt: skip
    add("--preset", help="S&I: published (default) or published-defaults")
    add("--steps", type=int, help="S&I: number of gradients integrated")
    add("--step-size", type=float, help="S&I: length of the adversarial step")
    add("--combine", help="S&I: add or multiply")
    add("--objective", help="S&I: ce or max")
    add("--engine", help="S&I and GAIA: auto, general, gradient or activation")
    add("--limit", type=int, help="use a random subset of this many images of each set")
    add("--fit-limit", type=int, default=10_000, help="training images to fit on; default 10000")
    add("--batch-size", type=int, help="images per batch; default: each detector's own")
    add("--seed", type=int, default=0, help="seed of the subset")
    add("--precision", default="highest", help="of matrix products: highest, high or default")
    add("--out", help="directory for the results; default: results/DATASET-PROTOCOL")
    add("--data-dir", help="directory of TFDS sets")
    add("--ood-root", help="directory that holds folders of out-of-distribution images")
    add("--ood", nargs="+", default=[], metavar="NAME=PATH", help="any folder of images")
    add("--allow-missing", action="store_true", help="go on without the sets that are absent")
    add("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    add("--list-detectors", action="store_true", help="print the detectors and leave")
    add("--list-taps", action="store_true", help="print each detector's taps and leave")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Evaluate and print."""
    args = parse(argv)
    if args.list_detectors:
        return list_detectors()
    if args.dataset not in benchmarks.BENCHMARKS:
        known = ", ".join(benchmarks.BENCHMARKS)
        raise ValueError(f"unknown dataset {args.dataset!r}: choose one of {known}")
    out = Path(args.out or f"results/{args.dataset}-{args.protocol}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a directory")
    model, checkpoint = load(args)
    if args.list_taps:
        return list_taps(make_detectors(args, model))
    make_detectors(args, model)  # refuses what it must before any image is read
    classes = benchmarks.BENCHMARKS[args.dataset].num_classes
    if model.num_classes != classes:
        raise ValueError(
            f"checkpoint {checkpoint} has {model.num_classes} classes, but {args.dataset} has"
            f" {classes}: choose a checkpoint that was trained on {args.dataset}"
        )
    found = benchmarks.resolve(
        args.dataset,
        args.protocol,
        args.data_dir,
        args.ood_root,
        extra=dict(pair(text, "--ood", "NAME=PATH") for text in args.ood),
        allow_missing=args.allow_missing,
    )
    # the protocol decides the size; every architecture here pools globally and takes any
    model = dataclasses.replace(model, input_size=found.preprocessing.crop)
    detectors = make_detectors(args, model)
    if args.detectors is None and found.train is None:
        detectors = without_fits(args, detectors, found.train_absent)
    job = benchmark.Job(
        model=model,
        detectors=detectors,
        id_set=sources.subset(found.test, args.limit, args.seed),
        ood_sets={o.name: sources.subset(o.images, args.limit, args.seed) for o in found.ood},
        groups={o.name: o.group for o in found.ood},
        transform=found.preprocessing,
        facts={
            "benchmark": args.dataset,
            "protocol": args.protocol,
            "preprocessing": str(found.preprocessing),
        },
    )
    out.mkdir(parents=True, exist_ok=True)
    fit = fit_detectors(args, job, found, out)
    results, arrays = benchmark.evaluate(
        job, Store(out / "scores"), skip_unreadable=args.skip_unreadable
    )
    image_sets = (job.id_set, *job.ood_sets.values())
    extremes.save(out, arrays, image_sets, job.transform, list(detectors))
    stand_ins = {o.stand_in_for: o.name for o in found.ood if o.stand_in_for}
    absent = {a.name: stand_ins.get(a.name, "") for a in found.absent}
    entries = found.benchmark.ood[args.protocol]
    results |= {
        "checkpoint": checkpoint,
        "seed": args.seed,
        "limit": args.limit,
        "fit": fit,
        "absent": absent,
        "incomplete": sorted({e.group for e in entries if e.name in absent}),
        "warning": benchmark.chance_warning(results["accuracy"], model.num_classes),
        **benchmark.intervals(job, arrays),
        "versions": cli.versions(),
        "command": cli.command_line("evaluate", argv),
    }
    print()
    print(report.heading(results))
    if results["warning"]:
        print(f"WARNING: {results['warning']}")
    print(f"\n{report.tables(results)}\n")
    for path in report.write(results, out):
        print(f"saved {path}")
    print(f"saved {html.write(Run(out.name, results, arrays, extremes.load(out)), out)}")
    print(f"saved {out / 'scores'}/<detector>/<set>.npz")


def make_detectors(args: argparse.Namespace, model: si_jax.Model) -> dict:
    """The detectors that the command line asks for."""
    return benchmark.make_detectors(
        args.detectors or DEFAULT_DETECTORS,
        model,
        common={
            key: value
            for key in ("preset", "steps", "step_size", "combine", "objective", "engine")
            if (value := getattr(args, key)) is not None
        },
        options=parse_options(args.options),
        batch_size=args.batch_size,
    )


def without_fits(args, detectors: dict, absent: str) -> dict:
    """The default detectors less those that need training images, with a line on stderr.

    Those that `--set` names are kept, as if asked for.
    """
    asked = parse_options(args.options)
    needy = [name for name, d in detectors.items() if d.needs_fit and name not in asked]
    for name in needy:
        why = f"it must be fitted on training images, which are absent: {absent}"
        print(f"{name} is left out: {why}", file=sys.stderr)
    return {name: d for name, d in detectors.items() if name not in needy}


def fit_detectors(args, job: benchmark.Job, found: benchmarks.Resolved, out: Path) -> dict:
    """Fit the detectors that need it on the training split; returns what a report says of it."""
    needy = [name for name, d in job.detectors.items() if d.needs_fit]
    if not needy:
        return {}
    if found.train is None:
        raise ValueError(
            f"{', '.join(needy)} must be fitted on training images, which are absent:"
            f" {found.train_absent}"
        )
    train = sources.subset(found.train, args.fit_limit, args.seed)
    fitting.fit_detectors(
        job.detectors,
        train,
        job.transform,
        facts=benchmark.score_facts(job),
        directory=out / "fits",
        skip_unreadable=args.skip_unreadable,
    )
    return {"set": train.name, "images": len(train), "detectors": needy}


def load(args: argparse.Namespace) -> tuple[si_jax.Model, str]:
    """The model, and how a report names its checkpoint."""
    checkpoint = args.checkpoint or DEFAULT_CHECKPOINTS.get(args.dataset)
    if checkpoint is None:
        raise ValueError(
            f"no checkpoint for {args.dataset} comes with the package: give --checkpoint DIRECTORY,"
            " --model NAME --checkpoint FILE for a PyTorch file, or train one with si-jax train"
        )
    if checkpoint == "random":
        if not args.model:
            raise ValueError("--checkpoint random needs --model NAME")
        model = si_jax.build_model(args.model, seed=args.seed)
        checkpoint = f"random weights of seed {args.seed}"
    elif Path(checkpoint).is_file():
        if not args.model:
            raise ValueError(f"--checkpoint {checkpoint} is a file, so it needs --model NAME")
        model = si_jax.convert_torch(args.model, checkpoint, normalisation=args.normalisation)
    else:
        model = si_jax.load_model(checkpoint)
        if args.model not in (None, model.name):
            raise ValueError(f"checkpoint {checkpoint} is a {model.name}, not a {args.model}")
    return dataclasses.replace(model, precision=args.precision), str(checkpoint)


def parse_options(texts: list[str]) -> dict[str, dict]:
    """`si-z.steps=3` -> {"si-z": {"steps": 3}}."""
    options: dict[str, dict] = {}
    for text in texts:
        name, value = pair(text, "--set", "DETECTOR.OPTION=VALUE")
        detector, dot, option = name.partition(".")
        if not dot:
            raise ValueError(f"--set {text}: write it as DETECTOR.OPTION=VALUE")
        with contextlib.suppress(json.JSONDecodeError):  # which a plain word is
            value = json.loads(value)
        options.setdefault(detector, {})[option.replace("-", "_")] = value
    return options


def pair(text: str, option: str, form: str) -> tuple[str, str]:
    """The two sides of the first `=`."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"{option} {text}: write it as {form}")
    return name, value


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
