"""What S&I-C is worth on networks without ReLU, beside other detectors.

python scripts/study_without_relu.py

Trains a small ViT, a ConvNeXt and a SiLU network on the digits, some minutes on two cores, and
prints AUROC: mean over the sets (and each of them), averaged over the seeds.
"""

import argparse
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Int, UInt8
from tqdm import trange

import si_jax
from si_jax import cli, splitting
from si_jax.data import digits
from si_jax.evaluation.results import Results

WIDTH = 32


class TinyViT(nn.Module):
    """A Vision Transformer: class token, LayerNorm, attention, GELU."""

    layers: int = 2

    @nn.compact
    def __call__(self, x):
        """Logits of images."""
        x = nn.Conv(WIDTH, (8, 8), strides=8, name="patches")(x)
        x = x.reshape(x.shape[0], -1, WIDTH)
        small = nn.initializers.normal(0.02)
        token = self.param("token", small, (1, 1, WIDTH))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("positions", small, (1, x.shape[1], WIDTH))
        for i in range(self.layers):
            y = nn.LayerNorm(name=f"norm{i}a")(x)
            x = x + nn.MultiHeadDotProductAttention(4, name=f"attention{i}")(y, y)
            y = nn.Dense(3 * WIDTH, name=f"up{i}")(nn.LayerNorm(name=f"norm{i}b")(x))
            x = x + nn.Dense(WIDTH, name=f"down{i}")(nn.gelu(y))
        return nn.Dense(digits.CLASSES, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


class TinyConvNeXt(nn.Module):
    """Depthwise 3x3 convolutions, LayerNorm, and GELU between two 1x1 ones."""

    blocks: int = 2

    @nn.compact
    def __call__(self, x):
        """Logits of images."""
        x = nn.LayerNorm(name="stem_norm")(nn.Conv(WIDTH, (4, 4), strides=4, name="stem")(x))
        for i in range(self.blocks):
            y = nn.Conv(WIDTH, (3, 3), feature_group_count=WIDTH, name=f"depthwise{i}")(x)
            y = nn.Dense(3 * WIDTH, name=f"up{i}")(nn.LayerNorm(name=f"norm{i}")(y))
            x = x + nn.Dense(WIDTH, name=f"down{i}")(nn.gelu(y, approximate=False))
        return nn.Dense(digits.CLASSES, name="head")(nn.LayerNorm(name="norm")(x.mean((1, 2))))


class TinySiLU(nn.Module):
    """Strided 3x3 convolutions, each with a GroupNorm and a SiLU."""

    widths: tuple[int, ...] = (16, 24, 32)

    @nn.compact
    def __call__(self, x):
        """Logits of images."""
        for i, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), strides=2, name=f"conv{i}")(x)
            x = nn.silu(nn.GroupNorm(8, name=f"norm{i}")(x))
        return nn.Dense(digits.CLASSES, name="head")(x.mean((1, 2)))


NETWORKS: dict[str, type[nn.Module]] = {
    "ViT, GELU": TinyViT,
    "ConvNeXt, GELU": TinyConvNeXt,
    "convolutions, SiLU": TinySiLU,
}

DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("msp", "energy", "knn", "mahalanobis")},
    "vim": ("vim", {"dim": 16}),
    "gaia-a": ("gaia-a", {}),
    "si-c": ("si-c", {}),
    "si-c without zero-deflation": ("si-c", {"components": "energy,channel-average"}),
    "si-c-forward": ("si-c-forward", {}),
    "si-c-forward without zero-deflation": ("si-c-forward", {"components": "energy"}),
}
"""Row of the table -> detector and options."""

OOD = ("letters", "shuffled", "photos", "noise")


