"""Predict any number of images with several workers, by Ray Data, into Parquet files.

python scripts/predict_ray.py my_detector photos/ --out predictions
python scripts/predict_ray.py my_detector images.parquet --out predictions --workers 8 --gpus 1

The same command again goes on with the parts that are not finished: a part is so many files, or a
row group of a Parquet file, and becomes one Parquet file, written whole. On a cluster, RAY_ADDRESS
says where it is, and all paths must be reachable from every machine.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from si_jax import cli
from si_jax.checks import check_least
from si_jax.commands.options import command
from si_jax.data.files import write_atomically, write_text
from si_jax.decision.predictor import COLUMNS, Predictor, find_images
from si_jax.detectors.loading import find_detector
from si_jax.detectors.saving import CARD
from si_jax.weights.saved import SUMS

PLAN = "_plan.json"  # readers of a folder of Parquet files leave out such names
PART_SIZE = 10_000


def chunks(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items in a row; the last one may be shorter."""
    rest = iter(items)
    while part := list(itertools.islice(rest, size)):
        yield part


def plan(
    paths: Sequence[str | os.PathLike],
    detector: str | os.PathLike,
    out: Path,
    *,
    part_size: int = PART_SIZE,
    column: str = "image",
) -> list[dict[str, Any]]:
    """The parts that are not finished, each as JSON that `PartWorker` takes.

    Args:
        paths: folders, files or globs of images; or Parquet files with the bytes of images.
        detector: directory of a saved detector, or a bundled one's name.
        out: directory of the results.
        part_size: files of a part. A Parquet file's parts are its row groups.
        column: of the Parquet files that holds the images.

    Raises:
        ValueError: if there is no image, or `out` holds another plan's results.
    """
    check_least(1, part_size=part_size)
    tables = [os.fspath(path) for path in paths if os.fspath(path).endswith(".parquet")]
    if tables and len(tables) < len(paths):
        raise ValueError("paths must be all Parquet files or none")
    parts: list[dict[str, Any]] = []
    if tables:
        parquet = _pyarrow()
        for table in tables:
            file = parquet.ParquetFile(table)
            if column not in file.schema_arrow.names:
                raise ValueError(
                    f"{table} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}"
                )
            groups = range(file.num_row_groups)
            parts += [{"table": os.path.abspath(table), "group": group} for group in groups]
    else:
        files = (os.path.abspath(file) for file in find_images(paths))
        parts += [{"files": some} for some in chunks(files, part_size)]
    for number, part in enumerate(parts):
        part["out"] = str((out / f"part-{number:06d}.parquet").resolve())
    _keep_plan(parts, detector, out)
    return [part for part in parts if not Path(part["out"]).is_file()]


