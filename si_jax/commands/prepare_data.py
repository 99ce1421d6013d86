"""Bring the public sets of a benchmark to this machine, where `si-jax evaluate` finds them.

si-jax prepare-data --dataset cifar100
si-jax prepare-data --dataset imagenet --protocol openood --data-dir /data
si-jax prepare-data --list
si-jax prepare-data --order ILSVRC2012_img_val --labels val.txt      # into imagenet/val, by links

Nothing is asked. What is there stays; a download that was interrupted is resumed.
"""

import argparse
import textwrap

from si_jax import cli
from si_jax.commands import options
from si_jax.data import downloads, roots
from si_jax.data.imagenet import LABEL_FILES, order_by_class
from si_jax.data.tables import BENCHMARKS


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("prepare-data", __doc__)
    add = parser.add_argument
    add("--dataset", help=f"benchmark: {', '.join(BENCHMARKS)}")
    options.add_protocol(parser)
    options.add_data_dir(parser)
    add("--full-spectrum", action="store_true", help="its covariate-shifted sets as well")
    add("--order", metavar="FOLDER", help="ImageNet's flat validation folder: bring it into"
        " imagenet/val of the data folder, a folder a class, by links")  # fmt: skip
    add("--labels", metavar="FILE", help=f"the labels of --order: {', '.join(LABEL_FILES)}")
    add("--list", action="store_true", help="print every set with source and terms, and leave")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Bring and tell."""
    args = parse(argv)
    if args.list:
        return list_downloads()
    if args.order is not None:
        return order(args)
    if args.dataset is None:
        raise ValueError("--dataset says which benchmark's sets to bring; --list shows all sets")
    root = roots.folders_root(args.data_dir)
    print(f"data folder: {root}\n")
    outcomes = []
    for outcome in downloads.prepare(
        args.dataset, args.protocol, args.data_dir, full_spectrum=args.full_spectrum
    ):
        outcomes.append(outcome)
        count = f"{outcome.images:6d} images" if outcome.images else " " * 13
        print(f"{outcome.name:22} {outcome.state:8} {count}  {outcome.detail}", flush=True)
    print()
    option = f" --data-dir {args.data_dir}" if args.data_dir else ""
    option = " --full-spectrum" * args.full_spectrum + option
    command = f"si-jax evaluate --dataset {args.dataset} --protocol {args.protocol}{option}"
    if lacking := [outcome.name for outcome in outcomes if outcome.state in ("failed", "by hand")]:
        raise ValueError(
            f"{len(lacking)} of {len(outcomes)} sets are lacking ({', '.join(lacking)}); the table"
            " says why. Run this again once that is mended; what has come is kept. Without them:"
            f" {command} --allow-missing"
        )
    print(f"all is there; now: {command}")


def order(args: argparse.Namespace) -> None:
    """Bring ImageNet's validation images into class folders."""
    if args.labels is None:
        forms = "; ".join(f"{name} ({what})" for name, what in LABEL_FILES.items())
        raise ValueError(f"--order needs --labels FILE, one of: {forms}")
    target = roots.folders_root(args.data_dir) / "imagenet/val"
    images, classes = order_by_class(args.order, args.labels, target)
    print(f"{target}: links to {images} images in {classes} class folders")


def list_downloads() -> None:
    """Print every set that can be downloaded."""
    for name, download in downloads.DOWNLOADS.items():
        source = download.address
        if source.startswith(downloads.DRIVE):
            source = f"Google Drive, {source.removeprefix(downloads.DRIVE)}"
        print(f"{name}: {download.holds}; terms: {download.terms}")
        print(f"    from {source}")
        print(f"    to   {download.folder}; MD5 {download.md5 or 'recorded at the first download'}")
    others = (
        "Sets that TensorFlow Datasets has prepared are taken as they are. ImageNet has to be"
        " fetched by hand from https://image-net.org, after signing in."
    )
    print(textwrap.fill(others, 100))
