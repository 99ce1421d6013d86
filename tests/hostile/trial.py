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
from pathlib import Path

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
    """In a fresh process: what is printed goes to `log`, what is kept lies below `root`."""
    os.environ["SI_JAX_CACHE"] = str(root.parent / "cache")
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(root.parent)


def note_seconds(root: Path) -> None:
    """At the end of a process that was not killed: note the CPU time that it took."""
    with (root.parent / "seconds").open("a") as file:
        file.write(f"{time.process_time():.2f}\n")


# --- damage -------------------------------------------------------------------------------------


def make_world(root: Path) -> None:
    """In a fresh process: write the world."""
    import world

    root.mkdir()
    isolate(root, root.parent / "make.log")
    world.make(root)
    note_seconds(root)


def damage_rounds(root: Path, kind: str, seed: int, start: int, rounds: int, pipe) -> None:
    """In a fresh process: damage the files of one kind, round after round, and read them.

    Sends (round, None) before each and (round, (outcome, detail)) after it.
    """
    import damage
    import world

    from si_jax import cli

    log = root.parent / "reading.log"
    log.write_bytes(b"")
    isolate(root, log)
    cli.cache_compilations()
    read = world.reader(world.Readers(root), kind)
    copy, marker = root.parent / "copy" / "world", root.parent / "executed"
    expected = None
    for number in range(start - 1, start + rounds):  # the first reads the undamaged world
        pipe.send((number, None))
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy_part(root, copy, world.KINDS[kind][1])
        rng = np.random.default_rng([seed, *kind.encode(), max(number, 0)])
        how, victim = "", None
        if expected is not None:
            paths = world.victims(copy, kind)
            victim = paths[rng.integers(len(paths))]
            planted = rng.random() < 0.15
            how = damage.plant(victim, marker, rng) if planted else damage.alter(victim, rng)
        before = log.stat().st_size
        outcome, detail = attempt(read, copy)
        printed = log.read_bytes()[before:].decode(errors="replace")
        if expected is None:
            if outcome != "read":
                raise RuntimeError(f"{kind}: the undamaged world is not read: {detail}{printed}")
            expected = detail
            limit_memory()
            continue
        if outcome == "read":
            outcome = "same" if detail == expected else "other values"
            if outcome == "other values" and world.KINDS[kind][2]:
                outcome, detail = "fault", "read with other values"
        if "Traceback (most recent call last)" in printed and outcome != "fault":
            outcome, detail = "fault", printed
        if marker.exists():
            outcome, detail = "executed", ""
            marker.unlink()
        about = f"{victim.relative_to(copy)}, {how}: {detail}" if outcome in FAULTS else ""
        pipe.send((number, (outcome, about)))
    note_seconds(root)


def copy_part(root: Path, copy: Path, pattern: str) -> None:
    """Copy the part of the world that is damaged; the rest of it is linked."""
    copy.mkdir(parents=True)
    first = pattern.split("/")[0]
    for path in root.iterdir():
        if path.name != first:
            (copy / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, copy / path.name)
        else:
            shutil.copy(path, copy / path.name)


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
    counts, faults, done = collections.Counter(), [], 0
    while done < rounds:
        ours, theirs = forks.Pipe(duplex=False)
        arguments = (root, kind, seed, done, rounds - done, theirs)
        process = forks.Process(target=damage_rounds, args=arguments)
        process.start()
        theirs.close()
        current, ended = None, "crash"
        with contextlib.suppress(EOFError):
            while True:
                if not ours.poll(SECONDS):
                    ended = "no end"
                    process.kill()
                    break
                number, outcome = ours.recv()
                current = number
                if outcome is not None:
                    counts[outcome[0]] += 1
                    done = number + 1
                    if outcome[0] in FAULTS:
                        faults.append(f"{kind}, round {number}: {outcome[0]}: {outcome[1]}")
        process.join()
        if done < rounds:
            if current is None or current < done:
                log = (root.parent / "reading.log").read_text(errors="replace")
                raise RuntimeError(f"{kind}: reading did not begin: {log[-3000:]}")
            counts[ended] += 1
            faults.append(f"{kind}, round {current}: {ended}, exit status {process.exitcode}")
            done = current + 1
    return dict(counts), faults


# --- kills --------------------------------------------------------------------------------------


def run_command(root: Path, which: str, out: Path) -> None:
    """In a fresh process: evaluate or train."""
    import world

    isolate(root, out.parent / f"{out.name}.log")
    arguments = {"evaluation": world.evaluate_arguments, "training": world.train_arguments}
    world.command(arguments[which](root, out))
    note_seconds(root)


def kills(forks, root: Path, which: str, seed: int, rounds: int) -> tuple[dict, list[str]]:
    """Kill a command at random moments, run it again to its end, and compare the bits.

    Returns:
        Outcome -> count: `same` if it was killed and then ended with the same bits, `not killed`
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