class PartWorker:
    """Predicts parts, for Ray Data's `map_batches`; constructed once per worker.

    Args:
        directory: of the detector.
        column: of Parquet files that holds the images.
    """

    def __init__(self, directory: str, column: str = "image"):
        self.predictor = Predictor(directory, column=column)
        self.column = column

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Finish the parts in a batch's column `"part"`; returns numbers of images."""
        done = [self.finish(json.loads(str(text))) for text in batch["part"]]
        return {name: np.array([row[name] for row in done]) for name in ("rows", "unreadable")}

    def finish(self, part: Mapping[str, Any]) -> dict[str, int]:
        """Predict one part and write its Parquet file."""
        parquet = _pyarrow()
        import pyarrow as pa

        tables = []
        for columns in self._batches(part):
            results = self.predictor(columns)
            results = {k: v for k, v in results.items() if k != self.column}
            tables.append(pa.table(results))
        table = pa.concat_tables(tables)
        path = Path(part["out"])
        write_atomically(path, lambda file: parquet.write_table(table, file))
        unreadable = sum(1 for text in table["error"].to_pylist() if text)
        return {"rows": table.num_rows, "unreadable": unreadable}

    def _batches(self, part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        size = self.predictor.detector.batch_size
        if "files" in part:
            for files in chunks(part["files"], size):
                yield {"file": files, self.column: files}
            return
        file = _pyarrow().ParquetFile(part["table"])
        for batch in file.iter_batches(size, row_groups=[part["group"]]):
            taken = [name for name in batch.schema.names if name not in COLUMNS]
            yield {name: batch.column(name).to_pylist() for name in taken}


def predict_with_ray(
    paths: Sequence[str | os.PathLike],
    detector: str | os.PathLike,
    out: str | os.PathLike,
    *,
    workers: int = 2,
    part_size: int = PART_SIZE,
    column: str = "image",
    worker: type = PartWorker,
    **resources: Any,
) -> dict[str, int]:
    """Predict any number of images by Ray Data, resuming at the parts that are not finished.

    A worker that dies is started again by Ray, and its part begun anew.

    Args:
        paths: see `plan`, as the other arguments.
        detector: see `plan`.
        out: directory of the results, `part-000000.parquet` and so on.
        workers: number of processes, each with the network; on a cluster, of all machines.
        part_size: see `plan`.
        column: see `plan`.
        worker: the class of the workers.
        resources: of each worker, as Ray takes them, such as `num_gpus=1`.

    Returns:
        `"rows"` and `"unreadable"` of what was computed now, `"parts"` of how many parts, and
        `"skipped"`, the parts that were finished before.

    Raises:
        ValueError: as `plan`.
    """
    import ray

    out = Path(out)
    directory = str(find_detector(detector))
    parts = plan(paths, directory, out, part_size=part_size, column=column)
    total = json.loads((out / PLAN).read_text())["parts"]
    done = {"rows": 0, "unreadable": 0, "parts": len(parts), "skipped": total - len(parts)}
    if not parts:
        return done
    items = [{"part": json.dumps(part)} for part in parts]
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        worker,
        fn_constructor_args=(directory, column),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
        **resources,
    )
    for row in rows.iter_rows():
        done["rows"] += int(row["rows"])
        done["unreadable"] += int(row["unreadable"])
    return done


def _keep_plan(parts, detector, out: Path) -> None:
    """Write the plan, or compare it with the one that is there."""
    directory = find_detector(detector)
    sums = directory / (SUMS if (directory / SUMS).is_file() else CARD)  # of older versions
    digest = hashlib.sha256(sums.read_bytes() + json.dumps(parts).encode()).hexdigest()
    path = out / PLAN
    if not path.is_file():
        write_text(path, json.dumps({"parts": len(parts), "sha256": digest}) + "\n")
    elif json.loads(path.read_text()).get("sha256") != digest:
        raise ValueError(
            f"{out} holds predictions of other images, by another detector, or in other parts:"
            " choose another directory"
        )


def _pyarrow():
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ImportError('Parquet files need pyarrow: pip install "si-jax[ray]"') from None
    return parquet


@command("python scripts/predict_ray.py")
def main(
    detector: str,
    /,
    *paths: str,
    out: str,
    workers: int = 2,
    gpus: float = 0,
    part_size: int = PART_SIZE,
    column: str = "image",
) -> None:
    """Predict and print how many.

    Args:
        detector: a saved detector's directory, or a bundled one: digits.
        paths: folders, globs or files; or Parquet files.
        out: directory where the parts are written.
        workers: processes, each with the network.
        gpus: GPUs of each worker.
        part_size: files of a part.
        column: of Parquet files that holds the images' bytes.
    """
    check_least(1, workers=workers)
    try:
        import ray
    except ImportError:
        raise ValueError('workers need Ray: pip install "si-jax[ray]"') from None
    if not ray.is_initialized():
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers + 1}
        ray.init(include_dashboard=False, log_to_driver=False, **local)
    resources: dict[str, Any] = {"num_gpus": gpus} if gpus else {}
    done = predict_with_ray(
        paths,
        detector,
        out,
        workers=workers,
        part_size=part_size,
        column=column,
        **resources,
    )
    print(
        "{rows} images in {parts} parts, {unreadable} unreadable; {skipped} parts were there"
        " already".format(**done)
    )


if __name__ == "__main__":
    cli.run(main)
