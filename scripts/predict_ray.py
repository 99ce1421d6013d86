"""Predict any number of images with several workers, by Ray Data, into Parquet files.

python scripts/predict_ray.py my_detector photos/ --out predictions
python scripts/predict_ray.py my_detector images.parquet --out predictions --workers 8 --gpus 1

The same command again goes on with the parts that are not finished. On a cluster, RAY_ADDRESS
tells where it is, and all paths must be reachable from every machine.
"""

import argparse
import os

from si_jax import cli
from si_jax.commands import options
from si_jax.decision.parts import PART_SIZE, predict_with_ray


def main(argv: list[str] | None = None) -> None:
    """Predict and print how many."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("detector", help="a saved detector's directory, or a bundled one: digits")
    add("paths", nargs="+", metavar="PATH", help="folders, globs or files; or Parquet files")
    add("--out", required=True, metavar="DIR", help="where the parts are written")
    add("--workers", type=int, default=2, help="processes, each with the network; default 2")
    add("--gpus", type=float, default=0, help="GPUs of each worker; default 0")
    add("--part-size", type=int, default=PART_SIZE, help=f"files of a part; default {PART_SIZE}")
    add("--column", default="image", help="of Parquet files that holds the images' bytes")
    args = parser.parse_args(argv)
    options.check_least(args, workers=1)
    try:
        import ray
    except ImportError:
        raise ValueError('workers need Ray: pip install "si-jax[ray]"') from None
    if not ray.is_initialized():
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": args.workers + 1}
        ray.init(include_dashboard=False, log_to_driver=False, **local)
    done = predict_with_ray(
        args.paths,
        args.detector,
        args.out,
        workers=args.workers,
        part_size=args.part_size,
        column=args.column,
        **({"num_gpus": args.gpus} if args.gpus else {}),
    )
    print(
        "{rows} images in {parts} parts, {unreadable} unreadable; {skipped} parts were there"
        " already".format(**done)
    )


if __name__ == "__main__":
    cli.run(main)
