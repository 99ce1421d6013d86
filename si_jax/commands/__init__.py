"""The command line: one module a sub-command of `si-jax`, each with a `main(argv)`.

Arguments flow in; every module parses them, calls the library and prints what it gives back. No
other package imports this one. To add a sub-command, add a module and its line in `COMMANDS`.
"""

import importlib
import sys

from si_jax import cli

COMMANDS = {
    "predict": "say of images whether the network is to be trusted on them",
    "calibrate": "make a detector of a network: fit it, set its threshold, save it",
    "export": "write a saved detector as one file that runs without this library",
    "prepare-data": "bring the public sets of a benchmark to this machine",
    "evaluate": "evaluate out-of-distribution detectors on a benchmark",
    "convert": "convert a published checkpoint of another framework",
    "train": "train or fine-tune a classifier",
    "report": "rebuild the report of a finished run, or compare several",
    "tune": "choose a detector's options without test images",
}
"""Sub-command -> what it does; its module has its name, with `_` for `-`."""


def main(argv: list[str] | None = None) -> None:
    """Run `si-jax`; what it runs is imported only then."""
    argv = sys.argv[1:] if argv is None else argv
    cli.run(lambda: dispatch(argv))


def dispatch(argv: list[str]) -> None:
    """Call the sub-command that `argv` begins with.

    Raises:
        ValueError: if there is no such sub-command.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    name, *rest = argv
    if name not in COMMANDS:
        raise ValueError(f"si-jax has no command {name!r}: choose one of {', '.join(COMMANDS)}")
    importlib.import_module(f"{__name__}.{name.replace('-', '_')}").main(rest)


def usage() -> str:
    """What `si-jax --help` prints."""
    lines = [f"  {name:12} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: si-jax COMMAND ...",
            "",
            "Out-of-distribution detection in JAX.",
            "",
            *lines,
            "",
            "si-jax COMMAND --help tells what a command takes.",
        ]
    )
