"""Choose a detector's options, as `si-jax tune` does (`si_jax/commands/tune.py`)."""

from si_jax import cli
from si_jax.commands.tune import main

if __name__ == "__main__":
    cli.run(main)
