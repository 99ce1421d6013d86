"""Detectors that compare an image's features with those of single training images.

They keep the features of at most `max_images` fitting images, 4 bytes a number (50000 images of 512
features are 100 MB), drawn at random with a fixed seed where there are more.
"""

from collections.abc import Iterable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import logsumexp, softmax

from si_jax.detectors.base import Inputs, Plan, State, of_features, product
from si_jax.detectors.fitting import Batches, float32, reservoir, unit
from si_jax.detectors.options import Count, Positive, Range, Step
from si_jax.model import Model

Rows = Float[Array, "batch features"]
Bank = Float[Array | np.ndarray, "images features"]
Places = Int[Array, "batch k"]

BANK_CHUNK = 2048  # training features compared with a batch at a time
CANDIDATES = 8  # whose distances are computed exactly to find the nearest
FRACTIONS = np.concatenate(
    [np.linspace(0.001, 0.1, 100), np.linspace(0.105, 0.5, 81), np.linspace(0.51, 0.99, 49)]
)
"""Of the fitting images, which `cfood` tries as neighbourhoods."""


def knn(model: Model, *, k: Count = 50, max_images: Count = 50_000) -> Plan:
    """Minus the distance to the k-th nearest training feature (Sun et al., ICML 2022, section 3).

    Features are divided by their Euclidean norm first. The published code
    (deeplearning-wisc/knn-ood) gives the squared distance, which changes no order. The fitting
    images' features are compared in chunks.

    Args:
        k: which neighbour; the published 50.
        max_images: fitting images whose features are kept.
    """
    return of_features(
        lambda h, state: -kth_distance(unit(h), state["bank"], k),
        lambda batches: _neighbours((unit(h) for _, h, _ in batches.outputs()), max_images, k),
    )


def nnguide(model: Model, *, k: Count = 10, max_images: Count = 50_000) -> Plan:
    """Energy times the likeness to training images (Park et al., ICCV 2023, eq. 5).

    NNGuide (code: roomo7time/nnguide): with `u` the features divided by their norm and `E` the
    energy `logsumexp(logits)`, the score is `E(x)` times the mean of the `k` largest
    `E(z) u(z) . u(x)` over the fitting images z. The published `k` is 10; the paper keeps 1 % of
    ImageNet's training images, and all of them for the smaller sets.

    Args:
        k: number of neighbours.
        max_images: fitting images whose features are kept.
    """

    def fit(batches: Batches) -> State:
        rows = (
            unit(h) * logsumexp(logits, axis=-1, keepdims=True).astype(np.float32)
            for logits, h, _ in batches.outputs()
        )
        return _neighbours(rows, max_images, k)

    def compute(inputs: Inputs, state: State):
        out = inputs.forward
        products, _ = largest_products(unit(out.features), state["bank"], k)
        return {"score": products.mean(axis=-1) * jax.nn.logsumexp(out.logits, axis=-1)}

    return Plan(compute, fit=fit)


def relation(
    model: Model, *, power: Positive = 1.0, least: Step = 0.03, max_images: Count = 50_000
) -> Plan:
    """Sum of an image's relations to the training images (Kim et al., NeurIPS 2023).

    (Code: snu-mllab/Neural-Relation-Graph.) The relation of two images is
    `max(0, u . u') (p . p')`, `u` their features divided by the norm and `p` their softmax.
    Relations of at most `least` are dropped, the others are raised to `power` and summed over the
    fitting images.

    Args:
        power: exponent; the published 1, searched up to 8.
        least: relations up to it count nothing.
        max_images: fitting images whose features and softmax are kept.
    """
    classes = model.num_classes

    def fit(batches: Batches) -> State:
        rows = (
            np.concatenate([unit(h), softmax(logits, axis=-1)], axis=-1)
            for logits, h, _ in batches.outputs()
        )
        return {"bank": reservoir(rows, max_images)}

    def compute(inputs: Inputs, state: State):
        u, p = unit(inputs.forward.features), jax.nn.softmax(inputs.forward.logits)
        _, parts = in_chunks(state["bank"])

        def add(total, part):
            likeness = jnp.maximum(product(u, part[:, :-classes].T), 0)
            edges = likeness * product(p, part[:, -classes:].T)
            return total + jnp.sum(jnp.where(edges > least, edges**power, 0), axis=-1), None

        total, _ = jax.lax.scan(add, jnp.zeros(u.shape[0]), parts)
        return {"score": total}

    return Plan(compute, fit=fit)


