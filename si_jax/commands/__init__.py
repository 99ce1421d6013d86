"""The command line: one module a sub-command of `si-jax`, each with a `main(argv)`.

Arguments flow in; every module calls the library and prints what it gives back. No other package
imports this one. To add a sub-command, add a module and its line in `COMMANDS`; to add an option,
a parameter of its `main`, or of a function of the library that is named beside it.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from si_jax import __version__, cli

COMMANDS = ("predict", "calibrate", "export", "prepare-data", "evaluate", "convert", "train",
            "report", "tune")  # fmt: skip
"""The sub-commands; the module of each has its name, with `_` for `-`."""

USAGE = """\
usage: si-jax COMMAND ...

Out-of-distribution detection in JAX.

{}

si-jax COMMAND --help lists what a command takes; si-jax --version prints the version."""


def main(argv: list[str] | None = None) -> None:
    """Run `si-jax`; what it runs is imported only then."""
    argv = sys.argv[1:] if argv is None else argv
    cli.run(lambda: dispatch(argv))


def dispatch(argv: list[str]) -> None:
    """Call the sub-command that `argv` begins with."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE.format("\n".join(summaries())))
    elif name == "--version":
        print(f"si-jax {__version__}")
    elif name in COMMANDS:
        importlib.import_module(f"{__name__}.{name.replace('-', '_')}").main(rest)
    else:
        raise ValueError(f"si-jax has no command {name!r}: choose one of {', '.join(COMMANDS)}")


def summaries() -> Iterator[str]:
    """A line of each sub-command: what its module says first, which is not imported."""
    for name in COMMANDS:
        source = Path(__file__).with_name(f"{name.replace('-', '_')}.py").read_text()
        first = source.splitlines()[0].strip('".')
        yield f"  {name:12} {first[:1].lower()}{first[1:]}"
