"""Write a saved detector as one file that runs without this library.

si-jax export my_detector --out detector.jaxexport
si-jax export my_detector --out detector.jaxexport --platforms cpu cuda
si-jax export my_detector --out detector.onnx

The file is a program for JAX, made by jax.export; or, by the ending .onnx, one for runtimes of
ONNX, which not every detector has. What is printed loads it.
"""

from pathlib import Path
from typing import Literal

from si_jax.commands.options import command
from si_jax.decision.export import LOADER, ONNX, ONNX_LOADER, PLATFORMS, export_jax, export_onnx
from si_jax.detectors.loading import load_detector

Platform = Literal["cpu", "cuda", "tpu"]


@command("si-jax export")
def main(detector: str, /, *, out: str, platforms: list[Platform] | None = None) -> None:
    """Export and print how to run it.

    Args:
        detector: a saved detector's directory, or a bundled one: digits.
        out: file to write.
        platforms: of a program for JAX; default: all.
    """
    path = Path(out)
    if path.is_dir():
        raise ValueError(f"{path} is a directory: give a file")
    is_onnx = path.suffix.lower() == ONNX
    if is_onnx and platforms:
        raise ValueError("--platforms is for programs for JAX: ONNX has none, so leave it out")
    loaded = load_detector(detector)
    if is_onnx:
        export_onnx(loaded, path)
        needs, loader = "onnxruntime is enough", ONNX_LOADER
    else:
        export_jax(loaded, path, platforms=platforms or PLATFORMS)
        needs, loader = "jax, numpy and flatbuffers are enough", LOADER
    shape = "x".join(map(str, loaded.model.image_shape))
    print(f"saved {path}, {path.stat().st_size / 1e6:.1f} MB: uint8 images (any number, {shape})")
    print(f"\nTo run it, {needs}:\n\n{loader}", end="")
