"""Convert a published checkpoint (PyTorch, safetensors, Google's BiT .npz) into one of si_jax.

python scripts/convert.py resnet34.pth --model resnet34 --out checkpoints/resnet34
"""

import argparse
from pathlib import Path

import numpy as np

import si_jax
from si_jax import cli
from si_jax.models import ARCHITECTURES, NORMALISATIONS


def main(argv: list[str] | None = None) -> None:
    """Convert, save, reload and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", help="a .pth, .pt, .th, .tar, .safetensors or .npz file")
    add("--model", required=True, help=f"one of {', '.join(ARCHITECTURES)}")
    add("--out", required=True, help="checkpoint directory to write")
    add("--normalisation", help=f"what the network was trained with: {', '.join(NORMALISATIONS)}")
    add("--input-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    args = parser.parse_args(argv)

    if Path(args.out).exists():
        raise ValueError(f"{args.out} exists already: choose another directory or remove it")
    model = si_jax.convert_torch(
        args.model, args.file, input_size=args.input_size, normalisation=args.normalisation
    )
    images = np.random.default_rng(0).normal(size=(2, *model.image_shape)).astype(np.float32)
    expected = model.logits(images, batch_size=2)
    if not np.isfinite(expected).all():
        raise ValueError(f"{args.file}: the network's logits are not finite; nothing was written")
    path = si_jax.save_checkpoint(args.out, model)
    found = si_jax.load_model(path).logits(images, batch_size=2)
    if not np.array_equal(found, expected):
        raise ValueError(f"{path}: the logits changed on the way through the file; do not use it")
    mean, std = model.mean, model.std
    print(f"model         {model.name}, {model.num_classes} classes")
    print(f"parameters    {model.num_parameters:,}")
    print(f"input         {model.input_size[0]}x{model.input_size[1]}")
    print(f"normalisation {model.card['normalisation']}: mean {mean}, deviation {std}")
    print(f"logits        of random input equal after reloading ({expected.min():.3g} to"
          f" {expected.max():.3g})")  # fmt: skip
    print(f"saved         {path}")


if __name__ == "__main__":
    cli.run(main)
