"""Train the classifier of the `digits` benchmark.

    python scripts/train.py --dataset digits --out checkpoints/digits

Expected: see `checkpoints/digits/card.json`, which this command writes.
"""

import argparse
import dataclasses
import datetime
import platform
import time

import jax

import si_jax
from si_jax import cli, training
from si_jax.data import digits

RECIPES = {
    "digits": ("resnet8", training.Recipe(epochs=40, batch_size=100, crop_padding=3, flip=False)),
}


def main(argv: list[str] | None = None) -> None:
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=RECIPES, default="digits")
    parser.add_argument("--out", required=True, help="checkpoint directory to write")
    parser.add_argument("--model", help="architecture; default: the data set's own")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    name, recipe = RECIPES[args.dataset]
    recipe = dataclasses.replace(recipe, seed=args.seed, epochs=args.epochs or recipe.epochs)
    images, labels = digits.load("train")
    test_images, test_labels = digits.load("test")
    mean, std = digits_normalisation(images)
    model = si_jax.build_model(
        args.model or name, digits.CLASSES, seed=args.seed, mean=mean, std=std
    )
    start = time.perf_counter()
    model = training.train(model, images, labels, recipe)
    seconds = time.perf_counter() - start
    accuracy = training.accuracy(model, test_images, test_labels)
    print(f"accuracy on {len(test_labels)} held-out images: {accuracy:.2%}, in {seconds:.0f} s")
    command = (
        f"python scripts/train.py --dataset {args.dataset} --seed {args.seed} --out {args.out}"
    )
    card = {
        **model.card,
        "data": "scikit-learn's handwritten digits (UCI, CC BY 4.0), enlarged to 32x32",
        "split": f"{len(labels)} training and {len(test_labels)} held-out images, stratified",
        "accuracy": accuracy,
        "command": command,
        "recipe": dataclasses.asdict(recipe),
        "seed": args.seed,
        "seconds": round(seconds),
        "hardware": f"{platform.machine()} {jax.default_backend()}",
        "versions": cli.versions(),
        "date": datetime.date.today().isoformat(),
    }
    path = si_jax.save_checkpoint(args.out, dataclasses.replace(model, card=card))
    print(f"saved to {path}")


def digits_normalisation(images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of the training images, to four digits."""
    scaled = images.reshape(-1, images.shape[-1]) / 255
    return tuple(
        tuple(round(float(x), 4) for x in values) for values in (scaled.mean(0), scaled.std(0))
    )


if __name__ == "__main__":
    cli.run(main)
