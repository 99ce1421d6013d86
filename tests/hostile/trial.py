"""The trial: files are damaged and read, processes are killed and run again."""

import collections
import contextlib
import io
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import util
from pathlib import Path

import damage
import numpy as np

SECONDS = 300  # for one reading; it takes a second on an idle machine
MEMORY = 3 * 2**30  # beyond what the process has taken before the first damage
LONGEST = 4000  # characters of a sentence

FAULTS = ("fault", "crash", "no end", "executed")
"""Outcomes that must not be. The others: same, sentence, other values (where no hash is kept)."""


def context():
    """A server that has imported everything and forks a fresh process for each trial."""
    here = str(Path(__file__).parent)
    paths = [here, str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    forks = multiprocessing.get_context("forkserver")
    names = ("evaluate", "train", "report", "predict", "calibrate")
    forks.set_forkserver_preload(["world", *(f"si_jax.commands.{name}" for name in names)])
    return forks


def isolate(root: Path, log: Path) -> None:
    """In a fresh process: what is printed goes to `log`, what is kept lies below `root`.

    At its end, if it is not killed, it notes the CPU time that it took.
    """
    os.environ["SI_JAX_CACHE"] = str(root.parent / "cache")
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(root.parent)
    util.Finalize(None, note_seconds, (root.parent / "seconds",), exitpriority=0)


def note_seconds(path: Path) -> None:
    with path.open("a") as file:
        file.write(f"{time.process_time():.2f}\n")


# --- damage -------------------------------------------------------------------------------------


def make_world(root: Path) -> None:
    """In a fresh process: write the world."""
    import world

    root.mkdir()
    isolate(root, root.parent / "make.log")
    world.make(root)


KNOWN = {}
"""In a process that reads damaged files: how they are read, and what was read undamaged."""


def begin(root: Path, kind: str) -> None:
    """In a fresh process: read the undamaged files of one kind."""
    import world

    from si_jax import cli

    isolate(root, root.parent / "reading.log")
    cli.cache_compilations()
    KNOWN["read"] = world.reader(world.Readers(root), kind)
    outcome, KNOWN["bits"] = attempt(KNOWN["read"], copied(root, kind))
    if outcome != "read":
        raise RuntimeError(f"{kind}: the undamaged world is not read: {KNOWN['bits']}")
    limit_memory()


def damaged(root: Path, kind: str, seed: int, number: int) -> tuple[str, str]:
    """Damage a file and read it: an outcome, and what is to be said of it."""
    import world

    log, marker, copy = root.parent / "reading.log", root.parent / "executed", copied(root, kind)
    rng = np.random.default_rng([seed, *kind.encode(), number])
    paths = world.victims(copy, kind)
    victim = paths[rng.integers(len(paths))]
    planted = rng.random() < 0.15
    how = damage.plant(victim, marker, rng) if planted else damage.alter(victim, rng)
    before = log.stat().st_size
    outcome, detail = attempt(KNOWN["read"], copy)
    printed = log.read_bytes()[before:].decode(errors="replace")
    if outcome == "read":
        outcome = "same" if detail == KNOWN["bits"] else "other values"
        if outcome == "other values" and world.KINDS[kind][2]:
            outcome, detail = "fault", "read with other values"
    if "Traceback (most recent call last)" in printed and outcome != "fault":
        outcome, detail = "fault", printed
    if marker.exists():
        outcome, detail = "executed", ""
        marker.unlink()
    return outcome, f"{victim.relative_to(copy)}, {how}: {detail}"


def copied(root: Path, kind: str) -> Path:
    """A copy of the part of the world that is damaged, to which the rest of it is linked."""
    import world

    copy = root.parent / "copy" / "world"
    shutil.rmtree(copy.parent, ignore_errors=True)
    copy.mkdir(parents=True)
    first = world.KINDS[kind][1].split("/")[0]
    for path in root.iterdir():
        if path.name != first:
            (copy / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, copy / path.name)
        else:
            shutil.copy(path, copy / path.name)
    return copy


def attempt(read, copy: Path) -> tuple[str, str]:
    """Read: ("read", bits), ("sentence", it) or ("fault", what)."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return "read", read(copy)
    except (ValueError, OSError) as error:
        sentence = str(error)
        if sentence and len(sentence) < LONGEST:
            return "sentence", sentence
        return "fault", f"{type(error).__name__} of {len(sentence)} characters: {sentence[:200]}"
    except SystemExit as left:
        text = errors.getvalue()
        last = text.strip().splitlines()[-1:] or [""]
        if left.code == 2 and "error: " in text and "Traceback" not in text:
            return "sentence", last[0]
        return "fault", f"exit status {left.code}: {text[-2000:]}"
    except BaseException:
        return "fault", traceback.format_exc()[-3000:]


def limit_memory() -> None:
    """From now on the process may take `MEMORY` more."""
    if sys.platform != "linux":
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def damage_kind(forks, root: Path, kind: str, seed: int, rounds: int) -> tuple[dict, list[str]]:
    """Outcome -> count of one kind, and what must not be."""
    counts, faults, reading = collections.Counter(), [], None
    for number in range(rounds):
        if reading is None:
            reading = ProcessPoolExecutor(1, forks, initializer=begin, initargs=(root, kind))
        try:
            found = reading.submit(damaged, root, kind, seed, number)
            outcome, about = found.result(SECONDS)
        except (TimeoutError, BrokenProcessPool) as error:
            outcome = "no end" if isinstance(error, TimeoutError) else "crash"
            about = (root.parent / "reading.log").read_text(errors="replace")[-3000:]
            for process in list(reading._processes.values()):
                process.kill()
            reading.shutdown()
            reading = None
        counts[outcome] += 1
        if outcome in FAULTS:
            faults.append(f"{kind}, round {number}: {outcome}: {about}")
    if reading is not None:
        reading.shutdown()
    return dict(counts), faults


# --- kills --------------------------------------------------------------------------------------


def run_command(root: Path, which: str, out: Path) -> None:
    """In a fresh process: evaluate or train."""
    import world

    isolate(root, out.parent / f"{out.name}.log")
    world.command(world.arguments(which, root, out))


def kills(forks, root: Path, which: str, seed: int, rounds: int) -> tuple[dict, list[str]]:
    """Kill a command at random moments, run it again to its end, and compare the bits.

    Gives outcome -> count, `same` if it was killed and then ended with the same bits, `not killed`
    if it had ended before; and what must not be.
    """
    import world

    bits = {"evaluation": world.evaluated, "training": world.trained}[which]
    folder = root.parent / which
    folder.mkdir()

    def start(out: Path):
        process = forks.Process(target=run_command, args=(root, which, out))
        process.start()
        return process

    # the first compiles, what the world's own run did for evaluations
    for name in ("whole",) if which == "evaluation" else ("first", "whole"):
        began = time.monotonic()
        process = start(folder / name)
        process.join()
        seconds = time.monotonic() - began
        if process.exitcode:
            raise RuntimeError((folder / f"{name}.log").read_text())
    expected = bits(folder / "whole")
    counts, faults = collections.Counter(), []
    for number in range(rounds):
        rng = np.random.default_rng([seed, *which.encode(), number])
        out = folder / f"out{number}"
        killed, moment = 0, 0.0
        for _ in range(int(rng.integers(1, 3))):
            moment = seconds * rng.random()
            process = start(out)
            process.join(moment)
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
            if process.exitcode == 0:
                break
        if process.exitcode != 0:
            process = start(out)
            process.join(4 * SECONDS)
            if process.exitcode is None:
                process.kill()
        what = ""
        if process.exitcode != 0:
            what = f"exit status {process.exitcode}: {(folder / f'{out.name}.log').read_text()}"
        elif bits(out) != expected:
            what = "other bits"
        elif left := [p for p in folder.glob(".*") if p.name.startswith(f".{out.name}.")]:
            what = f"left behind: {left}"
        if what:
            faults.append(f"{which}, round {number}, {moment:.2f} of {seconds:.2f} s: {what}")
        counts["fault" if what else "same" if killed else "not killed"] += 1
        counts["kills"] += killed
        shutil.rmtree(out, ignore_errors=True)
    return dict(counts), faults
