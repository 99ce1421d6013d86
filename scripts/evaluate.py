"""Evaluate detectors on a benchmark, as `si-jax evaluate` does (`si_jax/commands/evaluate.py`)."""

from si_jax import cli
from si_jax.commands.evaluate import main

if __name__ == "__main__":
    cli.run(main)
