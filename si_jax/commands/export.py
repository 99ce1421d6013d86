"""Write a saved detector as one file that runs without this library.

si-jax export my_detector --out detector.jaxexport
si-jax export my_detector --out detector.jaxexport --platforms cpu cuda
si-jax export my_detector --out detector.onnx

The file is a program for JAX, made by jax.export; or, by the ending .onnx, one for runtimes of
ONNX, which not every detector has. What is printed loads it.
"""

from pathlib import Path

from si_jax import cli
from si_jax.decision.export import LOADER, ONNX, ONNX_LOADER, PLATFORMS, export_jax, export_onnx
from si_jax.detectors.loading import load_detector


def main(argv: list[str] | None = None) -> None:
    """Export and print how to run it."""
    parser = cli.parser("export", __doc__)
    add = parser.add_argument
    add("detector", help="a saved detector's directory, or a bundled one: digits")
    add("--out", required=True, metavar="FILE", help="file to write")
    add("--platforms", nargs="+", choices=PLATFORMS, help="of a program for JAX; default: all")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.is_dir():
        raise ValueError(f"{out} is a directory: give a file")
    is_onnx = out.suffix.lower() == ONNX
    if is_onnx and args.platforms:
        raise ValueError("--platforms is for programs for JAX: ONNX has none, so leave it out")
    detector = load_detector(args.detector)
    if is_onnx:
        export_onnx(detector, out)
        needs, loader = "onnxruntime is enough", ONNX_LOADER
    else:
        export_jax(detector, out, platforms=args.platforms or PLATFORMS)
        needs, loader = "jax, numpy and flatbuffers are enough", LOADER
    shape = "x".join(map(str, detector.model.image_shape))
    print(f"saved {out}, {out.stat().st_size / 1e6:.1f} MB: uint8 images (any number, {shape})")
    print(f"\nTo run it, {needs}:\n\n{loader}", end="")
