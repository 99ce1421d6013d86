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

import numpy as np

from si_jax import cli
from si_jax.commands import evaluate
from si_jax.data import benchmarks, finding, pipeline, preprocessing, sources
from si_jax.evaluation import tuning


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("tune", __doc__)
    add = parser.add_argument
    add("detector", help=f"one of {', '.join(tuning.GRIDS)}, or with --grid any that has options")
    add("--dataset", default="digits", help=f"benchmark: {', '.join(benchmarks.BENCHMARKS)}")
    add("--protocol", default="published", help="published (default) or openood")
    add("--checkpoint", help="as for si-jax evaluate")
    add("--model", help="as for si-jax evaluate")
    add("--normalisation", help="as for si-jax evaluate")
    add("--precision", default="highest", help="as for si-jax evaluate")
    add("--grid", nargs="+", default=[], metavar="OPTION=VALUE,VALUE", help="grid to search")
    add("--ood-val", nargs="+", action="extend", default=[], metavar="NAME=PATH",
        help="folders, .npz or .mat files of out-of-distribution images to choose by")  # fmt: skip
    add("--limit", type=int, default=500, help="validation images; default 500")
    add("--fit-limit", type=int, default=5000, help="images to fit on; default 5000")
    add("--batch-size", type=int, help="images per batch; default: the detector's own")
    add("--seed", type=int, default=0, help="seed of the subsets and of the validation sets")
    add("--data-dir", help="directory of TFDS sets")
    add("--ood-root", help="directory that holds folders of images")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Search and print."""
    args = parse(argv)
    for name, value in (("--limit", args.limit), ("--fit-limit", args.fit_limit)):
        if value < 1:
            raise ValueError(f"{name} (={value}) must be at least 1")
    grid = parse_grid(args.detector, args.grid)
    next(tuning.candidates(args.detector, grid))  # refuses before anything is loaded
    if args.dataset not in benchmarks.BENCHMARKS or args.protocol not in preprocessing.PROTOCOLS:
        raise ValueError(f"there is no benchmark {args.dataset} under protocol {args.protocol}")
    model, _ = evaluate.load(args)
    table = benchmarks.BENCHMARKS[args.dataset]
    transform = preprocessing.PREPROCESSING[args.protocol, table.size]
    train = finding.find(table.train, finding.Where(args.data_dir, args.ood_root))

    order = np.random.default_rng(args.seed).permutation(len(train))
    count = min(args.limit, len(train) // 2)
    validation, _ = load(sources.take(train, np.sort(order[:count])), transform)
    fit = load(sources.take(train, np.sort(order[count : count + args.fit_limit])), transform)
    ood, tests = {}, None
    for text in args.ood_val:
        name, path = evaluate.pair(text, "--ood-val", "NAME=PATH")
        if name in ood:
            raise ValueError(f"--ood-val: {name} is given twice")
        images = sources.subset(sources.from_path(path, name=name), args.limit, args.seed)
        if tests is None:
            tests = test_sets(args)
        tuning.refuse_test_images(images, tests)
        ood[name], _ = load(images, transform)
    ood = ood or tuning.validation_ood(validation, args.seed)

    trials, skipped = tuning.tune(
        args.detector, model, fit, validation, ood, grid=grid, batch_size=args.batch_size
    )
    print(f"{len(validation)} validation images; AUROC, % against {', '.join(ood)}; mean")
    for trial in trials:
        row = "  ".join(f"{100 * value:6.2f}" for value in (*trial.auroc.values(), trial.mean))
        print(f"{row}  {tuning.describe(args.detector, trial.options)}")
    for options, reason in skipped.items():
        print(f"left out {options}: {reason}")
    print(f"\nchosen: --set {tuning.describe(args.detector, trials[0].options)}")


def test_sets(args: argparse.Namespace) -> list[sources.ImageSet]:
    """The benchmark's test sets, of all protocols, as far as they are on this machine."""
    found = {}
    for protocol in preprocessing.PROTOCOLS:
        table = benchmarks.resolve(
            args.dataset, protocol, args.data_dir, args.ood_root, allow_missing=True, fetch=False
        )
        for image_set in (table.test, *(o.images for o in table.ood)):
            found[image_set.fingerprint] = image_set
    return list(found.values())


def load(image_set: sources.ImageSet, transform) -> tuple[np.ndarray, np.ndarray]:
    """All images of a set and their labels, in memory."""
    parts = [
        (b.images[b.mask], b.labels[b.mask]) for b in pipeline.batches(image_set, transform, 64)
    ]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def parse_grid(detector: str, texts: list[str]) -> dict[str, list] | None:
    """`k=1,5` -> {"k": [1, 5]}; None where there is none."""
    grid = {}
    for text in texts:
        option, values = evaluate.pair(text, "--grid", "OPTION=VALUE,VALUE")
        parsed = [evaluate.parse_options([f"{detector}.{option}={v}"]) for v in values.split(",")]
        grid |= {key: [p[detector][key] for p in parsed] for key in parsed[0][detector]}
    return grid or None
