"""Write a saved detector as one file that runs without this library.

si-jax export my_detector --out detector.jaxexport
si-jax export my_detector --out detector.jaxexport --platforms cpu cuda

The file is a program for JAX, made by jax.export; what is printed loads it.
"""

from pathlib import Path

from si_jax import cli
from si_jax.decision.export import LOADER, PLATFORMS, export_jax
from si_jax.detectors.loading import load_detector


def main(argv: list[str] | None = None) -> None:
    """Export and print how to run it."""
    parser = cli.parser("export", __doc__)
    add = parser.add_argument
    add("detector", help="a saved detector's directory, or a bundled one: digits")
    add("--out", required=True, metavar="FILE", help="file to write")
    add("--platforms", nargs="+", default=PLATFORMS, choices=PLATFORMS, help="default: all")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.is_dir():
        raise ValueError(f"{out} is a directory: give a file")
    detector = load_detector(args.detector)
    export_jax(detector, out, platforms=args.platforms)
    shape = "x".join(map(str, detector.model.image_shape))
    print(f"saved {out}, {out.stat().st_size / 1e6:.1f} MB: uint8 images (any number, {shape})")
    print(f"\nTo run it, jax, numpy and flatbuffers are enough:\n\n{LOADER}", end="")
