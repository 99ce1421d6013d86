"""Several processes that share one evaluation."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from si_jax.commands import evaluate
from si_jax.evaluation import measuring, processes
from si_jax.evaluation.processes import Processes
from si_jax.reporting import html

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["--detectors", "msp", "--limit", "80"]
SETS = ["digits", "photos", "shuffled", "noise", "letters"]

DRIVER = """
import os, signal, sys, time
from si_jax import cli
from si_jax.commands import evaluate
from si_jax.evaluation import benchmark, measuring, processes, scoring
from si_jax.reporting import html

html.write = lambda run, directory: directory  # not looked at
measuring.intervals = lambda job, arrays: {}
processes.BEAT, processes.PATIENCE = 0.3, 4.0
dies, *arguments = sys.argv[1:]
score_share = scoring.score_share

def share(scorer, image_set, *args, **options):
    if image_set.name == dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return score_share(scorer, image_set, *args, **options)

benchmark.score_share = share
cli.run(lambda: evaluate.main(arguments))
"""


def pair(driver: Path, out: Path, dies: str) -> list[subprocess.CompletedProcess]:
    """Two processes of one run, of which the second may die before it scores a set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    started = []
    for index in (0, 1):
        command = [sys.executable, str(driver), dies if index else "", *ARGUMENTS]
        command += ["--out", str(out), "--distributed", "--process-id", str(index)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    done = []
    for process in started:
        with process:
            texts = process.communicate(timeout=300)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, *texts))
    return done


def content(directory: Path) -> dict:
    """`results.json` without what differs between two runs that are alike."""
    results = json.loads((directory / "results.json").read_text())
    return {k: v for k, v in results.items() if k not in ("seconds", "command")}


def test_two_processes_of_which_one_dies_at_first(tmp_path, monkeypatch, capsys):
    """The other one ends with a message; both, started again, give what one process gives."""
    monkeypatch.setattr(html, "write", lambda run, directory: directory)
    monkeypatch.setattr(measuring, "intervals", lambda job, arrays: {})
    driver, out, alone = tmp_path / "driver.py", tmp_path / "out", tmp_path / "alone"
    driver.write_text(DRIVER)

    survivor, dead = pair(driver, out, "shuffled")
    assert dead.returncode == -signal.SIGKILL, survivor.stderr + dead.stderr
    assert survivor.returncode == 2, survivor.stderr
    errors = [line for line in survivor.stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1 and errors[0].startswith("error: process 1 of 2 gives no sign of life")
    assert "start all processes again" in errors[0]
    assert "Traceback" not in survivor.stderr and not (out / "results.json").exists()

    for process in pair(driver, out, ""):
        assert process.returncode == 0, process.stderr
        assert ("digits" in process.stdout) == ("--process-id 0" in " ".join(process.args))
    evaluate.main([*ARGUMENTS, "--out", str(alone)])
    resumed, expected = content(out), content(alone)
    assert resumed.pop("computed")["digits"] == 0
    assert expected.pop("computed") == dict.fromkeys(SETS, 80)
    assert resumed == expected
    for path in alone.rglob("scores/*/*.npz"):
        with np.load(path) as file, np.load(out / path.relative_to(alone)) as other:
            for name in file.files:
                np.testing.assert_array_equal(file[name], other[name])
    assert not list(out.rglob("*.partial*")) and not (out / "processes").exists()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(processes, "BEAT", 0.02)
    monkeypatch.setattr(processes, "POLL", 0.02)
    monkeypatch.setattr(processes, "PATIENCE", 0.5)


def other(directory, **state):
    """Write the file of process 1."""
    state = {"beat": 0, "reached": {}, "failed": None} | state
    (directory / "processes").mkdir(exist_ok=True)
    (directory / "processes" / "1.json").write_text(json.dumps(state))


def test_another_process_that_fails(tmp_path, quick):
    told = r"process 1 of 2 ended: no disk; .* start all processes"
    with pytest.raises(ValueError, match=told), Processes(tmp_path, 0, 2):
        other(tmp_path, failed="process 1 of 2 ended: no disk")
        time.sleep(20)
    own = json.loads((tmp_path / "processes" / "0.json").read_text())
    assert own["failed"] == "process 1 of 2 ended: no disk"  # which a third one reads


def test_another_process_that_never_comes(tmp_path, quick):
    told = r"process 1 of 2 is not to be seen in .* all must share"
    with pytest.raises(ValueError, match=told), Processes(tmp_path, 0, 2) as both:
        both.gather("scored")


def test_an_error_is_told_to_the_others(tmp_path, quick):
    other(tmp_path, reached={"end": None})  # is done, and need not live
    with pytest.raises(OSError, match="no space"), Processes(tmp_path, 0, 2):
        time.sleep(0.7)
        raise OSError("no space")
    own = json.loads((tmp_path / "processes" / "0.json").read_text())
    assert own["failed"] == "process 0 of 2 ended: no space"


def test_stages(tmp_path, quick):
    other(tmp_path, reached={"scored": [7], "end": None})
    with Processes(tmp_path, 0, 2) as both:
        assert both.gather("scored", [5]) == [[5], [7]]
        with both.first("written"):
            state = json.loads((tmp_path / "processes" / "0.json").read_text())
            assert "written" not in state["reached"]
        state = json.loads((tmp_path / "processes" / "0.json").read_text())
        assert "written" in state["reached"]
    assert not (tmp_path / "processes").exists()


def test_shares_are_equal_and_whole():
    for count in (1, 2, 3, 7):
        for things in (0, 1, 6, 20):
            shares = [Processes(".", index, count).share(things) for index in range(count)]
            assert [i for first, last in shares for i in range(first, last)] == [*range(things)]
            lengths = [last - first for first, last in shares]
            assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("given", "variables", "message"),
    [
        (["--process-id", "1"], {}, "--process-id needs --distributed"),
        (["--distributed", "--coordinator", "here"], {}, r"coordinator \(=here\) must be"),
        (["--distributed"], {"JAX_NUM_PROCESSES": "two"}, r"\$JAX_NUM_PROCESSES \(=two\)"),
        (["--distributed", "--processes", "2", "--process-id", "2"], {}, r"index \(=2\) must be"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, given, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        evaluate.main([*given, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
