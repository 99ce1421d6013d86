"""Train a classifier, or fine-tune one, and save it as a checkpoint.

si-jax train --dataset digits --out checkpoints/digits
si-jax train --dataset cifar100 --model resnet34 --out checkpoints/cifar100_resnet34
si-jax train --dataset FOLDER --init checkpoints/bit --new-head --out checkpoints/mine

The same command resumes a run that was interrupted.

Measured (accuracy on the test images):

- digits, resnet8, seed 0: 98.99 % in 3 minutes on two CPU cores
- cifar100, resnet20, --epochs 16 --batch-size 64, seed 0: 63.05 % in 116 minutes on two CPU cores
  that were busy with other work too (2.9 steps/s, 72 minutes, while they were not)

The defaults for CIFAR (resnet34, 100 epochs) are for an accelerator and have not been measured.
"""

import argparse
import dataclasses
from pathlib import Path

from si_jax import cli
from si_jax.commands import options
from si_jax.training.train_checkpoint import DEFAULTS, STORES, OtherClasses, train_checkpoint
from si_jax.training.training import Recipe

HELP = {
    "epochs": "passes over the images",
    "batch_size": "images per step",
    "learning_rate": "peak of the schedule",
    "warmup": "share of the steps spent warming up",
    "momentum": "Nesterov momentum",
    "weight_decay": "on kernels",
    "label_smoothing": "share of the target spread over the classes",
    "ema": "decay of the weights' moving average; 0 for none",
    "crop_padding": "pixels around the image before the random crop",
    "flip": "mirror half of the images",
    "bfloat16": "compute in bfloat16",
    "seed": "of weights, order and augmentation",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; options of the recipe are None where they are not given."""
    parser = cli.parser("train", __doc__)
    add = parser.add_argument
    add("--dataset", default="digits", help="digits, cifar10, cifar100 or a folder of images")
    add("--out", required=True, help="checkpoint directory to write")
    add("--model", help="architecture; default: the data set's own")
    add("--init", help="checkpoint to start from, in place of --model")
    add("--new-head", action="store_true", help="replace the head of --init by one of zeros")
    add("--input-size", type=int, help="side of the images, in pixels; default: the network's")
    options.add_data_dir(parser)
    add("--max-gib", type=float, default=8.0, help="memory that the images may take, in GiB")
    add("--store", choices=STORES, default="float32",
        help="dtype of the saved weights; default float32")  # fmt: skip
    for field in dataclasses.fields(Recipe):
        kind = (
            {"action": argparse.BooleanOptionalAction}
            if field.type is bool
            else {"type": field.type}
        )
        add(f"--{field.name.replace('_', '-')}", default=None, help=HELP[field.name], **kind)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train, evaluate and save."""
    args = parse(argv)
    if args.model and args.init:
        raise ValueError("--model and --init exclude each other: give one of them")
    if not (args.model or args.init or args.dataset in DEFAULTS):
        raise ValueError("an image folder needs --model NAME or --init CHECKPOINT")
    if Path(args.out).exists():
        raise ValueError(f"{args.out} exists already: choose another --out, or remove it")
    recipe = {
        field.name: value
        for field in dataclasses.fields(Recipe)
        if (value := getattr(args, field.name)) is not None
    }
    try:
        trained = train_checkpoint(
            args.dataset,
            args.out,
            architecture=args.model,
            init=args.init,
            new_head=args.new_head,
            input_size=args.input_size,
            data_dir=args.data_dir,
            max_gib=args.max_gib,
            store=args.store,
            command=cli.command_line("train", argv),
            **recipe,
        )
    except OtherClasses as error:
        raise ValueError(f"{error}: add --new-head to replace its head") from None
    print(trained)
