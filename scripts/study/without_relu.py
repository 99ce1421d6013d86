"""What detectors are worth on networks without ReLU: small ones, trained on the digits."""

import functools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from si_jax.data import digits
from si_jax.detectors import make_detector
from si_jax.evaluation.metrics import auroc
from si_jax.evaluation.scoring import Scorer
from si_jax.model import Model
from study.fine_tuning import fine_tune

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

DETECTORS: dict[str, tuple[str, Mapping]] = {
    "msp": ("msp", {}),
    "energy": ("energy", {}),
    "knn": ("knn", {}),
    "mahalanobis": ("mahalanobis", {}),
    "vim": ("vim", {"dim": 16}),
    "gaia-a": ("gaia-a", {}),
    "si-c": ("si-c", {}),
    "si-c without zero-deflation": ("si-c", {"components": "energy,channel-average"}),
    "si-c-forward": ("si-c-forward", {}),
    "si-c-forward without zero-deflation": ("si-c-forward", {"components": "energy"}),
}
"""Row of the table -> detector and options."""

OOD = ("letters", "shuffled", "photos", "noise")


@functools.cache
def trained(name: str, *, steps: int = 300, seed: int = 0) -> Model:
    """A network of `NETWORKS`, trained on the digits."""
    module = NETWORKS[name]()
    variables = module.init(jax.random.key(seed), jnp.zeros((1, digits.SIZE, digits.SIZE, 3)))
    model = Model(module, variables, digits.SIZE, (0.5,) * 3, (0.5,) * 3, name=name)
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
    train, labels = digits.load("train")
    test, classes = digits.load("test")
    sets = {kind: getattr(digits, kind)(count) for kind in OOD}
    accuracy, values = [], []
    for seed in seeds:
        model = trained(name, steps=steps, seed=seed)
        accuracy.append(np.mean(model.logits(test).argmax(-1) == classes))
        scorer = Scorer(
            {
                row: make_detector(key, model, **options).fit(train, labels, progress=False)
                for row, (key, options) in DETECTORS.items()
            }
        )
        in_distribution = scorer(test)
        ood = {kind: scorer(images) for kind, images in sets.items()}
        values.append(
            {
                row: {k: auroc(in_distribution[row]["score"], ood[k][row]["score"]) for k in OOD}
                for row in DETECTORS
            }
        )
    mean = {r: {k: float(np.mean([v[r][k] for v in values])) for k in OOD} for r in DETECTORS}
    return float(np.mean(accuracy)), mean


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
