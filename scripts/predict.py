"""Do what `si-jax predict` does (`si_jax/commands/predict.py`)."""

from si_jax import cli
from si_jax.commands.predict import main

if __name__ == "__main__":
    cli.run(main)
