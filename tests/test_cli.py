"""Commands whose standard output or error is closed, full, or read by nobody."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from si_jax import cli, commands

ROOT = Path(__file__).parents[1]
PROGRAM = """
import pathlib, sys, tqdm
from si_jax import cli

def main():
    for _ in tqdm.tqdm(range(3), desc="work"):
        pass
    for number in range(20000):
        print("a line of a table", number, "\\ud8ff")
    pathlib.Path(sys.argv[1]).write_text("kept")

cli.run(main)
"""


def started(tmp_path, redirection):
    """The exit status, and what came on standard error."""
    kept = tmp_path / "kept"
    command = f'"$0" -c "$1" "$2" {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, PROGRAM, str(kept)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert kept.read_text() == "kept"
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("redirection", "status"),
    [
        ("| head -n 1", 1),
        ("> /dev/full", 1),
        (">&-", 1),
        ("2>&- | cat", 0),
        ("2> /dev/full | cat", 1),
        ("2> >(head -c 1 > /dev/null) | cat", None),
        ("> /dev/null", 0),
    ],
)
def test_nothing_is_lost_with_a_stream(tmp_path, redirection, status):
    code, told = started(tmp_path, redirection)
    assert status is None or code == status
    if redirection in ("| head -n 1", "> /dev/full"):
        assert "error: standard output could not be written" in told


def test_a_mistake_is_told_on_standard_error(capsys):
    def main():
        raise ValueError("that is wrong")

    before = sys.stdout, sys.stderr
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: that is wrong\n"
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes."),
        RuntimeError("can't start new thread"),
    ],
)
def test_exhausted_memory_is_one_sentence(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert stopped.value.code == 2
    told = "error: memory is exhausted: take smaller batches or fewer images\n"
    assert capsys.readouterr().err == told


def test_other_faults_of_the_run_time_stay_what_they_are():
    def main():
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        cli.run(main)


def test_an_error_of_the_library_names_flags_on_the_command_line(capsys):
    def main():
        raise ValueError("pass ood={'my set': PATH}, or allow_missing=True")

    with pytest.raises(SystemExit):
        cli.run(main)
    assert capsys.readouterr().err == "error: pass --ood my set=PATH, or --allow-missing\n"


def test_the_commands(capsys):
    commands.dispatch(["--help"])
    printed = capsys.readouterr().out
    for name in commands.COMMANDS:
        assert f"  {name} " in printed
        with pytest.raises(SystemExit) as ended:
            commands.dispatch([name, "--help"])
        assert ended.value.code == 0
        assert f"usage: si-jax {name} " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no command 'evalute': choose one of .*evaluate"):
        commands.dispatch(["evalute"])


def test_help_needs_no_jax():
    code = "import sys, si_jax.commands as c; c.dispatch([]); assert 'jax' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


COMPILING = """
import jax
from si_jax import cli

events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split("/")[-1]))
cli.cache_compilations()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # however fast the machine is

jax.jit(lambda x: jax.numpy.sin(x @ x.T) @ x)(jax.numpy.ones((8, 8)))
print(events.count("cache_misses"), events.count("cache_hits"))
"""


def test_a_second_process_compiles_nothing_again(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    kept |= {"SI_JAX_COMPILATION_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMPILING]
    first, second = (
        subprocess.run(command, env=kept, check=True, capture_output=True, text=True).stdout.split()
        for _ in range(2)
    )
    assert int(first[0]) >= 1 and first[1] == "0"
    assert second == ["0", first[0]]
