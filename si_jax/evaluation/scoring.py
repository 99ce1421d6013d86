"""Score image sets with many detectors in one pass over the images."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from si_jax.batching import AHEAD, Batched, Placed, shrunk
from si_jax.data.image_set import ImageSet, UnreadableImage
from si_jax.data.pipeline import Batch, batches, tell_unreadable
from si_jax.detectors import Detector, Inputs, Plan
from si_jax.detectors.base import State
from si_jax.evaluation.keys import detector_facts, fit_hash, key_of
from si_jax.evaluation.store import NOTHING, Progress, Store
from si_jax.model import Model

PREDICTION = "prediction"
SAVE_EVERY = 20.0  # seconds between two savings of partial progress


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
        shared = {k: d for k, d in detectors.items() if d.forward_only}
        groups = [{k: d} for k, d in detectors.items() if not d.forward_only]
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
                size = shrunk(len(images), size) if few else size
                parts = [images[i : i + size] for i in range(0, len(images), size)]
                started += [run.start(part, batch_size=size) for part in parts]

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


@dataclass(frozen=True)
class Scored:
    """One image set, scored.

    Attributes:
        arrays: detector's name -> its arrays (`"score"`, `"label"`, `"index"` and more), with a
            row for each image that can be read.
        unreadable: names of the images that cannot, and are left out.
        computed: number of images gone through now, by the detector with the least stored.
        seconds: what that took, compilation included; 0 where everything was stored.
    """

    arrays: dict[str, dict[str, np.ndarray]]
    unreadable: tuple[str, ...]
    computed: int
    seconds: float


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
) -> Scored:
    """Score one image set with every detector, resuming from what is stored.

    Progress is saved every `SAVE_EVERY` seconds, and when an error or an interruption ends it.

    Args:
        scorer: the detectors.
        image_set: the images.
        transform: a decoded image -> an image in the model's input size.
        facts: what else determines the scores (weights, protocol), for the files' keys.
        store: where score files are kept.
        batch_size: images decoded at a time.
        workers: threads that decode.
        skip_unreadable: whether to leave out images that cannot be read, and say so; otherwise an
            error.

    Returns:
        The scores, and what was computed now.

    Raises:
        ValueError: if an image cannot be read, not one can, or a score is not finite.
    """
    keys = {
        name: key_of(
            {
                **facts,
                **detector_facts(d),
                "fit": fit_hash(d),
                "set": image_set.fingerprint,
            }
        )
        for name, d in scorer.detectors.items()
    }
    known = {
        name: _usable(store.load(name, image_set.name, key), image_set, skip_unreadable)
        for name, key in keys.items()
    }
    results = {name: progress.arrays for name, progress in known.items() if progress.done}
    for name in results:
        store.drop_partial(name, image_set.name)  # what another, unfinished computation left
    open_rows = {name: _Rows(known[name]) for name in known if name not in results}
    start = min((rows.seen for rows in open_rows.values()), default=len(image_set))
    began = time.monotonic()
    if open_rows:
        try:
            _score(
                scorer,
                image_set,
                transform,
                open_rows,
                save=lambda: _save_partial(open_rows, image_set, store, keys),
                batch_size=batch_size,
                workers=workers,
                skip_unreadable=skip_unreadable,
            )
            for name in list(open_rows):
                arrays = open_rows[name].joined()
                if not arrays:
                    raise UnreadableImage(f"{image_set.name}: not one image can be read")
                args = (name, image_set.name, keys[name], arrays)
                store.save(*args, done=True, seen=len(image_set))
                results[name] = arrays
                del open_rows[name]
        except BaseException:
            with contextlib.suppress(OSError):
                _save_partial(open_rows, image_set, store, keys)
            raise
    seconds = time.monotonic() - began if start < len(image_set) else 0.0
    results = {name: results[name] for name in scorer.detectors}
    unreadable = _unreadable(results, image_set)
    if unreadable:
        tell_unreadable(image_set, unreadable)
    return Scored(results, unreadable, len(image_set) - start, seconds)


class _Rows:
    """What is known of one detector on one set, growing batch by batch.

    A batch is added in one step, so that an interruption at any moment leaves a consistent whole.
    """

    def __init__(self, progress: Progress):
        self._parts = [(progress.arrays, progress.seen)]
        self.saved = progress.seen

    @property
    def seen(self) -> int:
        """Images gone through, those that cannot be read included."""
        return self._parts[-1][1]

    def add(self, arrays: dict[str, np.ndarray], seen: int) -> None:
        """Add a batch's rows, after which `seen` images of the set are gone through."""
        self._parts.append((arrays, seen))

    def joined(self) -> dict[str, np.ndarray]:
        """All rows; empty if there is none."""
        filled = [arrays for arrays, _ in self._parts if arrays]
        arrays = {k: np.concatenate([part[k] for part in filled]) for k in next(iter(filled), {})}
        self._parts = [(arrays, self.seen)]
        return arrays


