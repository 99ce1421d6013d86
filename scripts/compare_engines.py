"""Measure whether the engines, the adversarial steps and the precision change zero-deflation.

    python scripts/compare_engines.py
    python scripts/compare_engines.py --dataset cifar10 --checkpoint checkpoints/resnet20

Everything is compared with one forward and one backward pass in float32 (`engine="gradient"`, which
is GAIA-Z on the same taps), image by image and position by position; and the closed form of two
steps that are multiplied with the general engine.
"""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

import si_jax
from si_jax import cli
from si_jax.commands.options import command
from si_jax.data import pipeline
from si_jax.data.image_set import subset
from si_jax.evaluation.job import benchmark_model
from si_jax.reporting.report import text_table

VARIANTS: dict[str, dict[str, Any]] = {
    "activation": {"engine": "activation"},
    "general, add, 0.001": {"engine": "general"},
    "general, add, 1/255": {"engine": "general", "step_size": 1 / 255},
    "general, add, 0.1": {"engine": "general", "step_size": 0.1},
    "general, multiply, 0.001": {"engine": "general", "combine": "multiply"},
    "general, multiply, 1/255": {"engine": "general", "preset": "published-defaults"},
    "general, multiply, 0.1": {"engine": "general", "combine": "multiply", "step_size": 0.1},
}


@command("python scripts/compare_engines.py", benchmark_model)
def main(
    load: partial,
    *,
    benchmark: str = "digits",
    protocol: str = "published",
    limit: int = 300,
    data_dir: str | None = None,
    ood_root: str | None = None,
    seed: int = 0,
) -> None:
    """Compare and print.

    Args:
        load: loads the network.
        benchmark: digits, cifar10, cifar100 or imagenet.
        protocol: published or openood.
        limit: test images.
        data_dir: folder of all data; default: $SI_JAX_DATA or ~/.cache/si_jax/data.
        ood_root: folder that holds folders of images; default: that of all data.
        seed: of the subset and of fresh weights.
    """
    model, _ = load(benchmark, seed=seed)()
    resolved = si_jax.find_sets(
        benchmark,
        protocol=protocol,
        data_dir=data_dir,
        ood_root=ood_root,
        allow_missing=True,
        model=model,
    )
    image_set = subset(resolved.test, limit, seed)
    batches = pipeline.batches(image_set, resolved.preprocessing, 64)
    images = np.concatenate([batch.images[batch.mask] for batch in batches])

    detector = si_jax.make_detector("si-z", model, engine="gradient")
    taps = detector.settings["taps"]
    shapes = {call.path: call.shape for call in model.calls}
    sizes = np.array([np.prod(shapes[tap]) for tap in taps])
    expected = detector.details(images)

    def details(variant: dict) -> dict:
        variant = {"tap_chunk": len(taps), "batch_size": 16, **variant}
        return si_jax.make_detector("si-z", model, **variant).details(images)

    rows, closed = [], []
    for name, variant in VARIANTS.items():
        general = details(variant)
        rows.append(row(name, general, expected, sizes))
        if "multiply" in name:
            title = name.replace("general", "closed")
            form = details({**variant, "engine": "closed"})
            closed.append(row(title, form, general, sizes))
    half = dataclasses.replace(model, module=model.module.clone(dtype=jnp.bfloat16))
    halved = si_jax.make_detector("si-z", half, engine="gradient").details(images)
    rows.append(row("gradient, in bfloat16", halved, expected, sizes))
    print(f"{model.name}, {benchmark}, {len(images)} images, {sizes.sum():,} positions each")
    header = ["compared with gradient", "images that differ", "positions", "score, relative"]
    print(text_table([*header, "rank correlation"], rows))
    header[0] = "compared with general"
    print("\n" + text_table([*header, "rank correlation"], closed))


def row(name: str, details: dict, expected: dict, sizes: np.ndarray) -> list[str]:
    """How many images and (net, per tap) positions differ, and by how much the scores do."""
    positions = np.round(np.abs(details["tap_density"] - expected["tap_density"]) * sizes)
    relative = np.abs(details["score"] / expected["score"] - 1).max()
    return [
        name,
        str(int((positions.max(axis=1) > 0).sum())),
        f"{positions.sum() / (len(positions) * sizes.sum()):.1e}",
        f"{relative:.1e}",
        f"{spearmanr(details['score'], expected['score']).statistic:.4f}",
    ]


if __name__ == "__main__":
    cli.run(main)
