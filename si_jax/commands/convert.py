"""Convert a published checkpoint (PyTorch, safetensors, Google's BiT .npz) into one of si_jax.

si-jax convert resnet34.pth --model resnet34 --out checkpoints/resnet34
"""

import shutil
from pathlib import Path

import jax
import numpy as np

import si_jax
from si_jax import cli
from si_jax.commands.options import add_file_options
from si_jax.models import ARCHITECTURES, NORMALISATIONS


def main(argv: list[str] | None = None) -> None:
    """Convert, save, reload and compare."""
    parser = cli.parser("convert", __doc__)
    add = parser.add_argument
    add("file", help="a .pth, .pt, .th, .tar, .safetensors or .npz file")
    add("--model", required=True, help=f"one of {', '.join(ARCHITECTURES)}")
    add("--out", required=True, help="checkpoint directory to write")
    add("--normalisation", help=f"what the network was trained with: {', '.join(NORMALISATIONS)}")
    add_file_options(parser)
    add(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images, in pixels",
    )
    args = parser.parse_args(argv)

    if Path(args.out).exists():
        raise ValueError(f"{args.out} exists already: choose another directory or remove it")
    size = tuple(args.input_size) if args.input_size else None
    model = si_jax.convert_torch(
        args.model,
        args.file,
        input_size=size,
        normalisation=args.normalisation,
        mean=args.mean,
        std=args.std,
        part=args.part,
    )
    images = np.random.default_rng(0).normal(size=(2, *model.image_shape)).astype(np.float32)
    expected = model.logits(images, batch_size=2)
    path = si_jax.save_checkpoint(args.out, model)
    try:
        difference = reload_and_compare(path, model, images, expected)
    except BaseException:
        shutil.rmtree(path)
        raise
    mean, std = model.mean, model.std
    print(f"model         {model.name}, {model.num_classes} classes")
    print(f"parameters    {model.num_parameters:,}")
    print(f"input         {model.input_size[0]}x{model.input_size[1]}")
    print(f"normalisation {model.card['normalisation']}: mean {mean}, deviation {std}")
    print(f"weights       {len(jax.tree.leaves(model.variables))} arrays, equal after reloading")
    print(f"logits        of random input from {expected.min():.3g} to {expected.max():.3g},")
    print(f"              after reloading within {difference:.1g}")
    for note in model.card["notes"]:
        print(f"note          {note}")
    print(f"saved         {path}")


def reload_and_compare(
    path: Path, model: si_jax.Model, images: np.ndarray, expected: np.ndarray
) -> float:
    """Largest difference between the logits of the saved and of the converted network.

    The weights must be equal. The logits need not be, as the network is compiled anew.

    Raises:
        ValueError: if a weight differs, or the logits do by more than rounding.
    """
    saved = si_jax.load_model(path)
    same = jax.tree.map(np.array_equal, dict(saved.variables), dict(model.variables))
    difference = float(np.abs(saved.logits(images, batch_size=2) - expected).max())
    if not all(jax.tree.leaves(same)) or not difference <= 1e-4 * np.abs(expected).max():
        raise ValueError(f"{path} was not the network once read again, and has been removed")
    return difference
