"""What a method is, a function of a batch with its options; and what it needs of a network."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import logsumexp

from si_jax import splitting
from si_jax.batching import Batched
from si_jax.detectors.fitting import Batches
from si_jax.model import Model
from si_jax.networks.head import no_head, no_logits


class Inputs:
    """What a detector sees of one batch; the forward pass is run once however many ask for it.

    Attributes:
        model: the network.
        variables: its variables.
        images: (batch, height, width, channels) normalised images.
    """

    def __init__(self, model: Model, variables: Mapping[str, Any], images: Array):
        self.model = model
        self.variables = variables
        self.images = model.normalise(images)

    @cached_property
    def forward(self) -> splitting.Forward:
        """Logits and features; a method that runs the network by itself sets its own pass here."""
        return splitting.forward(self.model, self.variables, self.images)


State = Mapping[str, Any]
"""What a detector has learnt from in-distribution images: name -> array. Empty if nothing."""

Compute = Callable[[Inputs, State], dict[str, Float[Array, "batch ..."]]]
"""A batch and the fit -> its `"score"`, (batch,), and whatever else the detector reports."""

Read = tuple[Any, np.ndarray]
"""What a function of a batch gives of it, and the labels of its images."""

Fit = Callable[[Batches], State]
"""Streams over the fitting images, as often as it needs to, and returns the state."""


@dataclass(frozen=True)
class Method:
    """A detection method, one row of the table of detectors.

    Attributes:
        build: (model, options by keyword) -> `Plan`.
        summary: what the score is, in one line.
        reference: where the formula comes from.
        batch_size: images per batch by default.
        version: raised whenever the method's scores change, which makes stored ones stale; None
            for a method whose scores are never stored.
        needs: what it needs beside the logits, some of `NEEDS`; what the network lacks is refused.
    """

    build: Callable[..., "Plan"]
    summary: str
    reference: str
    batch_size: int = 64
    version: int | None = None
    needs: tuple[str, ...] = ()


def check_linear(model: Model) -> None:
    """Refuse a network whose head is not the linear map from the features to the logits."""
    model.head_weights(model.variables)
    check_vector(model)


def check_vector(model: Model) -> None:
    """Refuse a network whose head takes no vector, whatever it makes of it."""
    if not model.head:
        raise ValueError(no_head(model))
    if len(shape := model.feature_shape) != 1:
        raise ValueError(
            f"head (={model.head!r}) takes {'x'.join(map(str, shape))} numbers an image, not a"
            " vector: this detector needs a network that pools over its positions before the head;"
            " those that need the logits alone, such as 'energy', serve this one"
        )


NEEDS: dict[str, Callable[[Model], None] | None] = {
    "fit": None,
    "labels": None,
    "gradient": None,
    "feature vector": check_vector,
    "linear head": check_linear,
    "linear head for channel-average": None,
}
"""In-distribution images to be fitted on; their labels; a backward pass; a head whose input is a
vector; one that is the linear map from it to the logits, always or for one of the components. With
what refuses a network for which it is known that it lacks it."""


@dataclass(frozen=True)
class Plan:
    """A method bound to a model and to its options.

    Attributes:
        compute: the function of a batch.
        settings: the options that it resolved itself, such as the taps of a pattern; they go into
            a report with the others, as given or by default.
        shared_forward: whether `compute` runs the network by nothing but `Inputs.forward`, the one
            forward pass that such detectors share.
        fit: what is learnt from in-distribution images before scoring; None if nothing is.
        exact: computes the images of which `compute` says, by a `"settled"` (batch,) that is false,
            that it cannot be sure; None where there are none.
    """

    compute: Compute
    settings: Mapping[str, Any] = field(default_factory=dict)
    shared_forward: bool = True
    fit: Fit | None = None
    exact: Compute | None = None


def computed(batches: Batches, function: Callable[[Inputs], Any]) -> Iterator[Read]:
    """What a function of a batch gives of the fitting images, and their labels."""
    model = batches.model
    run = Batched(lambda v, images: function(Inputs(model, v, images)), model.replicated)
    return batches.each(run)


def of_logits(score: Callable[[Array, State], Array], fit: Fit | None = None) -> Plan:
    """A plan whose score is a function of the logits and of what was fitted."""
    return Plan(lambda x, state: {"score": score(x.forward.logits, state)}, fit=fit)


def of_features(score: Callable[[Array, State], Array], fit: Fit, **settings: Any) -> Plan:
    """A plan whose score is a function of the features and of what was fitted."""
    return Plan(lambda x, state: {"score": score(x.forward.features, state)}, settings, fit=fit)


def head_logits(
    model: Model, variables: Mapping[str, Any], features: Float[Array, "n d"], weights: Any = None
) -> Float[Array, "n classes"]:
    """Logits of features, by the head's own weights or by others in their place."""
    if weights is None:
        weights = model.head_weights(variables)
    with jax.default_matmul_precision(model.precision):
        return features @ weights + model.head_bias(variables)[None]


def product(a: Array, b: Array) -> Array:
    """A matrix product in all bits of float32, which some devices would shorten."""
    return jnp.matmul(a, b, precision="highest")


_FAULTS: weakref.WeakKeyDictionary[Model, str] = weakref.WeakKeyDictionary()
PROBES = 4  # random images that a network is run on where its equations do not show it


def check_logits(model: Model) -> None:
    """Refuse a network that returns probabilities or their logarithms, where `Model` has not."""
    if model not in _FAULTS:
        fault = ""
        if model.linear_head is None and model.is_concrete:
            images = np.random.default_rng(0).integers(
                0, 256, (PROBES, *model.image_shape), np.uint8
            )
            logits = model.run(images, batch_size=PROBES)["logits"].astype(np.float64)
            if (logits >= 0).all() and np.allclose(logits.sum(axis=-1), 1, atol=1e-3):
                fault = no_logits("softmax")
            elif np.allclose(logsumexp(logits, axis=-1), 0, atol=1e-3):
                fault = no_logits("log-softmax")
        _FAULTS[model] = fault
    if _FAULTS[model]:
        raise ValueError(_FAULTS[model])
