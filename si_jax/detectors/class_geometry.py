"""Detectors that compare an image's features or logits with the classes' weights or means."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq

from si_jax.detectors.base import Inputs, Plan, State, of_features, of_logits, product
from si_jax.detectors.features import ranks
from si_jax.detectors.fitting import Batches, Sample, check_classes, check_labels, float32, unit
from si_jax.detectors.neighbours import nearest_distance
from si_jax.detectors.options import Count, Positive, Step
from si_jax.model import Model

LOGITS, FEATURES = 0, 1
"""Which of a network's outputs class means are of."""

SHIFT = 10_000.0
"""By how much the least distance of a tail is above 0, as in libMR."""
LEAST_NORM = 1e-8  # what a distance to the mean is taken for where it is less


def fdbd(model: Model) -> Plan:
    """Relative distance to the decision boundaries (Liu & Qin, ICML 2024, eq. 5 to 7).

    fDBD (code: litianliu/fDBD-OOD): with `y` the predicted class, `h` the features, `mu` their mean
    over the fitting images and `w_c` the head's weights, the score is the mean over the other
    classes c of `|f_y - f_c| / ||w_y - w_c||`, divided by `||h - mu||`. Classes whose weights are
    equal have no boundary and count 0.
    """

    def fit(batches: Batches) -> State:
        weights = np.asarray(model.head_weights(model.variables), np.float64).T
        gaps = [np.linalg.norm(weights - w, axis=-1) for w in weights]
        return float32(mean=batches.mean_features(), gaps=np.stack(gaps))

    def compute(inputs: Inputs, state: State):
        out = inputs.forward
        gaps = state["gaps"][jnp.argmax(out.logits, axis=-1)]
        margins = jnp.max(out.logits, axis=-1, keepdims=True) - out.logits
        apart = gaps > 0
        distance = jnp.where(apart, margins / jnp.where(apart, gaps, 1), 0).sum(axis=-1)
        norm = jnp.linalg.norm(out.features - state["mean"][None], axis=-1)
        return {"score": distance / (gaps.shape[-1] - 1) / jnp.maximum(norm, LEAST_NORM)}

    return Plan(compute, fit=fit)


def nci(model: Model, *, alpha: Step = 0.0001) -> Plan:
    """How well features point along their class's weights (Liu & Qin, CVPR 2025, eq. 6 and 7).

    NCI (code: litianliu/NCI-OOD): with `mu` the features' mean over the fitting images and `w` the
    weights of the predicted class, the score is `w . (h - mu) / ||h - mu|| + alpha ||h||_1`.

    Args:
        alpha: weight of the norm; the published search is over 0.0001, 0.001, 0.01 and 0.1.
    """

    def compute(inputs: Inputs, state: State):
        out = inputs.forward
        weights = jnp.asarray(model.head_weights(inputs.variables)).T
        weights = weights[jnp.argmax(out.logits, axis=-1)]
        centred = out.features - state["mean"][None]
        norm = jnp.maximum(jnp.linalg.norm(centred, axis=-1), LEAST_NORM)
        along = jnp.sum(weights * centred, axis=-1) / norm
        return {"score": along + alpha * jnp.sum(jnp.abs(out.features), axis=-1)}

    return Plan(compute, fit=lambda batches: float32(mean=batches.mean_features()))


def she(model: Model) -> Plan:
    """Inner product with the predicted class's mean (Zhang et al., ICLR 2023, eq. 9).

    SHE, the simplified Hopfield energy (code: zjs975584714/SHE_ood_detection). The means are over
    the fitting images of a class that are classified right; of a class with none, where the
    published code gives NaN, over all of its images.
    """

    def fit(batches: Batches) -> State:
        return float32(means=_class_means(batches, model, FEATURES, least=1)[0])

    def compute(inputs: Inputs, state: State):
        out = inputs.forward
        means = state["means"][jnp.argmax(out.logits, axis=-1)]
        return {"score": jnp.sum(out.features * means, axis=-1)}

    return Plan(compute, fit=fit)


def mcm(model: Model, *, temperature: Positive = 1.0) -> Plan:
    """Largest softmax of cosines with the classes' weights (Ming et al., NeurIPS 2022, eq. 1).

    MCM: `max softmax(cos(h, w_c) / temperature)`. On a network of `si_jax.zero_shot` the weights
    are the embeddings of the class names, as in the paper.

    Args:
        temperature: the paper's tau, 1.
    """

    def compute(inputs: Inputs, state: State):
        classes = unit(jnp.asarray(model.head_weights(inputs.variables)).T)
        cosines = product(unit(inputs.forward.features), classes.T)
        return {"score": jnp.max(jax.nn.softmax(cosines / temperature), axis=-1)}

    return Plan(compute)


