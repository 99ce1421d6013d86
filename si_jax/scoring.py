"""Score image sets with many detectors in one pass over the images."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from si_jax.batching import Batched
from si_jax.data.pipeline import batches
from si_jax.data.sources import ImageSet
from si_jax.detectors import Detector, Inputs, Plan
from si_jax.detectors.base import State
from si_jax.fitting import fit_hash
from si_jax.model import Model
from si_jax.store import Store, key_of

PREDICTION = "prediction"
SAVE_EVERY = 20.0  # seconds between two savings of partial progress


def prediction(model: Model, batch_size: int) -> Detector:
    """The classifier itself as one more forward-only score: the predicted class."""

    def compute(inputs: Inputs, state: State):
        return {"score": jnp.argmax(inputs.forward.logits, axis=-1).astype(jnp.float32)}

    return Detector(PREDICTION, model, Plan(compute), batch_size)


class Scorer:
    """Several detectors of one model; those that need a forward pass alone share one.

    Args:
        detectors: name -> detector, all of the same model.
    """

    def __init__(self, detectors: Mapping[str, Detector]):
        self.detectors = dict(detectors)
        shared = {k: d for k, d in detectors.items() if d.forward_only}
        groups = [{k: d} for k, d in detectors.items() if not d.forward_only]
        self._groups = [shared, *groups] if shared else groups
        self._run = [_batched(group) for group in self._groups]

    def __call__(
        self, images: np.ndarray, wanted: Sequence[str] | None = None
    ) -> dict[str, dict[str, np.ndarray]]:
        """Detector's name -> its arrays for these images; see `Detector.details`."""
        results = {}
        for group, run in zip(self._groups, self._run, strict=True):
            if wanted is None or set(group) & set(wanted):
                size = max(d.batch_size for d in group.values())
                results |= run(images, batch_size=size)
        return results


def score_set(
    scorer: Scorer,
    image_set: ImageSet,
    transform: Callable[[np.ndarray], np.ndarray],
    *,
    facts: Mapping[str, Any],
    store: Store,
    batch_size: int = 64,
    workers: int = 4,
    skip_unreadable: bool = False,
) -> tuple[dict[str, dict[str, np.ndarray]], float]:
    """Score one image set with every detector, resuming from what is stored.

    Args:
        scorer: the detectors.
        image_set: the images.
        transform: a decoded image -> an image in the model's input size.
        facts: what else determines the scores (weights, protocol), for the files' keys.
        store: where score files are kept.
        batch_size: images decoded at a time.
        workers: threads that decode.
        skip_unreadable: whether to leave out images that cannot be read; otherwise an error.

    Returns:
        Detector's name -> its arrays (`"score"`, `"label"`, `"index"` and more), and the seconds
        that scoring took now.

    Raises:
        ValueError: if an image cannot be read, or a score is not finite.
    """
    keys = {
        name: key_of(
            {
                **facts,
                "detector": d.name,
                "settings": d.settings,
                "fit": fit_hash(d),
                "set": image_set.fingerprint,
                "skip_unreadable": skip_unreadable,
            }
        )
        for name, d in scorer.detectors.items()
    }
    known = {name: store.load(name, image_set.name, key) for name, key in keys.items()}
    missing = {name for name, progress in known.items() if not progress.done}
    if not missing:
        return {name: progress.arrays for name, progress in known.items()}, 0.0
    parts = {name: [known[name].arrays] if known[name].count else [] for name in missing}
    seen = {name: _next_index(known[name].arrays) for name in missing}
    start = min(seen.values()) // batch_size * batch_size
    began = saved = time.monotonic()
    with tqdm(total=len(image_set), initial=start, desc=image_set.name, unit="img") as bar:
        for batch in batches(
            image_set,
            transform,
            batch_size,
            workers=workers,
            start=start,
            skip_unreadable=skip_unreadable,
        ):
            indices = batch.indices[batch.mask]
            wanted = [n for n in missing if len(indices) and indices[-1] >= seen[n]]
            results = scorer(batch.images[batch.mask], wanted) if wanted else {}
            for name in wanted:
                rows = indices >= seen[name]
                arrays = {k: v[rows] for k, v in results[name].items()}
                if not np.isfinite(arrays["score"]).all():
                    bad = image_set.ident(int(indices[rows][~np.isfinite(arrays["score"])][0]))
                    raise ValueError(f"detector {name!r} gave a score that is not finite for {bad}")
                labels = batch.labels[batch.mask][rows]
                parts[name].append({**arrays, "label": labels, "index": indices[rows]})
                seen[name] = int(indices[-1]) + 1
            bar.update(int(batch.mask.sum()))
            if time.monotonic() - saved > SAVE_EVERY:
                for name in missing:
                    if parts[name]:
                        parts[name] = [_joined(parts[name])]
                        args = (name, image_set.name, keys[name], parts[name][0])
                        store.save(*args, done=False)
                saved = time.monotonic()
    results = {name: progress.arrays for name, progress in known.items() if progress.done}
    for name in missing:
        if not parts[name]:
            raise ValueError(f"{image_set.name}: not one image could be read")
        results[name] = _joined(parts[name])
        store.save(name, image_set.name, keys[name], results[name], done=True)
    return results, time.monotonic() - began


def _batched(group: Mapping[str, Detector]) -> Batched:
    model = next(iter(group.values())).model

    def run(weights, images):
        variables, states = weights
        inputs = Inputs(model, variables, images)
        return {name: d.compute(inputs, states[name]) for name, d in group.items()}

    for detector in group.values():
        detector.check_fitted()
    return Batched(run, (model.variables, {name: d.state for name, d in group.items()}))


def _next_index(arrays: Mapping[str, np.ndarray]) -> int:
    return int(arrays["index"][-1]) + 1 if "index" in arrays and len(arrays["index"]) else 0


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
