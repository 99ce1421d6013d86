"""What every detector is: a function of a batch, with its options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32

from si_jax import splitting
from si_jax.batching import Batched
from si_jax.model import Model


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
        """Logits and features."""
        return splitting.forward(self.model, self.variables, self.images)


Compute = Callable[[Inputs], dict[str, Float[Array, "batch ..."]]]
"""A batch -> its `"score"`, (batch,), and whatever else the detector can tell."""


@dataclass(frozen=True)
class Method:
    """A detection method, one row of the table of detectors.

    Attributes:
        build: (model, options by keyword) -> `Plan`.
        summary: what the score is, in one line.
        reference: where the formula comes from.
        batch_size: images per batch unless told otherwise.
    """

    build: Callable[..., "Plan"]
    summary: str
    reference: str
    batch_size: int = 64


@dataclass(frozen=True)
class Plan:
    """A method bound to a model and to its options.

    Attributes:
        compute: the function of a batch.
        settings: the options after presets and defaults, as they go into a report.
        forward_only: whether one shared forward pass is all that `compute` needs.
    """

    compute: Compute
    settings: Mapping[str, Any] = field(default_factory=dict)
    forward_only: bool = True


class Detector:
    """A detection method applied to a model. Made by `si_jax.make_detector`.

    Attributes:
        name: the method's name.
        model: the network.
        settings: every option's value, after presets and defaults.
        batch_size: images per batch; bounds the memory, and no score depends on it.
        forward_only: whether one forward pass is all that it needs.
    """

    def __init__(self, name: str, model: Model, plan: Plan, batch_size: int):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size (={batch_size!r}) must be a whole number of at least 1")
        self.name = name
        self.model = model
        self.settings = dict(plan.settings)
        self.batch_size = batch_size
        self.forward_only = plan.forward_only
        self.compute = plan.compute

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.settings.items() if k != "taps")
        return f"Detector({self.name!r}, {self.model.name}, {options})"

    @cached_property
    def _run(self) -> Batched:
        def run(variables, images):
            return self.compute(Inputs(self.model, variables, images))

        return Batched(run, self.model.variables)

    def score(self, images: np.ndarray) -> Float32[np.ndarray, "batch"]:
        """How in-distribution each image looks; higher is more in-distribution.

        Args:
            images: (N, height, width, channels) in the model's input size, uint8 or float32
                already normalised.

        Returns:
            (N,) float32.

        Raises:
            ValueError: if the images do not fit the model.
        """
        return self.details(images)["score"]

    def details(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The scores and what they were made of; arguments as for `score`.

        Returns:
            `"score"` (N,), and for the gradient-based detectors more: zero-deflation gives
            `"tap_density"` (N, taps), the mean density at each tap; channel-average gives
            `"tap_average"` (N, taps), the mean of `v^2` at each inner tap, and `"outer"` (N,).
        """
        images = self.model.check(images)
        return self._run(images, batch_size=self.batch_size)
