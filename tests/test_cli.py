"""Commands whose standard output or error is closed, full, or read by nobody."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import si_jax
from si_jax import cli, commands
from si_jax.commands import options, train
from si_jax.training.train_checkpoint import DEFAULTS, FINE_TUNING

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


REDIRECTED = {
    "| head -n 1": 0,
    "> /dev/full": 1,
    ">&-": 0,
    "2>&- | cat": 0,
    "2> /dev/full | cat": 1,
    "2> >(head -c 1 > /dev/null) | cat": None,
    "> /dev/null": 0,
}
"""Where the streams go -> the exit status; None where it is a matter of time."""


def test_nothing_is_lost_with_a_stream(tmp_path):
    """Neither what the command writes, nor a word of why; seven processes at once."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = {}
    for number, redirection in enumerate(REDIRECTED):
        line = f'"$0" -c "$1" "$2" {redirection}; exit ${{PIPESTATUS[0]}}'
        command = ["bash", "-c", line, sys.executable, PROGRAM, str(tmp_path / str(number))]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        started[redirection] = subprocess.Popen(command, env=environment, **pipes)
    for number, (redirection, process) in enumerate(started.items()):
        _, said = process.communicate()
        assert (tmp_path / str(number)).read_text() == "kept"
        assert "Traceback" not in said and "Exception ignored" not in said
        assert REDIRECTED[redirection] in (None, process.returncode), redirection
        failed = "error: the output could not be written" in said
        assert failed == (redirection == "> /dev/full")


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ValueError("pass ood={'my set': PATH}, or allow_missing=True"),
            "error: pass --ood my set=PATH, or --allow-missing\n",
        ),
        (MemoryError("std::bad_alloc"), "memory is exhausted"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory."), "memory is exhausted"),
        (RuntimeError("can't start new thread"), "memory is exhausted"),
        (RuntimeError("Unable to initialize backend 'gpu': not here"), "no backend 'gpu' here"),
        (RuntimeError("Could not determine home directory."), "no home folder is known"),
    ],
)
def test_a_mistake_or_a_fault_of_the_machine_is_one_sentence(error, message, capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(SystemExit) as stopped:
        cli.run(raising(error))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert (sys.stdout, sys.stderr) == before


def test_other_faults_of_the_run_time_stay_what_they_are():
    with pytest.raises(RuntimeError, match="a fault of the program"):
        cli.run(raising(RuntimeError("a fault of the program")))


SHOWN = {
    "evaluate": ("[default: 10000]", "default: all", "--set", "--model", "--id"),
    "train": ("[default: 0.1]", "--no-flip", "--epochs"),
    "calibrate": ("[default: 0.95]", "--keep-images", "--set"),
}
OPTION = ("│ --", "│    --", "│ *  --")


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_lists_every_option_with_its_default(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    commands.dispatch([name, "--help"])
    printed = capsys.readouterr().out
    assert f"Usage: si-jax {name} " in printed
    lines = [line for line in printed.splitlines() if line.startswith(OPTION)]
    assert lines and all(len(line.split()) > 4 and "None" not in line for line in lines), lines
    for word in SHOWN.get(name, ()):
        assert word in printed


def test_the_commands(capsys):
    commands.dispatch([])
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in commands.COMMANDS)
    commands.dispatch(["--version"])
    assert capsys.readouterr().out == f"si-jax {si_jax.__version__}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evalute", "no command 'evalute': choose one of .*evaluate"),
        ("evaluate --limt 3", r"Did you mean --limit\?"),
        ("evaluate --limit x", 'Invalid value for --limit: unable to convert "x" into int'),
        ("evaluate --limit", "--limit requires an argument"),
        ("predict", "DETECTOR requires an argument"),
        ("predict digits --jsn", "--jsn does not exist"),
        ("predict digits", "no image is named"),
        ("export digits --out x --platforms gpu", '"gpu" for --platforms.*cuda'),
        ("convert x --model resnet8 --out y --input-size 3", "2 positional"),
    ],
)
def test_a_command_line_that_cannot_be_read(line, message):
    with pytest.raises(ValueError, match=message):
        commands.dispatch(line.split())


def test_what_a_command_gets():
    def library(source, *, limit: int | None = 5, ood: dict | None = None, command: str = ""):
        """A function.

        Args:
            source: is no option.
            limit: how many; None for all.
            ood: name -> images.
            command: the command line.
        """

    @options.command("si-jax try", library, ood="bad")
    def main(function, file, /, *more, set_: list[str] | None = None, given):
        got.append((function.keywords, file, more, set_, given))

    got = []
    main(["a", "-5", "--set", "x=1", "y=2", "--set", "z=3", "--bad", "n=p", "--limit", "5"])
    main(["a"])
    line = "si-jax try a -5 --set x=1 y=2 --set z=3 --bad n=p --limit 5"
    assert got == [
        (
            {"limit": 5, "ood": {"n": "p"}, "command": line},
            *("a", ("-5",), ["x=1", "y=2", "z=3"]),
            {"set_": ["x=1", "y=2", "z=3"], "ood": ["n=p"]},
        ),
        ({"command": "si-jax try a"}, "a", (), None, {}),
    ]


def test_what_help_says_of_the_recipes_is_so():
    text = " ".join(train.__doc__.split())
    usual = dataclasses.asdict(DEFAULTS["cifar100"][1])
    recipes = {"Digits have others: ": DEFAULTS["digits"][1], "so has --init: ": FINE_TUNING}
    for start, recipe in recipes.items():
        changed = dict(dataclasses.asdict(recipe).items() - usual.items())
        flags = [
            f"--no-{k}" if changed[k] is False else f"--{k.replace('_', '-')} {changed[k]:g}"
            for k in usual
            if k in changed
        ]
        assert text.partition(start)[2].startswith(" ".join(flags)), flags
    assert "with --epochs 100" in text and usual["epochs"] == 100


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
    kept |= {"SI_JAX_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMPILING]
    first, second = (
        subprocess.run(command, env=kept, check=True, capture_output=True, text=True).stdout.split()
        for _ in range(2)
    )
    assert int(first[0]) >= 1 and first[1] == "0"
    assert second == ["0", first[0]] and any((tmp_path / "programs").iterdir())
