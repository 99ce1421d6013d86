"""Download a benchmark, as `si-jax prepare-data` does (`si_jax/commands/prepare_data.py`)."""

from si_jax import cli
from si_jax.commands.prepare_data import main

if __name__ == "__main__":
    cli.run(main)
