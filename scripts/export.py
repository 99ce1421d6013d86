"""Do what `si-jax export` does (`si_jax/commands/export.py`)."""

from si_jax import cli
from si_jax.commands.export import main

if __name__ == "__main__":
    cli.run(main)
