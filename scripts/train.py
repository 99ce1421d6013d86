"""Train or fine-tune a classifier, as `si-jax train` does (`si_jax/commands/train.py`)."""

from si_jax import cli
from si_jax.commands.train import main

if __name__ == "__main__":
    cli.run(main)
