"""The command line: one module a sub-command of `si-jax`, each with a `main(argv)`.

Arguments flow in; every module calls the library and prints what it gives back. No other package
imports this one. To add a sub-command, add a module and its line in `COMMANDS`; to add an option,
a parameter of its `main`, or of a function of the library that is named beside it.
"""

import importlib
import sys

from si_jax import __version__, cli

COMMANDS = {
    "predict": "flag out-of-distribution images, with the network's prediction of each",
    "calibrate": "make a detector of a network: fit it, set its threshold, save it",
    "export": "write a saved detector as one file that runs without this library",
    "prepare-data": "download the public sets of a benchmark",
    "evaluate": "evaluate out-of-distribution detectors on a benchmark",
    "convert": "convert a published checkpoint of another framework",
    "train": "train or fine-tune a classifier",
    "report": "rebuild the report of a finished run, or compare several",
    "tune": "choose a detector's options without test images",
}
"""Sub-command -> what it does; its module has its name, with `_` for `-`."""

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
        print(USAGE.format("\n".join(f"  {name:12} {text}" for name, text in COMMANDS.items())))
    elif name == "--version":
        print(f"si-jax {__version__}")
    elif name in COMMANDS:
        importlib.import_module(f"{__name__}.{name.replace('-', '_')}").main(rest)
    else:
        raise ValueError(f"si-jax has no command {name!r}: choose one of {', '.join(COMMANDS)}")
