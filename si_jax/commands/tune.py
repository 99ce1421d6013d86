"""Choose a detector's options on validation images made from the training split.

si-jax tune ash-s                     # on the offline default, `digits`
si-jax tune react --dataset cifar100 --checkpoint checkpoints/resnet34
si-jax tune knn --grid k=1,5,20,50
si-jax tune scale --ood-val iso=photos/iso --ood-val art=photos/art

Out-of-distribution images are noise and shuffled patches of training images that the detector is
not fitted on, or those given by --ood-val. No test set is tuned on: an image of --ood-val that is
also in a test set of the benchmark is refused.
"""

import argparse

from si_jax import cli
from si_jax.commands import options
from si_jax.evaluation import tuning
from si_jax.evaluation.tuning_run import tune_on_benchmark


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = cli.parser("tune", __doc__)
    add = made.add_argument
    add("detector", help=f"one of {', '.join(tuning.GRIDS)}, or with --grid any that has options")
    options.add_benchmark(made)
    options.add_network(made)
    add("--grid", nargs="+", action="extend", default=[], metavar="OPTION=VALUE,VALUE",
        help="grid to search; default: the detector's own")  # fmt: skip
    add("--ood-val", nargs="+", action="extend", default=[], metavar="NAME=PATH",
        help="folders, .npz or .mat files of out-of-distribution images to choose by")  # fmt: skip
    add("--limit", type=int, default=500, help="validation images; default 500")
    add("--fit-limit", type=int, default=5000, help="images to fit on; default 5000")
    options.add_batch_size(made)
    options.add_seed(made, "subsets and validation sets")
    options.add_places(made)
    return made


def main(argv: list[str] | None = None) -> None:
    """Search and print."""
    args = parser().parse_args(argv)
    grid = parse_grid(args.grid)
    next(tuning.candidates(args.detector, grid))  # refuses before anything is loaded
    model, _ = options.network(args)
    tuned = tune_on_benchmark(
        args.detector,
        args.dataset,
        model,
        grid=grid,
        protocol=args.protocol,
        data_dir=args.data_dir,
        ood_root=args.ood_root,
        ood=options.pairs(args.ood_val, "--ood-val"),
        limit=args.limit,
        fit_limit=args.fit_limit,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    print(tuned)
    print(f"\nchosen: --set {tuning.describe(args.detector, tuned.best)}")


def parse_grid(texts: list[str]) -> dict[str, list] | None:
    """`k=1,5` -> {"k": [1, 5]}; None where there is none."""
    given = options.pairs(texts, "--grid", "OPTION=VALUE,VALUE")
    return {
        name.replace("-", "_"): [options.plain_value(value) for value in values.split(",")]
        for name, values in given.items()
    } or None
