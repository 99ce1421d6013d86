"""Score image sets with many detectors in one pass over the images."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from si_jax.batching import PREFETCH
from si_jax.data.image_set import ImageSet, UnreadableImage, take
from si_jax.data.pipeline import Batch, batches, tell_unreadable
from si_jax.evaluation.keyed_files import Stored
from si_jax.evaluation.keys import detector_facts, fit_hash, key_of
from si_jax.evaluation.processes import ALONE, Processes
from si_jax.evaluation.rows import Rows
from si_jax.evaluation.scorer import Scorer
from si_jax.evaluation.store import NOTHING, Progress, Store, gaps

SAVE_EVERY = 20.0
"""Seconds after which what is new is stored."""

MOST_ROWS = 2**16
"""Images after which it is stored in any case, so that no part is large."""


@dataclass(frozen=True)
class Scored:
    """One image set, scored.

    Attributes:
        arrays: detector's name -> its arrays (`"score"`, `"label"`, `"index"` and more), with a
            row for each image that can be read. Those three are in memory, the others in the file.
        unreadable: names of the images that cannot, and are left out.
        computed: number of images gone through now, by the detector with the least stored.
        seconds: what that took, compilation included; 0 where everything was stored.
    """

    arrays: dict[str, Stored]
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

    What is new is stored every `SAVE_EVERY` seconds, in a small file for each detector, and when an
    error or an interruption ends it.

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
    began = time.monotonic()
    results, open_rows = _open(scorer, image_set, facts, store, skip_unreadable)
    options = {"batch_size": batch_size, "workers": workers, "skip_unreadable": skip_unreadable}
    with _kept(open_rows):
        computed = _score(scorer, image_set, transform, open_rows, **options)
        for name, rows in open_rows.items():
            if rows.empty:
                raise UnreadableImage(f"{image_set.name}: not one image can be read")
            results[name] = rows.save()
            _share(results)
    seconds = time.monotonic() - began if computed else 0.0
    results = {name: results[name] for name in scorer.detectors}
    unreadable = _unreadable(results, image_set)
    if unreadable:
        tell_unreadable(image_set, unreadable)
    return Scored(results, unreadable, computed, seconds)


def score_share(
    scorer: Scorer,
    image_set: ImageSet,
    transform: Callable[[np.ndarray], np.ndarray],
    *,
    facts: Mapping[str, Any],
    store: Store,
    processes: Processes,
    batch_size: int = 64,
    workers: int = 4,
    skip_unreadable: bool = False,
) -> tuple[int, float]:
    """Score one process's share of a set, and store it in parts, for `score_set` to join.

    Batches are those of the whole set; each process takes as many. The arguments are those of
    `score_set`, and `processes`. Returns the number of images gone through now, and the seconds
    that took; raises what `score_set` does.
    """
    began = time.monotonic()
    _, open_rows = _open(scorer, image_set, facts, store, skip_unreadable)
    options = {"batch_size": batch_size, "workers": workers, "skip_unreadable": skip_unreadable}
    with _kept(open_rows):
        computed = _score(scorer, image_set, transform, open_rows, processes=processes, **options)
        for rows in open_rows.values():
            rows.save_part()
    return computed, time.monotonic() - began if computed else 0.0


def _open(scorer, image_set, facts, store, skip_unreadable):
    """What is stored: name -> arrays of the detectors that are done, name -> rows of the others."""
    results, open_rows = {}, {}
    for name, detector in scorer.detectors.items():
        own = {**detector_facts(detector), "fit": fit_hash(detector)}
        key = key_of({**facts, **own, "set": image_set.fingerprint})
        progress = _usable(store.load(name, image_set.name, key), image_set, skip_unreadable)
        if progress.done:
            results[name] = progress.arrays
            _share(results)
            store.drop_parts(name, image_set.name)  # what another, unfinished computation left
        else:
            open_rows[name] = Rows(store, name, image_set, key, progress)
    return results, open_rows


@contextlib.contextmanager
def _kept(open_rows: Mapping[str, Rows]) -> Iterator[None]:
    """Store what is known when an error or an interruption comes."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for rows in open_rows.values():
                rows.save_part()
        raise


