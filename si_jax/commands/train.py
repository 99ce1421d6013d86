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
import datetime
import os
import platform
import shutil
from pathlib import Path

import jax
import numpy as np

import si_jax
from si_jax import cli
from si_jax.data import training_sets
from si_jax.data.digits import SIZE
from si_jax.data.preprocessing import Preprocessing
from si_jax.models import NORMALISATIONS
from si_jax.training import training

Recipe = training.Recipe
DEFAULTS = {
    "digits": ("resnet8", Recipe(epochs=40, batch_size=100, crop_padding=3, flip=False)),
    "cifar10": ("resnet34", Recipe(epochs=100)),
    "cifar100": ("resnet34", Recipe(epochs=100)),
}
FINE_TUNING = Recipe(epochs=10, batch_size=64, learning_rate=0.01, weight_decay=0.0)
LICENCES = {
    "digits": "scikit-learn's handwritten digits (UCI, CC BY 4.0), enlarged to 32x32",
    "cifar10": "CIFAR-10 (Krizhevsky, 2009; published without a licence, to be cited)",
    "cifar100": "CIFAR-100 (Krizhevsky, 2009; published without a licence, to be cited)",
}
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
    add("--data-dir", help="directory of TFDS sets")
    add("--max-gib", type=float, default=8.0, help="memory that the images may take, in GiB")
    add("--store", choices=("float32", "bfloat16", "float16"), default="float32",
        help="dtype of the saved weights")  # fmt: skip
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
    out = Path(args.out)
    if out.exists():
        raise ValueError(f"{out} exists already: choose another --out, or remove it")
    given = {
        field.name: value
        for field in dataclasses.fields(Recipe)
        if (value := getattr(args, field.name)) is not None
    }
    name, recipe = DEFAULTS.get(args.dataset, (None, FINE_TUNING if args.init else Recipe(100)))
    recipe = dataclasses.replace(FINE_TUNING if args.init else recipe, **given)
    sets = training_sets.find(args.dataset, args.data_dir, seed=recipe.seed)
    size, model = network(args, name, sets, recipe.seed)
    if args.crop_padding is None and size[0] != SIZE:
        recipe = dataclasses.replace(recipe, crop_padding=size[0] // 8)
    # images of the network's size already are left as they are
    transform = Preprocessing(resize=min(size), crop=size)
    load = [(s, transform, (*size, 3)) for s in (sets.train, sets.held_out)]
    images, held_out = (training_sets.load(*x, max_gib=args.max_gib) for x in load)
    if args.dataset == "digits" and not args.init:
        mean, std = normalisation(images[0])
        model = dataclasses.replace(
            model, mean=mean, std=std, card={**model.card, "mean": mean, "std": std}
        )

    run = out.with_name(out.name + ".run")
    model = training.train(model, *images, recipe, held_out=held_out, directory=run)
    log = (run / "log.csv").read_text()
    seconds = sum(float(line.rsplit(",", 1)[-1]) for line in log.splitlines()[1:])
    model = stored(model, args.store)
    accuracy = training.accuracy(model, *held_out)
    card = {
        **model.card,
        "data": LICENCES.get(args.dataset, sets.name),
        "split": sets.split,
        "accuracy": accuracy,
        "command": cli.command_line("train", argv),
        "starts_from": args.init or "fresh weights",
        "recipe": dataclasses.asdict(recipe),
        "stored_as": args.store,
        "seed": recipe.seed,
        "seconds": round(seconds),
        "hardware": hardware(),
        "licence": "that of si_jax for the weights; the data's own terms for the data",
        "versions": cli.versions(),
        "date": datetime.date.today().isoformat(),
    }
    model = dataclasses.replace(model, card=card)
    path = si_jax.save_checkpoint(out, model, dtype=args.store)
    (path / "log.csv").write_text(log)
    shutil.rmtree(run)
    print(f"accuracy on {len(held_out[1])} held-out images: {accuracy:.2%}, in {seconds:.0f} s")
    print(f"saved to {path}")


def network(
    args: argparse.Namespace, default: str | None, sets: training_sets.TrainingSets, seed: int
) -> tuple[tuple[int, int], si_jax.Model]:
    """The images' size, and the network to start from."""
    size = None if args.input_size is None else (args.input_size, args.input_size)
    if args.init:
        if args.model:
            raise ValueError("--model and --init exclude each other: give one of them")
        model = si_jax.load_model(args.init)
        size = size or tuple(model.input_size)
        if args.new_head:
            model = si_jax.with_new_head(model, sets.num_classes)
        elif model.num_classes != sets.num_classes:
            raise ValueError(
                f"checkpoint {args.init} has {model.num_classes} classes, but {sets.name} has"
                f" {sets.num_classes}: add --new-head to replace its head"
            )
        card = {**model.card, "input_size": list(size)}
        return size, dataclasses.replace(model, input_size=size, card=card)
    name = args.model or default
    if name is None:
        raise ValueError("an image folder needs --model NAME or --init CHECKPOINT")
    mean, std = NORMALISATIONS.get(args.dataset, (None, None))
    model = si_jax.build_model(
        name, sets.num_classes, seed=seed, input_size=size, mean=mean, std=std
    )
    return tuple(model.input_size), model


def stored(model: si_jax.Model, dtype: str) -> si_jax.Model:
    """The model with its weights rounded as they are stored, so that its accuracy is theirs."""
    variables = jax.tree.map(
        lambda x: np.asarray(jax.numpy.asarray(x).astype(dtype).astype(x.dtype)), model.variables
    )
    return dataclasses.replace(model, variables=variables)


def normalisation(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of the training images, to four digits."""
    scaled = images.reshape(-1, images.shape[-1]) / 255
    return tuple(
        tuple(round(float(x), 4) for x in values) for values in (scaled.mean(0), scaled.std(0))
    )


def hardware() -> str:
    """What the weights were trained on."""
    devices = jax.local_devices()
    cores = f", {os.cpu_count()} cores" if devices[0].platform == "cpu" else ""
    return f"{len(devices)} x {devices[0].device_kind} ({platform.machine()}{cores})"