def _score(scorer, image_set, transform, open_rows, *, save, batch_size, **options):
    """Go through the images that some rows lack, batch by batch, and add to those rows.

    While the devices work on `AHEAD` batches, the next ones are decoded.
    """
    start = min(rows.seen for rows in open_rows.values()) // batch_size * batch_size
    few = len(image_set) < batch_size  # also where a run is resumed, so that it gives the same
    model = next(iter(scorer.detectors.values())).model
    options["image_shape"] = model.image_shape
    saved = time.monotonic()
    pending: deque[tuple[Batch, list[str], Callable]] = deque()

    def finish():
        batch, wanted, fetch = pending[0]
        _add_rows(open_rows, image_set, batch, wanted, fetch())
        pending.popleft()  # only now, so that after an error none is left out
        bar.update(int((batch.indices >= 0).sum()))

    with tqdm(total=len(image_set), initial=start, desc=image_set.name, unit="img") as bar:
        try:
            for batch in batches(image_set, transform, batch_size, start=start, **options):
                wanted = [k for k, rows in open_rows.items() if rows.seen < _end(batch)]
                fetch = dict
                if wanted and batch.mask.any():
                    fetch = scorer.start(batch.images[batch.mask], wanted, few=few)
                pending.append((batch, wanted, fetch))
                if len(pending) > AHEAD:
                    finish()
                if time.monotonic() - saved > SAVE_EVERY:
                    while pending:
                        finish()
                    save()
                    saved = time.monotonic()
            while pending:
                finish()
        except BaseException:
            with contextlib.suppress(Exception):
                while pending:  # what was begun is not lost
                    finish()
            raise


def _end(batch: Batch) -> int:
    """How many images of the set are gone through after this batch."""
    return int(batch.indices.max()) + 1


def _add_rows(open_rows, image_set, batch, wanted, results):
    """Add a batch's results to the rows of the detectors that want them."""
    indices, labels = batch.indices[batch.mask], batch.labels[batch.mask]
    for name in wanted:
        new = indices >= open_rows[name].seen
        arrays = {k: v[new] for k, v in results[name].items()} if new.any() else {}
        if arrays:
            if not (finite := np.isfinite(arrays["score"])).all():
                bad = image_set.ident(int(indices[new][~finite][0]))
                raise ValueError(f"detector {name!r} gave a score that is not finite for {bad}")
            arrays |= {"label": labels[new], "index": indices[new]}
        open_rows[name].add(arrays, _end(batch))


def _save_partial(open_rows, image_set, store, keys):
    for name, rows in open_rows.items():
        seen = rows.seen
        if seen > rows.saved:
            arrays = rows.joined() or {"score": np.zeros(0, np.float32)}
            store.save(name, image_set.name, keys[name], arrays, done=False, seen=seen)
            rows.saved = seen


def _usable(progress: Progress, image_set: ImageSet, skip_unreadable: bool) -> Progress:
    """Stored progress, unless images that it left out are wanted or can be read by now."""
    skipped = _left_out(progress.arrays, progress.seen)
    if len(skipped) and not skip_unreadable:
        return NOTHING
    for index in skipped:
        try:
            image_set.load(int(index))
        except UnreadableImage:
            continue
        return NOTHING
    return progress


def _left_out(arrays: Mapping[str, np.ndarray], seen: int) -> np.ndarray:
    """Indices below `seen` that have no row."""
    return np.setdiff1d(np.arange(seen), arrays["index"] if arrays else [])


def _unreadable(results, image_set: ImageSet) -> tuple[str, ...]:
    """Names of the images that were left out, by all detectors alike."""
    first = next(iter(results.values()))["index"]
    for name, arrays in results.items():
        if not np.array_equal(arrays["index"], first):
            raise ValueError(
                f"{image_set.name}: the stored scores of {name!r} and others are of different"
                " images, a file having changed meanwhile: evaluate into a new directory"
            )
    return tuple(image_set.ident(int(i)) for i in _left_out({"index": first}, len(image_set)))


def _batched(group: Mapping[str, Detector]) -> Batched:
    model = next(iter(group.values())).model

    def run(variables, states, images):
        inputs = Inputs(model, variables, images)
        return {name: d.compute(inputs, states[name]) for name, d in group.items()}

    for detector in group.values():
        detector.check_fitted()
    return Batched(run, model.placed, Placed({name: d.state for name, d in group.items()}))
