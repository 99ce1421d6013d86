"""Convert a published checkpoint (PyTorch, safetensors, Google's BiT .npz) into one of si_jax.

si-jax convert resnet34.pth --model resnet34 --out checkpoints/resnet34
"""

from functools import partial

from si_jax.commands.options import command
from si_jax.weights.convert import convert_checkpoint, convert_torch


@command("si-jax convert", convert_torch)
def main(convert: partial, file: str, /, *, model: str, out: str) -> None:
    """Convert, save, reload and compare.

    Args:
        file: a .pth, .pt, .th, .tar, .safetensors or .npz file.
        model: its architecture, such as resnet34 or imagenet_resnet50; a wrong one lists all.
        out: checkpoint directory to write.
    """
    print(convert_checkpoint(model, file, out, **convert.keywords))
