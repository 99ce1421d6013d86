"""Fit detectors in one pass over the training images, and score sets in one, chunk by chunk."""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from si_jax.batching import PREFETCH, Batched, Replicated, fitting_batch_size
from si_jax.data.image_set import ImageSet, UnreadableImage, overlap, take
from si_jax.data.pipeline import Batch, batches, shown, tell_unreadable
from si_jax.data.preprocessing import Transform
from si_jax.detectors import Detector, Inputs, Plan
from si_jax.detectors.base import State
from si_jax.detectors.fitting import Batches
from si_jax.evaluation import store
from si_jax.evaluation.job import Job
from si_jax.evaluation.store import PREDICTION, Chunk, Scores, detector_facts
from si_jax.weights.saved import weights_hash

CHUNK = 512  # images of a score file, less what does not fill a batch

Found = dict[str, dict[str, np.ndarray]]  # detector -> name -> array with a row for each image
Fetch = Callable[[], Found]  # waits for what was begun


def fit_job(job: Job, directory: Path) -> tuple[dict[str, Any], list[str]]:
    """Fit a job's detectors, or load their fits; what to report of it, and notes on the sets."""
    unfitted = {name: detector for name, detector in job.detectors.items() if detector.needs_fit}
    train = job.found.train
    if train is None or not unfitted:
        return {}, []
    skip = {"skip_unreadable": job.skip_unreadable}
    facts = {**job.score_facts, "fit": train.fingerprint, **skip}
    files = {
        name: (directory / f"{store.escaped(name)}.npz", store.key_of(facts | detector_facts(d)))
        for name, d in unfitted.items()
    }

    def load(name: str) -> bool:
        if (state := store.read_keyed(*files[name])) is not None:
            unfitted[name].load_state(state)
        return state is not None

    unreadable: dict[str, None] = {}  # in order, each once
    options: dict[str, Any] = {"image_shape": job.model.image_shape, **skip}

    def stream():
        for batch in shown(
            batches(train, job.found.preprocessing, 64, **options), train, "fitting"
        ):
            unreadable.update(dict.fromkeys(batch.unreadable))
            yield batch.readable

    missing = [name for name in unfitted if not load(name)]
    read = Batches(stream, job.model, keep=True)
    for name in missing:
        unfitted[name].fit_batches(read)
        fitted = unfitted[name].check_fitted()
        if not load(name):  # what another share has stored meanwhile is that of all
            store.write_keyed(*files[name], fitted)
    if unreadable:
        tell_unreadable(train, tuple(unreadable))
    notes = [
        f"{images.name}: {count} of its {len(images)} images are, byte for byte, among the"
        f" {len(train)} training images that detectors are fitted on"
        for images in job.sets
        if (count := overlap(images, train))
    ]
    return {"set": train.name, "images": len(train), "detectors": list(unfitted)}, notes


class Scorer:
    """Several detectors of one model; those that need a forward pass alone share one."""

    def __init__(self, detectors: Mapping[str, Detector]):
        self.detectors = dict(detectors)
        shared = {k: d for k, d in detectors.items() if d.shared_forward}
        groups = [{k: d} for k, d in detectors.items() if not d.shared_forward]
        self._groups = [(group, _batched(group)) for group in (shared, *groups) if group]

    def __call__(self, images: np.ndarray) -> Found:
        """Detector's name -> its arrays for these images; see `Detector.details`."""
        return self.start(images, list(self.detectors))()

    def start(self, images: np.ndarray, wanted: Sequence[str], *, few: bool = False) -> Fetch:
        """Begin to score images; `few`, all of a set's, may make a smaller batch than is usual."""
        started: list[tuple[Mapping[str, Detector], list[Callable[[], dict]]]] = []
        for group, run in self._groups:
            if set(group) & set(wanted):
                size = max(d.batch_size for d in group.values())
                size = fitting_batch_size(len(images), size) if few else size
                parts = (images[i : i + size] for i in range(0, len(images), size))
                started.append((group, [run.start(part, batch_size=size) for part in parts]))

        def fetch():
            results: Found = {}
            for group, parts in started:
                found = _joined([get() for get in parts])
                results |= found if len(group) > 1 else dict.fromkeys(group, found)
            return results

        return fetch