def cfood(
    model: Model, *, share: Annotated[float, Range("(0, 1]")] = 0.01, max_images: Count = 5000
) -> Plan:
    """Minus how large a neighbourhood of training images holds it (OpenOOD's cfood, 2025).

    CFOOD, by OpenOOD's formula: with `u` the features divided by their norm, a fitting image holds
    another within a fraction `f` if that is no farther from it than its `floor(f n)`-th nearest of
    the other n - 1 fitting images. The score is minus the least of 230 fractions from 0.001 to 0.99
    within which the share `share` of the fitting images hold the image; -1 if none is enough. So it
    takes few values. OpenOOD keeps a tenth of the training images, drawn by chance.

    Args:
        share: of the fitting images that must hold the image.
        max_images: fitting images that are kept, drawn at random where there are more: 4 (features
            + 230) bytes each; the fit compares all of them with each other.

    The fit raises a ValueError if there are fewer than three images.
    """

    def fit(batches: Batches) -> State:
        bank = reservoir((unit(h) for _, h, _ in batches.outputs()), max_images)
        if len(bank) < 3:
            raise ValueError(f"images (={len(bank)}) are too few: give at least three")
        places = np.maximum(FRACTIONS * len(bank) - 1, 0).astype(int)
        used = np.flatnonzero(np.diff(places, prepend=-1) > 0)
        parts = []
        for part in np.array_split(bank.astype(np.float64), -(-len(bank) // BANK_CHUNK)):
            distances = np.maximum(2 - 2 * part @ bank.T.astype(np.float64), 0)
            parts.append(np.sort(distances, axis=-1)[:, places[used] + 1])  # the first is its own
        return float32(bank=bank, radii=np.concatenate(parts), fractions=FRACTIONS[used])

    def score(h, state):
        bank, fractions = jnp.asarray(state["bank"]), jnp.asarray(state["fractions"])

        def least_fraction(u):
            distances = jnp.sum((u[None] - bank) ** 2, axis=-1)
            held = jnp.mean((state["radii"] >= distances[:, None]).astype(jnp.float32), axis=0)
            return jnp.min(jnp.where(held >= share, fractions, 1.0))

        return -jax.lax.map(least_fraction, unit(h))

    return of_features(score, fit)


def _neighbours(rows: Iterable[np.ndarray], max_images: int, k: int) -> State:
    """The bank of rows, of which there must be `k`."""
    bank = reservoir(rows, max_images)
    if len(bank) < k:
        raise ValueError(f"k (={k}) must be at most the number of fitting images, {len(bank)}")
    return {"bank": bank}


def nearest_distance(x: Rows, bank: Bank) -> Float[Array, "batch"]:
    """Euclidean distance of vectors to the nearest of others, exact also where it is tiny.

    The candidates are found by `x . b - b . b / 2`, which is largest for the nearest.
    """
    with_halves = jnp.concatenate([bank, -jnp.sum(bank**2, axis=-1, keepdims=True) / 2], axis=-1)
    with_one = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=-1)
    _, near = largest_products(with_one, with_halves, min(CANDIDATES, len(bank)))
    return jnp.sqrt(jnp.min(_squared_distances(x, bank, near), axis=0))


def kth_distance(x: Rows, bank: Bank, k: int) -> Float[Array, "batch"]:
    """Euclidean distance of unit vectors to the k-th nearest of others, exact where it is tiny."""
    _, nearest = largest_products(x, bank, k)
    return jnp.sqrt(jnp.max(_squared_distances(x, bank, nearest), axis=0))


def _squared_distances(x: Rows, bank: Bank, near: Places) -> Float[Array, "k batch"]:
    """Of each vector to those of the bank that are named."""
    return jax.lax.map(lambda indices: jnp.sum((x - bank[indices]) ** 2, axis=-1), near.T)


def largest_products(x: Rows, bank: Bank, k: int) -> tuple[Float[Array, "batch k"], Places]:
    """The k largest inner products of each vector with those of a bank, and their places."""

    def step(best, part):
        index, vectors = part
        products = jnp.where(index < len(bank), product(x, vectors.T), -jnp.inf)
        new = products, jnp.broadcast_to(index, products.shape)
        products, indices = (jnp.concatenate(pair, axis=-1) for pair in zip(best, new, strict=True))
        products, chosen = jax.lax.top_k(products, k)
        return (products, jnp.take_along_axis(indices, chosen, axis=-1)), None

    parts = in_chunks(bank)
    count = x.shape[0]  # not len(x), which must be known while an export has it open
    start = (jnp.full((count, k), -jnp.inf, x.dtype), jnp.zeros((count, k), parts[0].dtype))
    best, _ = jax.lax.scan(step, start, parts)
    return best


def in_chunks(bank: Bank) -> tuple[Int[Array, "chunks chunk"], Float[Array, "chunks chunk d"]]:
    """A bank's vectors in parts, and their places in it; zeros and further places at the end."""
    chunk = min(BANK_CHUNK, len(bank))
    padded = jnp.pad(bank, ((0, -len(bank) % chunk), (0, 0)))
    places = jnp.arange(len(padded)).reshape(-1, chunk)
    return places, padded.reshape(-1, chunk, bank.shape[-1])