def fine_tune(
    model: si_jax.Model,
    images: UInt8[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, "n"],
    *,
    steps: int = 300,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> si_jax.Model:
    """The model with the weights under `"params"` fitted to labelled images, as it infers.

    Adam on the cross-entropy, whose rate falls to zero as a half cosine; statistics of a BatchNorm
    stay as they are. A `ValueError` if the loss becomes NaN.
    """
    rest = {name: tree for name, tree in model.variables.items() if name != "params"}
    params = jax.tree.map(jnp.array, model.variables["params"])  # copies, which may be donated
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def objective(params, images, labels):
        variables = {**rest, "params": params}
        logits = splitting.forward(model, variables, model.normalise(images)).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, images, labels):
        loss, gradient = jax.value_and_grad(objective)(params, images, labels)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, loss = optimiser.init(params), np.float32(0)
    rng = np.random.default_rng(seed)
    for _ in trange(steps, desc="fine-tuning", unit="step", delay=2):
        rows = rng.integers(0, len(images), batch_size)
        params, state, loss = step(params, state, images[rows], labels[rows])
    if not np.isfinite(loss):
        raise ValueError(f"the loss is {loss} after {steps} steps: lower learning_rate")
    return dataclasses.replace(model, variables={**rest, "params": jax.device_get(params)})


@functools.cache
def trained(name: str, *, steps: int = 300, seed: int = 0) -> si_jax.Model:
    """A network of `NETWORKS`, trained on the digits."""
    module = NETWORKS[name]()
    variables = module.init(jax.random.key(seed), jnp.zeros((1, digits.SIZE, digits.SIZE, 3)))
    model = si_jax.Model(module, variables, digits.SIZE, (0.5,) * 3, (0.5,) * 3, name=name)
    return fine_tune(model, *digits.load("train"), steps=steps, learning_rate=2e-3, seed=seed)


def measure(
    name: str, seeds: Iterable[int] = (0, 1, 2), *, steps: int = 300, count: int = 500
) -> tuple[float, dict[str, dict[str, float]]]:
    """Accuracy of a network on the test digits, and AUROC of each detector on each set.

    Args:
        name: a key of `NETWORKS`.
        seeds: of the networks that are trained, over which all numbers are averaged.
        steps: of training.
        count: images of each out-of-distribution set.

    Returns:
        A share, and row of `DETECTORS` -> set of `OOD` -> AUROC, a share.
    """
    sets = {kind: getattr(digits, kind)(count) for kind in OOD}
    train, test = digits.load("train"), digits.load("test")
    found = []
    for seed in seeds:
        model = trained(name, steps=steps, seed=seed)
        options: dict[str, Any] = {"id_set": {"digits": test}, "train_set": train}
        run = si_jax.evaluate_benchmark(None, model, detectors=DETECTORS, ood=sets, **options)
        found.append(cast(Results, run.results))
    mean = {
        row: {k: float(np.mean([one.results[row][k]["auroc"] for one in found])) for k in OOD}
        for row in DETECTORS
    }
    return float(np.mean([one.accuracy for one in found])), mean


def table(measured: Mapping[str, tuple[float, Mapping[str, Mapping[str, float]]]]) -> str:
    """A Markdown table: AUROC in per cent of each detector, averaged over the sets, by network."""
    heads = [f"{name} ({100 * accuracy:.1f} %)" for name, (accuracy, _) in measured.items()]
    lines = ["| AUROC, mean of " + ", ".join(OOD) + " | " + " | ".join(heads) + " |"]
    lines.append("| --- |" + " --- |" * len(heads))
    for row in DETECTORS:
        cells = []
        for _, results in measured.values():
            values = [100 * results[row][kind] for kind in OOD]
            cells.append(f"{np.mean(values):.1f} ({' '.join(f'{v:.0f}' for v in values)})")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings per network; default 3")
    parser.add_argument("--steps", type=int, default=300, help="of training; default 300")
    args = parser.parse_args(argv)
    seeds = range(args.seeds)
    print(table({name: measure(name, seeds, steps=args.steps) for name in NETWORKS}))


if __name__ == "__main__":
    cli.run(main)
