"""The directory of a training run: its state after each epoch, and its log."""

import contextlib
import csv
import dataclasses
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from si_jax.data.files import write_text
from si_jax.data.json_files import read_json
from si_jax.model import Model
from si_jax.weights.stored import read_arrays
from si_jax.weights.variables import weights_hash

COLUMNS = ("epoch", "loss", "accuracy", "held_out_loss", "held_out_accuracy", "seconds")
HASH = "sha256"
"""Name under which the hash of a state's arrays is saved beside them."""


class TrainingRun:
    """Saves a run's state after each epoch, and finds it again.

    The directory holds `run.json` (what run it is), `state/` (orbax: step, weights, statistics,
    optimiser, moving average, and their hash) and `log.csv`. The data order and the random draws
    are functions of the seed and the step, so the step is all of them that there is to save.

    Args:
        directory: the run's directory; None saves nothing.
        model: the network with the weights that the run starts from.
        recipe: how it is trained; a dataclass.
        images: training images.
        labels: their class indices.

    Raises:
        ValueError: if the directory holds another run, or is no directory of a run.

    Attributes:
        epochs_done: epochs that `restore` found done.
        log: one row per epoch, as in `log.csv`.
    """

    def __init__(
        self,
        directory: str | os.PathLike | None,
        model: Model,
        recipe: Any,
        images: np.ndarray,
        labels: np.ndarray,
    ):
        self.directory = None if directory is None else Path(directory).resolve()
        self.epochs_done = 0
        self.log: list[dict[str, Any]] = []
        if self.directory is None:
            return
        _claim(
            self.directory,
            {
                "model": model.name,
                "options": model.card.get("options", {}),
                "num_classes": model.num_classes,
                "normalisation": [list(model.mean), list(model.std)],
                "starts_from": weights_hash(dict(model.variables)),
                "images": weights_hash([images, labels]),
                **dataclasses.asdict(recipe),
            },
        )
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every save
        self._states = ocp.CheckpointManager(
            self.directory / "state",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,  # of a run that was killed while it saved
            ),
        )

    def restore(self, state: Any) -> Any:
        """The state after the last epoch that was saved; `state` itself, if there is none.

        Raises:
            ValueError: if the saved state is damaged.
        """
        if self.directory is None or (epoch := self._states.latest_step()) is None:
            return state
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, state))
        try:
            saved = read_arrays(self.directory / "state" / str(epoch) / "default")
            noted = saved.pop(HASH)
            if len(saved) != len(leaves) or not np.array_equal(noted, _hash(saved)):
                raise ValueError("the arrays do not have the hash that was saved with them")
            leaves = [saved[name] for name in sorted(saved)]
            self.log = _read_log(self.directory, epoch)
        except Exception as error:  # of many kinds, whichever line of the log is damaged
            raise ValueError(
                f"{self.directory} cannot be resumed ({type(error).__name__}): remove it to begin"
                " again"
            ) from None
        self.epochs_done = epoch
        return jax.tree.unflatten(structure, leaves)

    def save(self, epoch: int, state: Any, row: dict[str, Any]) -> None:
        """Keep the state after `epoch` epochs, and the epoch's row of the log."""
        self.log.append(row)
        if self.directory is None:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in row.items()} for row in self.log)
        write_text(self.directory / "log.csv", text.getvalue())
        leaves = [np.asarray(x) for x in jax.tree.leaves(state)]
        self._states.save(epoch, args=ocp.args.StandardSave(_named(leaves)))

    def kept(self) -> str:
        """For an error message: what is kept of the run."""
        if self.directory is None or not self.log:
            return ""
        return f"; the weights after epoch {len(self.log)} are kept in {self.directory}"


def _claim(directory: Path, facts: dict[str, Any]) -> None:
    """Make the directory this run's, or see that it is."""
    facts = json.loads(json.dumps(facts))
    path = directory / "run.json"
    # a run that was killed before it had written anything leaves an empty directory behind
    if not directory.exists() or (
        directory.is_dir() and all(p.name.startswith(f".{path.name}.") for p in directory.iterdir())
    ):
        write_text(path, json.dumps(facts, indent=2) + "\n")
        return
    written = None
    with contextlib.suppress(OSError, ValueError):
        written = read_json(path)
    if not isinstance(written, dict):
        raise ValueError(f"{directory} exists and is no training run: choose another directory")
    different = [key for key in facts if written.get(key) != facts[key]]
    if different:
        raise ValueError(
            f"{directory} holds another run, which differs in {', '.join(different)}:"
            " choose another directory, or remove that one to begin again"
        )


def _read_log(directory: Path, epochs: int) -> list[dict[str, Any]]:
    with (directory / "log.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
    for row in rows:
        row["epoch"] = int(row["epoch"])
    return rows[:epochs]


def _named(leaves: list[np.ndarray]) -> dict[str, np.ndarray]:
    named = {f"{index:05d}": leaf for index, leaf in enumerate(leaves)}
    return {**named, HASH: _hash(named)}


def _hash(named: dict[str, np.ndarray]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(weights_hash(named)), np.uint8)


def _short(value: int | float) -> int | str:
    return value if isinstance(value, int) else f"{value:.6g}"
