"""Score shares of an evaluation in several processes, for `si_jax.evaluate` to collect.

All that they have in common is the directory of the results, on a file system that all can see.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from si_jax.checks import check_least
from si_jax.data.benchmarks import Resolved
from si_jax.evaluation.job import make_job
from si_jax.evaluation.scoring import chunks_of, fit_job, score_chunks, scorer_of
from si_jax.model import Model

RETRIES = 3  # of a share whose worker died; Ray starts it again, and it goes on where it was


def score_share(
    model: Model, sets: Resolved, *, share: tuple[int, int], out: str | os.PathLike, **options: Any
) -> None:
    """Score and store every n-th chunk of all sets; results are left to `si_jax.evaluate`.

    Args:
        model: the network.
        sets: what `si_jax.find_sets` found.
        share: (k, n), the k-th of n shares, from 1 on.
        out: directory of the results, which all shares have in common.
        **options: of `si_jax.evaluate`, on which scores depend; the same as are given there.

    Raises:
        ValueError: as `si_jax.evaluate`; or if there is no such share.
        OSError: if a file cannot be written.
    """
    k, n = share
    if not 1 <= k <= n:
        raise ValueError(f"share (={k}/{n}) must be from 1/{n} to {n}/{n}")
    job = make_job(model, sets, **options)
    fit_job(job, Path(out) / "fits")
    where: dict[str, Any] = {"facts": job.score_facts, "directory": Path(out) / "scores"}
    where["skip_unreadable"] = job.skip_unreadable
    scorer, first = scorer_of(job), k - 1
    for image_set in job.sets:
        count = len(chunks_of(len(image_set)))
        score_chunks(scorer, image_set, job.found.preprocessing, range(first, count, n), **where)
        first = (first - count) % n


def score_with_ray(
    model: Model,
    sets: Resolved,
    *,
    workers: int,
    out: str | os.PathLike,
    gpus: float = 0,
    **options: Any,
) -> None:
    """Score all sets by Ray's workers, a share each; one that dies is started again by Ray.

    On a cluster, `$RAY_ADDRESS` says where it is, and all machines must see `out` and the images.

    Args:
        model: the network.
        sets: what `si_jax.find_sets` found.
        workers: processes, each with the network.
        out: directory of the results.
        gpus: GPUs of each worker. Where this process has one of them, set
            `$XLA_PYTHON_CLIENT_PREALLOCATE` to `false`, lest it take the memory.
        **options: as for `score_share`.

    Raises:
        ValueError: as `score_share`; or if Ray is not installed, or workers died too often.
    """
    check_least(1, ray=workers)
    try:
        import ray
    except ImportError:
        raise ValueError('workers need Ray: pip install "si-jax[ray]"') from None
    job = make_job(model, sets, **options)  # refuses here what each worker would refuse
    fit_job(job, Path(out) / "fits")
    if started := not ray.is_initialized():
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers}
        ray.init(include_dashboard=False, log_to_driver=False, **local)
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}  # no caches
    run = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_worker)
    try:
        given: Any = ray.put((fields, sets, {**options, "out": str(Path(out).resolve())}))
        ray.get([run.remote(given, (k, workers)) for k in range(1, workers + 1)])
    except TypeError as error:
        raise ValueError(f"{model.name} or a set cannot be sent to Ray: score shares") from error
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise ValueError(f"a worker of Ray's failed: {error}") from error
    finally:
        if started:
            ray.shutdown()


def _worker(given: tuple[Mapping, Resolved, Mapping], share: tuple[int, int]) -> None:
    """What a worker of Ray's does."""
    fields, sets, options = given
    score_share(Model(**fields), sets, share=share, **options)
