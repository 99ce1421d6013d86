"""Train a classifier, or fine-tune one, and save it as a checkpoint.

si-jax train --dataset digits --out checkpoints/digits
si-jax train --dataset cifar100 --model resnet34 --out checkpoints/cifar100_resnet34
si-jax train --dataset FOLDER --init checkpoints/bit --new-head --out checkpoints/mine

The same command resumes a run that was interrupted. The recipe's defaults below, with
--epochs 100, are those of CIFAR and of folders. Digits have others: --epochs 40 --batch-size 100
--crop-padding 3 --no-flip; and so has --init: --epochs 10 --batch-size 64 --learning-rate 0.01
--weight-decay 0.

Measured (accuracy on the test images):

- digits, resnet8, seed 0: 98.99 % in 3 minutes on two CPU cores
- cifar100, resnet20, --epochs 16 --batch-size 64, seed 0: 63.05 % in 116 minutes on two CPU cores
  that were busy with other work too (2.9 steps/s, 72 minutes, while they were not)

The defaults for CIFAR (resnet34, 100 epochs) are for an accelerator and have not been measured.
"""

from functools import partial

from si_jax.commands.options import command
from si_jax.training.train_checkpoint import train_checkpoint
from si_jax.training.training import Recipe


@command("si-jax train", train_checkpoint, Recipe)
def main(
    train: partial, recipe: partial, *, dataset: str = "digits", out: str, epochs: int | None = None
) -> None:
    """Train, evaluate and save.

    Args:
        dataset: digits, cifar10, cifar100 or a folder of images.
        out: checkpoint directory to write.
        epochs: passes over the training images; default: as above.
    """
    length = {} if epochs is None else {"epochs": epochs}
    print(train(dataset, out, **recipe.keywords, **length))
