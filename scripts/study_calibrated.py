"""The evidence for S&I-C: all detectors side by side, ablations, and figures, for any networks.

python scripts/study_calibrated.py --network digits=digits
python scripts/study_calibrated.py --network cifar100=checkpoints/resnet14_cifar100 \
  --network cifar10=checkpoints/resnet20_cifar10 --data-dir DIR --ood-root DIR --allow-missing

The same command goes on where it was interrupted: the detectors' fits and scores are kept below
--out, ablations are computed anew. Writes study.txt, study.json and figures.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, cast

import si_jax
from si_jax import cli
from si_jax.checks import check_least
from si_jax.data import benchmarks
from si_jax.data.files import write_atomically
from si_jax.evaluation.job import labelled
from si_jax.evaluation.results import Results
from si_jax.reporting.figures import encode
from study import ablations, cases, comparison, figures, report
from study.readings import read_case


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--network", action="append", required=True, metavar="DATASET=CHECKPOINT",
        help="a network and its benchmark; may be given several times")  # fmt: skip
    add("--detectors", nargs="+", default=list(si_jax.DETECTORS), metavar="NAME",
        help="default: all; msp is always among them")  # fmt: skip
    add("--protocols", nargs="+", default=["published", "openood"], metavar="PROTOCOL")
    add("--limit", type=int, help="use a random subset of this many images of each test set")
    add("--calibration", type=int, default=5000, help="calibration images; default 5000")
    add("--seeds", type=int, default=3, help="draws of the calibration images; default 3")
    add("--resamples", type=int, default=1000, help="bootstrap draws; default 1000")
    add("--seed", type=int, default=0, help="of all draws; default 0")
    add("--batch-size", type=int, help="images per batch; default: each detector's own")
    add("--out", default="results/study", help="directory for the results")
    add("--data-dir", help="folder of all data; default: $SI_JAX_DATA or ~/.cache/si_jax/data")
    add("--ood-root", help="folder that holds folders of images; default: that of all data")
    add("--allow-missing", action="store_true", help="go on without the sets that are absent")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the study, and print its tables."""
    args = parse(argv)
    check_least(2, limit=args.limit, resamples=args.resamples)
    check_least(20, calibration=args.calibration)
    check_least(1, seeds=args.seeds)
    labelled(args.detectors)
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a directory")
    draws = {name: getattr(args, name) for name in ("calibration", "seeds", "seed")}
    found = [
        cases.prepare(
            name, *network, benchmarks.resolve(network[0], protocol, **places(args)), **draws
        )
        for name, network in cases.load_networks(args.network).items()
        for protocol in dict.fromkeys(args.protocols)
    ]
    study: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "versions": cli.versions(),
        **{name: value for name, value in vars(args).items() if name != "network"},
        "cases": [],
    }
    pictures = []
    for case in found:
        if case.note:
            print(f"{case.name}: {case.note}", file=sys.stderr)
        result = run(case, args, out / case.name)
        pictures += draw(result, case, out / case.name)
        study["cases"].append(result)
        saved = report.write(study, out)
    print(f"\n{report.text(study['cases'])}\n")
    for path in (*saved, *pictures):
        print(f"saved {path}")


def places(args: argparse.Namespace) -> dict[str, Any]:
    """Where sets are looked for."""
    return {name: getattr(args, name) for name in ("data_dir", "ood_root", "allow_missing")}


def run(case: cases.Case, args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """One network under one protocol."""
    detectors, failures = comparison.detectors(args.detectors, case.model)
    evaluated = si_jax.evaluate_benchmark(
        case.dataset,
        case.checkpoint,
        detectors=detectors,
        protocol=case.resolved.protocol,
        id_set=case.test if case.note else None,
        train_set=case.draws[0],
        limit=args.limit,
        fit_limit=None,
        seed=args.seed,
        batch_size=args.batch_size,
        out=directory / "evaluation",
        **places(args),
    )
    sets = cases.test_sets(case, args.limit, args.seed)
    scores = {
        label: {name: evaluated.arrays[name][label]["score"] for name in sets}
        for label in detectors
    }
    bootstrap = {"resamples": args.resamples, "seed": args.seed}
    intervals, over_msp = comparison.compare(scores, case.groups, **bootstrap)
    readings = read_case(case, sets)
    return {
        "network": case.network,
        "results": dataclasses.replace(
            cast(Results, evaluated.results),
            intervals=intervals,
            average_intervals={},
            bootstrap={**bootstrap, "level": 0.95},
        ),
        "over_msp": over_msp,
        "failures": failures,
        "calibration": {
            "set": (case.resolved.train or case.resolved.test).name,
            "images": len(case.draws[0]),
            "draws": args.seeds,
            "disjoint_draws": len(case.draws),
            "note": case.note,
        },
        "ablations": ablations.run(readings, case.groups, ablations.plan(args.seeds), case.name),
        "layers": ablations.layers(readings),
    }


def draw(result: dict[str, Any], case: cases.Case, directory: Path) -> list[Path]:
    """Draw the figures of a case; returns their paths."""
    pictures = {"density_by_layer": figures.densities(result["layers"], case.groups)}
    if result["layers"]["rejected"]:
        pictures["abnormal_layers"] = figures.abnormal_taps(result["layers"], case.groups)
    pictures["number_of_calibration_images"] = figures.by_images(
        result["ablations"], result["results"].averages[comparison.REFERENCE]
    )
    paths = []
    for name, figure in pictures.items():
        paths.append(directory / f"{name}.png")
        content = encode(figure)
        write_atomically(paths[-1], lambda file, content=content: file.write(content))
    return paths


if __name__ == "__main__":
    cli.run(main)