def _score(
    scorer, image_set, transform, open_rows, *, batch_size, processes=ALONE, **options
) -> int:
    """Go through the images that some rows lack, in whole batches, and add to those rows.

    While the devices work on `PREFETCH` batches, the next ones are decoded.

    Returns:
        The number of images that some rows lacked.
    """
    lacking = np.zeros(len(image_set), bool)
    for rows in open_rows.values():
        lacking |= rows.lacks
    first, last = processes.share(-(-len(image_set) // batch_size))
    lacking[: first * batch_size] = lacking[last * batch_size :] = False
    if not lacking.any():
        return 0
    positions = None if lacking.all() else _whole_batches(lacking, batch_size)
    remaining = image_set if positions is None else take(image_set, positions)
    few = len(image_set) < batch_size  # also where a run is resumed, so that it gives the same
    model = next(iter(scorer.detectors.values())).model
    options["image_shape"] = model.image_shape
    saved, fresh = time.monotonic(), 0
    pending: deque[tuple[Batch, np.ndarray, list[str], Callable]] = deque()
    size = int(np.clip(len(image_set) - first * batch_size, 0, (last - first) * batch_size))

    def finish():
        batch, indices, wanted, fetch = pending[0]
        _add_rows(open_rows, image_set, batch, indices, wanted, fetch())
        pending.popleft()  # only now, so that after an error none is left out
        bar.update(len(indices))

    with tqdm(total=size, initial=size - len(remaining), desc=image_set.name, unit="img") as bar:
        try:
            for batch in batches(remaining, transform, batch_size, **options):
                indices = batch.indices[batch.indices >= 0]
                indices = indices if positions is None else positions[indices]
                wanted = [k for k, rows in open_rows.items() if rows.lacks[indices].any()]
                fetch = dict
                if wanted and batch.mask.any():
                    fetch = scorer.start(batch.images[batch.mask], wanted, few=few)
                pending.append((batch, indices, wanted, fetch))
                if len(pending) > PREFETCH:
                    finish()
                fresh += len(indices)
                if time.monotonic() - saved > SAVE_EVERY or fresh >= MOST_ROWS:
                    while pending:
                        finish()
                    for rows in open_rows.values():
                        rows.save_part()
                    saved, fresh = time.monotonic(), 0
            while pending:
                finish()
        except BaseException:
            with contextlib.suppress(Exception):
                while pending:  # what was begun is not lost
                    finish()
            raise
    return int(lacking.sum())


def _whole_batches(lacking: np.ndarray, batch_size: int) -> np.ndarray:
    """Indices of the images of all batches in which one is lacking.

    Batches are those of the whole set, so that what is computed of one never depends on what is
    known of others.
    """
    wanted = np.logical_or.reduceat(lacking, np.arange(0, len(lacking), batch_size))
    return np.flatnonzero(np.repeat(wanted, batch_size)[: len(lacking)])


def _add_rows(open_rows, image_set, batch, indices, wanted, results):
    """Add a batch's results to the rows of the detectors that want them.

    Args:
        open_rows: name -> rows.
        image_set: the set.
        batch: the batch.
        indices: the images of the batch, padding left out.
        wanted: names of the detectors that the batch was scored with.
        results: what they gave for the images that could be read.
    """
    mask = batch.mask[: len(indices)]
    scored, labels = indices[mask], batch.labels[batch.mask]
    for name in wanted:
        lacks = open_rows[name].lacks
        new = lacks[scored]
        arrays = {k: v[new] for k, v in results[name].items()} if new.any() else {}
        if arrays:
            if not (finite := np.isfinite(arrays["score"])).all():
                bad = image_set.ident(int(scored[new][~finite][0]))
                raise ValueError(f"detector {name!r} gave a score that is not finite for {bad}")
            arrays |= {"label": labels[new], "index": scored[new]}
        left_out = indices[~mask]
        open_rows[name].add(arrays, left_out[lacks[left_out]])


def _usable(progress: Progress, image_set: ImageSet, skip_unreadable: bool) -> Progress:
    """Stored progress, unless images that it left out are wanted or can be read by now."""
    if len(progress.left_out) and not skip_unreadable:
        return NOTHING
    if progress.arrays and progress.arrays["index"].max() >= len(image_set):
        return NOTHING
    for index in progress.left_out:
        try:
            image_set.load(int(index))
        except UnreadableImage:
            continue
        return NOTHING
    return progress


def _share(results: Mapping[str, Stored]) -> None:
    """Let the newest result hold the first's index and label, which all detectors have alike."""
    first, *others = results.values()
    if others:
        others[-1].share(first, ("index", "label"))


def _unreadable(results, image_set: ImageSet) -> tuple[str, ...]:
    """Names of the images that were left out, by all detectors alike."""
    first = next(iter(results.values()))
    for name, arrays in results.items():
        if not np.array_equal(arrays["index"], first["index"]):
            raise ValueError(
                f"{image_set.name}: the stored scores of {name!r} and others are of different"
                " images, a file having changed meanwhile: evaluate into a new directory"
            )
    return tuple(image_set.ident(int(i)) for i in gaps(first["index"], len(image_set)))
