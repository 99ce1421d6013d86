"""Detectors that compare an image's features with the predicted class's weights or mean."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.fitting import Batches, check_every_class, check_labels
from si_jax.detectors.head import feature_size, num_features
from si_jax.detectors.options import Step
from si_jax.model import Model

LEAST_NORM = 1e-8  # what a distance to the mean is taken for where it is less


def fdbd(model: Model) -> Plan:
    """fDBD: mean distance to the decision boundaries, relative to that to the training mean.

    Liu & Qin, ICML 2024, eq. 5 to 7 (code: litianliu/fDBD-OOD): with `y` the predicted class, `h`
    the features, `mu` their mean over the fitting images and `w_c` the head's weights, the score is
    the mean over the other classes c of `|f_y - f_c| / ||w_y - w_c||`, divided by `||h - mu||`.
    Classes whose weights are equal have no boundary and count 0.

    Raises:
        ValueError: if the head is not linear.
    """
    num_features(model)

    def fit(batches: Batches) -> State:
        weights = np.asarray(model.head_weights(model.variables), np.float64).T
        gaps = [np.linalg.norm(weights - w, axis=-1) for w in weights]
        return {"mean": _mean(model, batches), "gaps": np.stack(gaps).astype(np.float32)}

    def compute(inputs: Inputs, state: State):
        out = inputs.forward
        gaps = state["gaps"][jnp.argmax(out.logits, axis=-1)]
        margins = jnp.max(out.logits, axis=-1, keepdims=True) - out.logits
        apart = gaps > 0
        distance = jnp.where(apart, margins / jnp.where(apart, gaps, 1), 0).sum(axis=-1)
        norm = jnp.linalg.norm(out.features - state["mean"], axis=-1)
        return {"score": distance / (gaps.shape[-1] - 1) / jnp.maximum(norm, LEAST_NORM)}

    return Plan(compute, fit=fit)


def nci(model: Model, *, alpha: Step = 0.0001) -> Plan:
    """NCI: how well the centred features point along the predicted class's weights, plus a norm.

    Liu & Qin, CVPR 2025, eq. 6 and 7 (code: litianliu/NCI-OOD): with `mu` the features' mean over
    the fitting images and `w` the weights of the predicted class, the score is
    `w . (h - mu) / ||h - mu|| + alpha ||h||_1`.

    Args:
        model: the network.
        alpha: weight of the norm; the published search is over 0.0001, 0.001, 0.01 and 0.1.

    Raises:
        ValueError: if the head is not linear.
    """
    num_features(model)

    def fit(batches: Batches) -> State:
        return {"mean": _mean(model, batches)}

    def compute(inputs: Inputs, state: State):
        out = inputs.forward
        weights = jnp.asarray(model.head_weights(inputs.variables)).T
        weights = weights[jnp.argmax(out.logits, axis=-1)]
        centred = out.features - state["mean"]
        norm = jnp.maximum(jnp.linalg.norm(centred, axis=-1), LEAST_NORM)
        along = jnp.sum(weights * centred, axis=-1) / norm
        return {"score": along + alpha * jnp.sum(jnp.abs(out.features), axis=-1)}

    return Plan(compute, {"alpha": alpha}, fit=fit)


def she(model: Model) -> Plan:
    """SHE: inner product of the features with the predicted class's mean.

    Zhang et al., ICLR 2023, eq. 9 (code: zjs975584714/SHE_ood_detection): the simplified Hopfield
    energy. The means are over the fitting images of a class that are classified right; of a class
    with none, where the published code gives NaN, over all of its images.

    The fit raises a ValueError if labels are missing, or a class has no image.
    """
    feature_size(model)  # refuses what is no vector

    def fit(batches: Batches) -> State:
        classes = model.num_classes
        width = model.num_features
        sums, counts = np.zeros((2, classes, width)), np.zeros((2, classes), int)
        for logits, h, labels in batches.outputs():
            check_labels(labels, classes)
            right = logits.argmax(axis=-1) == labels
            for which, some in enumerate((right, ~right)):
                np.add.at(sums[which], labels[some], h[some])
                counts[which] += np.bincount(labels[some], minlength=classes)
        check_every_class(counts.sum(axis=0))
        chosen = np.where(counts[0] > 0, 0, 1), np.arange(classes)
        return {"means": (sums[chosen] / counts[chosen][:, None]).astype(np.float32)}

    def compute(inputs: Inputs, state: State):
        out = inputs.forward
        means = state["means"][jnp.argmax(out.logits, axis=-1)]
        return {"score": jnp.sum(out.features * means, axis=-1)}

    return Plan(compute, fit=fit)


def _mean(model: Model, batches: Batches) -> Float[np.ndarray, "features"]:
    """Mean features of the fitting images."""
    total, count = np.zeros(()), 0
    for _, h, _ in batches.outputs():
        total, count = total + h.sum(axis=0, dtype=np.float64), count + len(h)
    return (total / count).astype(np.float32)
