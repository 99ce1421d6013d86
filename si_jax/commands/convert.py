"""Convert a published checkpoint (PyTorch, safetensors, Google's BiT .npz) into one of si_jax.

si-jax convert resnet34.pth --model resnet34 --out checkpoints/resnet34
"""

from si_jax import cli
from si_jax.commands.options import add_file_options
from si_jax.models import ARCHITECTURES, NORMALISATIONS
from si_jax.weights.convert_checkpoint import convert_checkpoint


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
    converted = convert_checkpoint(
        args.model,
        args.file,
        args.out,
        input_size=tuple(args.input_size) if args.input_size else None,
        normalisation=args.normalisation,
        mean=args.mean,
        std=args.std,
        part=args.part,
    )
    print(converted)