def _batched(group: Mapping[str, Detector]) -> Batched:
    for detector in group.values():
        detector.check_fitted()
    if len(group) == 1:
        (detector,) = group.values()
        return detector.batched(Replicated(detector.state))
    model = next(iter(group.values())).model

    def run(variables, states, images):
        inputs = Inputs(model, variables, images)
        return {name: d.compute(inputs, states[name]) for name, d in group.items()}

    return Batched(run, model.replicated, Replicated({name: d.state for name, d in group.items()}))


@dataclass(frozen=True)
class Scored:
    """One image set, scored."""

    arrays: dict[str, Scores]  # of each detector
    unreadable: tuple[str, ...]  # names of the images that were left out
    computed: int  # images that were gone through now, by the detector with the least stored
    seconds: float  # that this took, compilation included


def scorer_of(job: Job) -> Scorer:
    """The detectors, and beside them the classifier's prediction as one more of them."""

    def compute(inputs: Inputs, state: State):
        return {"score": jnp.argmax(inputs.forward.logits, axis=-1).astype(jnp.float32)}

    size = max(d.batch_size for d in job.detectors.values())
    prediction = Detector(PREDICTION, job.model, Plan(compute), size)
    prediction.version = 1
    return Scorer({**job.detectors, PREDICTION: prediction})


def score_job(job: Job, directory: Path) -> dict[str, Scored]:
    """Score all sets, as `score_set`; a label that is no class of the network's is an error."""
    scorer, scored = scorer_of(job), {}
    options: dict[str, Any] = {"facts": job.score_facts, "skip_unreadable": job.skip_unreadable}
    options["directory"] = directory
    for image_set in job.sets:
        found = score_set(scorer, image_set, job.found.preprocessing, **options)
        scored[image_set.name] = found
        if image_set.name not in job.groups:
            most = int(found.arrays[PREDICTION]["label"].max(initial=-1))
            if most >= job.model.num_classes:
                raise ValueError(
                    f"{image_set.name} has the label {most}, but {job.model.name} has the classes"
                    f" 0 to {job.model.num_classes - 1}: give the labels that it was trained with"
                )
    return scored


def score_set(scorer: Scorer, image_set: ImageSet, transform: Transform, **options: Any) -> Scored:
    """Score one image set with every detector; the options are those of `score_chunks`."""
    began = time.monotonic()
    arrays, computed = score_chunks(scorer, image_set, transform, **options)
    seconds = time.monotonic() - began if computed else 0.0
    for scores in arrays.values():  # what an earlier, larger set left
        for path in {*scores.paths[0].parent.glob("*.npz")} - {*scores.paths}:
            path.unlink(missing_ok=True)
    first = next(iter(arrays.values()))
    for name, scores in arrays.items():
        if not np.array_equal(scores["index"], first["index"]):
            raise ValueError(
                f"{image_set.name}: the stored scores of {name!r} and others are of different"
                " images, a file having changed meanwhile: evaluate into a new directory"
            )
        scores.held |= {"index": first["index"], "label": first["label"]}  # one copy
    if not len(first["index"]):
        raise UnreadableImage(f"{image_set.name}: not one image can be read")
    left_out = np.setdiff1d(range(len(image_set)), first["index"])
    unreadable = tuple(image_set.ident(int(i)) for i in left_out)
    if unreadable:
        tell_unreadable(image_set, unreadable)
    return Scored(arrays, unreadable, computed, seconds)


