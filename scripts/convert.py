"""Convert a published checkpoint, as `si-jax convert` does (`si_jax/commands/convert.py`)."""

from si_jax import cli
from si_jax.commands.convert import main

if __name__ == "__main__":
    cli.run(main)
