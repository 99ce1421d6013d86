"""Do what `si-jax calibrate` does (`si_jax/commands/calibrate.py`)."""

from si_jax import cli
from si_jax.commands.calibrate import main

if __name__ == "__main__":
    cli.run(main)