def openmax(model: Model, *, tail: Count = 20, alpha: Count = 10) -> Plan:
    """Log-odds of the known classes against an unknown one (Bendale & Boult, CVPR 2016).

    OpenMax, algorithms 1 and 2 (code: abhijitbendale/OSDN): of each class the mean of the logits of
    the fitting images that are classified right, and a Weibull distribution of the `tail` largest
    of their distances to it, moved so that the least is 10000. Of an image's `alpha` largest logits
    the i-th loses the share `w (alpha + 1 - i) / alpha`, `w` the distribution's value at the
    image's distance; what is lost is the unknown class's logit. A class with fewer than three
    images that are classified right takes all of its images.

    The score orders as minus the softmax probability of the unknown class, which float32 rounds to
    0 and 1. Distances are Euclidean; the published code adds cosines. pytorch-ood takes the
    distance to a class that no image of the batch is predicted as for 0, so that its scores depend
    on the batch.

    Args:
        tail: how many distances of each class are fitted.
        alpha: how many logits are revised.
    """
    revised = min(alpha, model.num_classes)

    def fit(batches: Batches) -> State:
        batches = batches.keeping()
        means, of_all = _class_means(batches, model, LOGITS, least=3)
        tails = [np.empty(0)] * len(means)
        for logits, _, labels, right in _outcomes(batches, model):
            distances = np.linalg.norm(logits - means[labels], axis=-1)
            for label in np.unique(labels):
                used = (labels == label) & (right | of_all[label])
                tails[label] = np.sort(np.append(tails[label], distances[used]))[-tail:]
        return float32(means=means, weibull=np.stack([weibull(x) for x in tails]))

    def score(logits, state):
        distances = jax.lax.map(
            lambda mean: jnp.linalg.norm(logits - mean[None], axis=-1), state["means"]
        ).T
        shape, scale, origin = jnp.asarray(state["weibull"]).T
        shifted = jnp.maximum(distances - origin[None], -0.5 * scale[None])
        relative = jnp.log1p(shifted / scale[None])
        share = -jnp.expm1(-jnp.exp(shape[None] * relative))
        share *= jnp.maximum(revised - ranks(-logits), 0).astype(share.dtype) / revised
        unknown = jnp.sum(logits * share, axis=-1)
        return jax.nn.logsumexp(logits * (1 - share), axis=-1) - unknown

    return of_logits(score, fit)


def weibull(tail: Float[np.ndarray, "n"]) -> Float[np.ndarray, "3"]:
    """Maximum likelihood of a Weibull distribution of a tail whose least is moved to `SHIFT`.

    Returns shape, scale, and what is to be taken off a distance so that 0 is where the moved
    distance is the scale.
    """
    moved = SHIFT - tail.min()
    logs = np.log1p((tail - tail.max()) / (moved + tail.max()))

    def slope(log_shape):
        weights = np.exp(np.exp(log_shape) * logs)
        return weights @ logs / weights.sum() - logs.mean() - np.exp(-log_shape)

    if slope(30.0) <= 0:
        raise ValueError(
            "the fitting images of a class have logits at one distance from their mean, so that"
            " openmax finds no tail: fit on several different images of every class"
        )
    shape = np.exp(brentq(slope, 0, 30, xtol=1e-12))
    scale = (moved + tail.max()) * np.mean(np.exp(shape * logs)) ** (1 / shape)
    return np.array([shape, scale, scale - moved])


def grood(model: Model, *, max_images: Count = 50_000) -> Plan:
    """Distance of a prototype's gradient to those of training images (ElAraby et al., 2024).

    GROOD (code: OpenOOD's `grood`): the classes' mean features and one prototype of what is out of
    distribution are classified by minus their distance to the features `h`; the gradient of the
    cross-entropy with the predicted class by that prototype `o` is `p_o (h - o) / ||h - o||`, `p_o`
    its softmax probability. The score is minus the squared distance to the nearest gradient of a
    fitting image that is classified right.

    The published `o` is the mean of out-of-distribution images that are given to it; that of the
    class means stands in for it here, one of the published choices. The published search for the
    nearest is approximate.

    Args:
        max_images: fitting images whose gradients are kept.
    """

    @jax.jit
    def gradients(h, means):
        other = jnp.mean(means, axis=0)
        distances = jax.lax.map(
            lambda p: jnp.linalg.norm(h - p[None], axis=-1), jnp.vstack([means, other[None]])
        )
        return jax.nn.softmax(-distances, axis=0)[-1][:, None] * unit(h - other[None])

    def fit(batches: Batches) -> State:
        batches = batches.keeping()
        means = _class_means(batches, model, FEATURES, least=np.inf)[0].astype(np.float32)
        sample = Sample(max_images)
        for _, h, _, right in _outcomes(batches, model):
            sample.add(np.asarray(gradients(h[right], means)))
        if not sample.rows:
            raise ValueError("labels: the network classifies no fitting image as they say")
        return {"means": means, "bank": np.stack(sample.rows)}

    return of_features(
        lambda h, state: -(nearest_distance(gradients(h, state["means"]), state["bank"]) ** 2), fit
    )


def _outcomes(batches: Batches, model: Model) -> Iterator[tuple[np.ndarray, ...]]:
    """Logits, features and labels of the images, and whether they are classified right."""
    for logits, h, labels in batches.outputs():
        check_labels(labels, model.num_classes)
        yield logits, h, labels, logits.argmax(axis=-1) == labels


def _class_means(
    batches: Batches, model: Model, output: int, *, least: int | float
) -> tuple[Float[np.ndarray, "classes columns"], Bool[np.ndarray, "classes"]]:
    """Class means of images that are classified right, or of all if under `least`; and which so."""
    classes = model.num_classes
    width = (classes, model.num_features)[output]
    sums, counts = np.zeros((2, classes, width)), np.zeros((2, classes))
    for logits, h, labels, right in _outcomes(batches, model):
        np.add.at(sums, (right.astype(int), labels), (logits, h)[output])
        np.add.at(counts, (right.astype(int), labels), 1)
    check_classes(counts.sum(axis=0))
    of_all = counts[1] < least
    means = sums[1] + of_all[:, None] * sums[0]
    return means / (counts[1] + of_all * counts[0])[:, None], of_all
