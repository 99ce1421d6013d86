"""What S&I-C is worth on networks without ReLU, beside other detectors.

python scripts/study_without_relu.py

Trains a small ViT, a ConvNeXt and a SiLU network on the digits, some minutes on two cores, and
prints AUROC: mean over the sets (and each of them), averaged over the seeds.
"""

import argparse

from si_jax import cli
from study import without_relu


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings per network; default 3")
    parser.add_argument("--steps", type=int, default=300, help="of training; default 300")
    args = parser.parse_args(argv)
    measured = {
        name: without_relu.measure(name, range(args.seeds), steps=args.steps)
        for name in without_relu.NETWORKS
    }
    print(without_relu.table(measured))


if __name__ == "__main__":
    cli.run(main)