def score_chunks(
    scorer: Scorer,
    image_set: ImageSet,
    transform: Transform,
    numbers: Sequence[int] | None = None,
    *,
    facts: Mapping[str, Any],
    directory: Path,
    batch_size: int = 64,
    workers: int = 4,
    skip_unreadable: bool = False,
) -> tuple[dict[str, Scores], int]:
    """Detector -> scores of the chunks of these `numbers`, and how many images were gone through.

    A chunk is stored as soon as it is finished. Batches are those of the whole set, so that no
    score depends on what was stored. `facts` are what else determines scores (weights, protocol).
    """
    spans = chunks_of(len(image_set), batch_size)
    numbers = range(len(spans)) if numbers is None else numbers
    facts = {**facts, "set": image_set.fingerprint, "batch": batch_size, "chunk": CHUNK}
    stored: dict[str, dict[int, Chunk]] = {name: {} for name in scorer.detectors}
    files: dict[str, dict[int, Path]] = {}
    keys = {}
    for name, detector in scorer.detectors.items():
        fit = weights_hash(detector.state) if detector.state else ""
        keys[name] = store.key_of({**facts, **detector_facts(detector), "fit": fit})
        files[name] = {i: store.chunk_path(directory, name, image_set.name, i) for i in numbers}
        for i, path in files[name].items():
            chunk = store.read_chunk(path, keys[name])
            if chunk and _usable(chunk, spans[i], image_set, skip_unreadable):
                stored[name][i] = chunk
    lacking = {i: [name for name in stored if i not in stored[name]] for i in numbers}
    lacking = {i: names for i, names in lacking.items() if names}
    if lacking:
        total = sum(len(spans[i]) for i in numbers)
        options = {"workers": workers, "skip_unreadable": skip_unreadable}
        wanted = [(spans[i], names) for i, names in lacking.items()]
        made = _scored(scorer, image_set, transform, wanted, batch_size, total, **options)
        with contextlib.closing(made):
            for (i, names), results in zip(lacking.items(), made, strict=True):
                for name in names:
                    store.write_keyed(files[name][i], keys[name], results[name])
                    stored[name][i] = store.held(results[name])
    arrays = {
        name: Scores([*files[name].values()], key, [stored[name].pop(i) for i in numbers])
        for name, key in keys.items()
    }
    return arrays, sum(len(spans[i]) for i in lacking)


def chunks_of(size: int, batch_size: int = 64) -> list[range]:
    """The indices of each chunk of a set, whole batches but for the last."""
    step = max(CHUNK // batch_size, 1) * batch_size
    return [range(first, min(first + step, size)) for first in range(0, size, step)]


def _scored(
    scorer: Scorer,
    image_set: ImageSet,
    transform: Transform,
    chunks: Sequence[tuple[range, list[str]]],
    batch_size: int,
    total: int,
    **options: Any,
) -> Generator[Found, None, None]:
    """Detector -> arrays of each chunk, of which indices and wanted detectors are given."""
    positions = np.concatenate([np.asarray(span) for span, _ in chunks])
    remaining = image_set if len(positions) == len(image_set) else take(image_set, positions)
    model = next(iter(scorer.detectors.values())).model
    wanted = [names for span, names in chunks for _ in range(0, len(span), batch_size)]
    small = len(image_set) < batch_size  # also where a part is lacking: bits are the same
    made = batches(remaining, transform, batch_size, image_shape=model.image_shape, **options)

    def started() -> Iterator[tuple[Batch, Fetch]]:
        pending = deque[tuple[Batch, Fetch]]()  # begun while the devices work
        for batch, names in zip(made, wanted, strict=True):
            images = model.prepare_images(batch.readable[0])
            pending.append((batch, scorer.start(images, names, few=small) if len(images) else dict))
            if len(pending) > PREFETCH:
                yield pending.popleft()
        yield from pending

    running = started()
    with tqdm(total=total, initial=total - len(positions), desc=image_set.name, unit="img") as bar:
        for span, names in chunks:
            parts: dict[str, list[dict[str, np.ndarray]]] = {}
            for batch, fetch in itertools.islice(running, -(-len(span) // batch_size)):
                index = positions[batch.indices[batch.mask]]
                for name, arrays in fetch().items():
                    if not (finite := np.isfinite(arrays["score"])).all():
                        bad = image_set.ident(int(index[~finite][0]))
                        raise ValueError(
                            f"detector {name!r} gave a score that is not finite for {bad}"
                        )
                    rows = {**arrays, "label": batch.labels[batch.mask], "index": index}
                    parts.setdefault(name, []).append(rows)
                bar.update(batch.size)
            yield {name: _joined(parts[name]) if name in parts else EMPTY for name in names}


def _joined(parts: Sequence[Any]) -> Any:
    """Trees of arrays, one behind the other."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


EMPTY = {"score": np.zeros(0, np.float32)} | dict.fromkeys(("label", "index"), np.zeros(0, int))
"""What is stored of a chunk of which no image can be read."""


def _usable(chunk: Chunk, span: range, image_set: ImageSet, skip_unreadable: bool) -> bool:
    """Whether a stored chunk lacks no image but those that cannot be read even now."""
    left_out = np.setdiff1d(span, chunk["index"])
    if not np.isin(chunk["index"], span).all() or (len(left_out) and not skip_unreadable):
        return False
    for position in left_out:
        with contextlib.suppress(UnreadableImage):
            image_set.load(int(position))
            return False
    return True
