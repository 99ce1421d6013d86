"""The evidence for S&I-C: all detectors side by side, ablations, and figures, for any networks.

python scripts/study_calibrated.py --network digits=digits
python scripts/study_calibrated.py --network cifar100=checkpoints/resnet14_cifar100 \
  --network cifar10=checkpoints/resnet20_cifar10 --data-dir DIR --ood-root DIR --allow-missing

The same command goes on where it was interrupted: fits, scores, readings and ablations are kept
below --out with a hash of all that determines them. Writes study.md, study.json and figures.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from si_jax import cli
from si_jax.commands import options
from si_jax.data import benchmarks
from si_jax.data.files import write_atomically
from si_jax.detectors import DETECTORS
from si_jax.evaluation import benchmark
from si_jax.reporting.panels import encode
from study import ablations, figures, report, rivals
from study.readings import read_case
from study.sets import Case, load_networks, prepare


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--network", action="append", required=True, metavar="DATASET=CHECKPOINT",
        help="a network and its benchmark; may be given several times")  # fmt: skip
    add("--detectors", nargs="+", default=list(DETECTORS), metavar="NAME",
        help="default: all; msp is always among them")  # fmt: skip
    add("--protocols", nargs="+", default=["published", "openood"], metavar="PROTOCOL")
    add("--limit", type=int, help="use a random subset of this many images of each test set")
    add("--calibration", type=int, default=5000, help="calibration images; default 5000")
    add("--seeds", type=int, default=3, help="draws of the calibration images; default 3")
    add("--resamples", type=int, default=1000, help="bootstrap draws; default 1000")
    options.add_seed(parser, "all draws")
    options.add_batch_size(parser)
    add("--out", default="results/study", help="directory for the results")
    options.add_places(parser)
    options.add_allow_missing(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run or resume the study, and print its tables."""
    args = parse(argv)
    for name, least in (("limit", 2), ("calibration", 20), ("seeds", 1), ("resamples", 2),
                        ("seed", 0), ("batch_size", 1)):  # fmt: skip
        if (value := getattr(args, name)) is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} (={value}) must be at least {least}")
    rivals.check_names(args.detectors)
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a directory")
    cases = find(args)
    study = {
        "command": " ".join(["python", *sys.argv]),
        "versions": cli.versions(),
        **{name: getattr(args, name) for name in
           ("detectors", "protocols", "limit", "calibration", "seeds", "resamples", "seed")},
        "unfinished": [case.name for case in cases],
        "cases": [],
    }  # fmt: skip
    for case in cases:
        if case.note:
            print(f"{case.name}: {case.note}", file=sys.stderr)
        result = run(case, args, out / case.name)
        study["cases"].append(result | {"figures": draw(result, case, out)})
        study["unfinished"].remove(case.name)
        saved = report.write(study, out)
    print(f"\n{report.text(study)}\n")
    for path in (*saved, *(out / p for c in study["cases"] for p in c["figures"].values())):
        print(f"saved {path}")


def find(args: argparse.Namespace) -> list[Case]:
    """All networks under all protocols, before anything is computed."""
    cases = []
    for network in load_networks(args.network):
        for protocol in dict.fromkeys(args.protocols):
            sets = benchmarks.resolve(
                network.dataset,
                protocol,
                args.data_dir,
                args.ood_root,
                allow_missing=args.allow_missing,
            )
            draws = {name: getattr(args, name) for name in
                     ("limit", "calibration", "seeds", "seed")}  # fmt: skip
            cases.append(prepare(network, sets, **draws))
    return cases


def run(case: Case, args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """One network under one protocol, as it goes into the JSON."""
    results, _ = rivals.evaluate(
        case,
        args.detectors,
        directory,
        resamples=args.resamples,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    readings = read_case(case, directory / "readings")
    absent = {a.name: a.stand_in for a in case.resolved.absent}
    entries = case.resolved.benchmark.ood[case.resolved.protocol]
    return {
        "network": case.network.name,
        **results,
        "checkpoint": case.network.checkpoint,
        "seed": args.seed,
        "limit": args.limit,
        "absent": absent,
        "incomplete": sorted({e.group for e in entries if e.name in absent}),
        "warning": benchmark.chance_warning(results["accuracy"], case.model.num_classes),
        "calibration": {
            "set": case.resolved.test.name if case.note else case.resolved.train.name,
            "images": len(case.draws[0]),
            "draws": args.seeds,
            "disjoint_draws": len(case.draws),
            "note": case.note,
        },
        "ablations": ablations.run(
            readings,
            case.groups,
            ablations.plan(args.seeds),
            directory / "ablations.json",
            case.name,
        ),
        "layers": ablations.layers(readings),
    }


def draw(result: Mapping[str, Any], case: Case, out: Path) -> dict[str, str]:
    """Draw the figures of a case; returns what each shows and its path below `out`."""
    pictures = {"density by layer": figures.densities(result["layers"], case.groups)}
    if result["layers"]["rejected"]:
        pictures["abnormal layers"] = figures.abnormal_taps(result["layers"], case.groups)
    pictures["number of calibration images"] = figures.by_images(
        result["ablations"], result["averages"][rivals.YARDSTICK]
    )
    paths = {}
    for name, figure in pictures.items():
        paths[name] = f"{case.name}/{name.replace(' ', '_')}.png"
        content = encode(figure)
        write_atomically(out / paths[name], lambda file, c=content: file.write(c))
    return paths


if __name__ == "__main__":
    cli.run(main)
