"""Rebuild or compare reports, as `si-jax report` does (`si_jax/commands/report.py`)."""

from si_jax import cli
from si_jax.commands.report import main

if __name__ == "__main__":
    cli.run(main)
