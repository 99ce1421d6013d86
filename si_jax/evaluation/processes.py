"""Several processes that share one evaluation.

JAX tells each process which of how many it is. After that they have nothing in common but the
directory of the results, where each keeps a small file: a number that grows while it lives, what
it has reached, and why it ended if it did so too early. Scores reach process 0 as the parts that
every run keeps of its progress (`si_jax.evaluation.store`), so a run that was broken off is resumed
as any other is, by as many processes as one likes.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from si_jax.data.files import read_bytes, write_text

BEAT = 2.0
"""Seconds between two signs of life."""

PATIENCE = 100.0
"""Seconds without one after which a process counts as dead; JAX's own figure."""

POLL = 0.2
FOLDER = "processes"


class Lost(KeyboardInterrupt):
    """Another process ended too early: what is under way may be saved, as after Ctrl-C."""


class Processes:
    """The processes of one run, of which this is one; to be entered in the main thread.

    Where another one fails or dies, the block is left as by an interruption, and a ValueError tells
    which one it was.

    Args:
        directory: the results, on a file system that all processes share.
        index: which process this is, from 0 on.
        count: how many there are; the default is one alone, which writes no file.
    """

    def __init__(self, directory: str | os.PathLike = ".", index: int = 0, count: int = 1):
        self.directory, self.index, self.count = Path(directory), index, count
        self._state: dict[str, Any] = {"beat": 0, "reached": {}, "failed": None}
        self._lock = threading.Lock()
        self._leaving = threading.Event()
        self._lost = ""

    def __enter__(self) -> "Processes":
        if self.count > 1:
            self._write()
            self._previous = signal.signal(signal.SIGUSR1, self._raise)
            self._thread = threading.Thread(target=self._live, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        __: TracebackType | None,
    ) -> None:
        if self.count == 1:
            return
        if error is None:
            self.reach("end")
            if not self.index:
                with contextlib.suppress(Lost):  # everything is written
                    self.gather("end")
        self._leaving.set()
        self._thread.join()
        signal.signal(signal.SIGUSR1, self._previous)
        if error is not None:
            reason = " ".join(str(error).split()) or "it was interrupted"
            own = f"process {self.index} of {self.count} ended: {reason}"
            self._state["failed"] = self._lost or own
            with contextlib.suppress(OSError):
                self._write()
        elif not self.index:
            shutil.rmtree(self.directory / FOLDER, ignore_errors=True)
        if isinstance(error, Lost):
            raise ValueError(
                f"{self._lost}; what was finished is saved: start all processes again to go on"
            ) from None

    def share(self, count: int) -> tuple[int, int]:
        """The first, and the one after the last, of this process's share of `count` things."""
        return self.index * count // self.count, (self.index + 1) * count // self.count

    def reach(self, stage: str, content: Any = None) -> None:
        """Tell the others that this process has come so far.

        Args:
            stage: what they wait for.
            content: what JSON can say, for them to read.
        """
        if self.count > 1:
            self._state["reached"][stage] = content
            self._write()

    def gather(self, stage: str, content: Any = None, *, of: Sequence[int] | None = None) -> list:
        """Wait until others have come so far.

        Args:
            stage: as for `reach`.
            content: what this process itself has to tell, where it is one of them.
            of: the processes to wait for; None for all.

        Returns:
            What each of them had to tell.
        """
        of = range(self.count) if of is None else of
        if self.index in of:
            self.reach(stage, content)
        if self.count == 1:
            return [content]
        while True:
            states = [self._read(index) for index in of]
            reached = [state["reached"] for state in states if state is not None]
            if len(reached) == len(of) and all(stage in r for r in reached):
                return [r[stage] for r in reached]
            if self._lost:
                raise Lost(self._lost)
            time.sleep(POLL)

    @contextlib.contextmanager
    def first(self, stage: str) -> Iterator[None]:
        """A block that process 0 goes through first, and the others after it, all at once."""
        if self.index:
            self.gather(stage, of=[0])
        yield
        if not self.index:
            self.reach(stage)

    def forget(self) -> None:
        """Delete this process's file, which an earlier run may have left."""
        self._path(self.index).unlink(missing_ok=True)

    def _live(self) -> None:
        """Give signs of life, and look for those of the others."""
        heard = {index: time.monotonic() for index in range(self.count) if index != self.index}
        beats: dict[int, int] = {}
        while not self._leaving.wait(BEAT):
            with contextlib.suppress(OSError):  # the others will notice
                self._state["beat"] += 1
                self._write()
            for index in heard:
                state = self._read(index)
                if state is not None and state["beat"] != beats.get(index):
                    beats[index], heard[index] = state["beat"], time.monotonic()
                if state is not None and "end" in state["reached"]:
                    heard[index] = time.monotonic()
                self._lost = self._lost or (state or {}).get("failed") or ""
                if time.monotonic() - heard[index] > PATIENCE:
                    why = "gives no sign of life any more"
                    if state is None:
                        why = f"is not to be seen in {self.directory}, which all must share"
                    self._lost = self._lost or f"process {index} of {self.count} {why}"
            if self._lost:
                main = threading.main_thread().ident
                assert main is not None  # it has been started
                signal.pthread_kill(main, signal.SIGUSR1)
                return

    def _raise(self, number: int, frame: Any) -> None:
        if not self._leaving.is_set():
            raise Lost(self._lost)

    def _path(self, index: int) -> Path:
        return self.directory / FOLDER / f"{index}.json"

    def _write(self) -> None:
        with self._lock:
            write_text(self._path(self.index), json.dumps(self._state))

    def _read(self, index: int) -> dict[str, Any] | None:
        try:
            return json.loads(read_bytes(self._path(index)))
        except OSError:
            return None


ALONE = Processes()


def start(
    directory: str | os.PathLike,
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
) -> Processes:
    """Find out through JAX which process of how many this is; before JAX is used for anything else.

    What is not given is taken from `$JAX_COORDINATOR_ADDRESS`, `$JAX_NUM_PROCESSES` and
    `$JAX_PROCESS_ID`, or else from Slurm, Open MPI, Kubernetes or a TPU's own environment.

    Args:
        directory: the results, on a file system that all processes share.
        coordinator: address and port of process 0, such as `"10.0.0.1:1234"`.
        count: the number of processes.
        index: which one this is, from 0 on.

    Returns:
        The processes, to be entered.

    Raises:
        ValueError: if that is not enough to go by. If the others do not come within five minutes,
            JAX ends the process with a message of its own.
    """
    import jax

    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"coordinator (={coordinator}) must be an address and a port, HOST:PORT")
    count = _number("JAX_NUM_PROCESSES") if count is None else count
    index = _number("JAX_PROCESS_ID") if index is None else index
    if count is not None and not 0 <= (index or 0) < count:
        raise ValueError(f"index (={index}) must be from 0 to {count - 1}, as count is {count}")
    # each process compiles on its own, whatever the others do
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_shard_autotuning=false".strip()
    print("waiting for the other processes", file=sys.stderr)
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"JAX does not find out which process this is ({error}): give coordinator, count and"
            " index"
        ) from error
    processes = Processes(directory, jax.process_index(), jax.process_count())
    processes.forget()
    jax.distributed.shutdown()  # waits for the others: no file of an earlier run is left
    return processes


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is not None and not text.isdecimal():
        raise ValueError(f"${variable} (={text}) is no number")
    return None if text is None else int(text)
