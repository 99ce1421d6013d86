"""Score images with many detectors at once; those that need one forward pass alone share it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.batching import Batched, Replicated, fitting_batch_size
from si_jax.detectors import Detector, Inputs, Plan
from si_jax.detectors.base import State
from si_jax.model import Model

PREDICTION = "prediction"


def prediction(model: Model, batch_size: int) -> Detector:
    """The classifier itself as one more forward-only score: the predicted class."""

    def compute(inputs: Inputs, state: State):
        return {"score": jnp.argmax(inputs.forward.logits, axis=-1).astype(jnp.float32)}

    detector = Detector(PREDICTION, model, Plan(compute), batch_size)
    detector.version = 1
    return detector


class Scorer:
    """Several detectors of one model; those that need a forward pass alone share one.

    Args:
        detectors: name -> detector, all of the same model.
    """

    def __init__(self, detectors: Mapping[str, Detector]):
        self.detectors = dict(detectors)
        shared = {k: d for k, d in detectors.items() if d.shared_forward}
        groups = [{k: d} for k, d in detectors.items() if not d.shared_forward]
        self._groups = [shared, *groups] if shared else groups
        self._run = [_batched(group) for group in self._groups]

    def __call__(
        self, images: np.ndarray, wanted: Sequence[str] | None = None
    ) -> dict[str, dict[str, np.ndarray]]:
        """Detector's name -> its arrays for these images; see `Detector.details`."""
        return self.start(images, wanted)()

    def start(
        self, images: np.ndarray, wanted: Sequence[str] | None = None, *, few: bool = False
    ) -> Callable[[], dict[str, dict[str, np.ndarray]]]:
        """Begin to score images; what is returned waits for the results and gives them.

        Args:
            images: at most a few batches of them.
            wanted: detectors that are needed; None for all.
            few: whether these are all images of a set, so that fewer than a batch may make a
                smaller one.
        """
        started: list[Callable[[], dict[str, dict[str, np.ndarray]]]] = []
        for group, run in zip(self._groups, self._run, strict=True):
            if wanted is None or set(group) & set(wanted):
                size = max(d.batch_size for d in group.values())
                size = fitting_batch_size(len(images), size) if few else size
                parts = [images[i : i + size] for i in range(0, len(images), size)]
                started += [
                    partial(_named, group, run.start(part, batch_size=size)) for part in parts
                ]

        def fetch():
            parts: dict[str, list[dict[str, np.ndarray]]] = {}
            for get in started:
                for name, arrays in get().items():
                    parts.setdefault(name, []).append(arrays)
            return {
                name: jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)
                for name, rows in parts.items()
            }

        return fetch


def _named(group, fetch):
    return dict(zip(group, [fetch()], strict=True)) if len(group) == 1 else fetch()


def _batched(group: Mapping[str, Detector]) -> Batched:
    for detector in group.values():
        detector.check_fitted()
    if len(group) == 1:
        (detector,) = group.values()
        return detector.batched(detector.details_of, Replicated(detector.state))
    model = next(iter(group.values())).model

    def run(variables, states, images):
        inputs = Inputs(model, variables, images)
        return {name: d.compute(inputs, states[name]) for name, d in group.items()}

    return Batched(run, model.replicated, Replicated({name: d.state for name, d in group.items()}))
