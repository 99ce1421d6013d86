"""What all commands share: errors in one sentence, streams that fail, the cache of programs."""

import contextlib
import importlib.metadata
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from si_jax.data.files import home

PACKAGES = ("si-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

FLAGS = {
    r"\ballow_missing=True": "--allow-missing",
    r"\bood=\{'(.+?)': PATH\}": r"--ood \1=PATH",
    r"\bas data_dir\b": "as --data-dir",
    r"\bthan max_gib\b": "than --max-gib",
    r"\bcheckpoint \(='(.*?)'\)(.*) needs an arch\w*$": r"--checkpoint \1\2 needs --model NAME",
    r"\barchitecture and init exclude": "--model and --init exclude",
    r"\ban architecture, or a checkpoint as init": "--model NAME or --init CHECKPOINT",
    r"\bnew_head=True": "--new-head",
}
"""What the library's errors call an argument -> what it is called on the command line."""

FAULTS = {
    "RESOURCE_EXHAUSTED|bad_alloc|Out of memory|can't start new thread|^MemoryError": "memory is"
    " exhausted: take smaller batches or fewer images",
    r"Unable to initialize backend '(\w*)'": r"JAX has no backend '\1' here: set JAX_PLATFORMS"
    " to one that it has (cpu is always there), or unset it",
    "Could not determine home directory": "no home folder is known; set HOME to one",
}
"""What an error of the machine says -> the sentence for it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: what is under way may be saved, as after Ctrl-C."""


class Stream:
    """A text stream whose failure is kept, not raised: a run's results outlive its reader."""

    def __init__(self, stream: Any):
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115
        self.failure: Exception | None = None
        with contextlib.suppress(AttributeError):
            self.stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write `text`; returns its length in any case."""
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Write what is held back."""
        self._try(self.stream.flush)

    def _try(self, call: Callable, *arguments: Any) -> None:
        if self.failure is None:
            try:
                call(*arguments)
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self.failure = error
                # what it still holds goes nowhere, lest Python complain of it at its exit
                with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; a user's mistake ends in one sentence and exit status 2.

    SIGTERM ends it as Ctrl-C does, so that progress is saved. If standard output or error cannot be
    written, the command goes on, and the exit status is 1 at its end, but for a reader that has
    what it wants, such as `head`. Compiled programs are cached on disk.
    """
    handled = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _terminate) if handled else None
    streams = sys.stdout, sys.stderr
    out, err = sys.stdout, sys.stderr = Stream(streams[0]), Stream(streams[1])
    try:
        cache_compilations()
        main()
        out.flush()
        err.flush()
        failures = [f for f in (out.failure, err.failure) if f and type(f) is not BrokenPipeError]
        if failures:
            print(f"error: the output could not be written: {failures[0]}", file=sys.stderr)
            sys.exit(1)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        text = f"{type(error).__name__}: {error}"
        found = [(re.search(sign, text), sentence) for sign, sentence in FAULTS.items()]
        known = [sign.expand(sentence) for sign, sentence in found if sign]
        mistake = isinstance(error, ValueError | OSError)
        if not (known or mistake) or (mistake and os.environ.get("SI_JAX_TRACEBACK")):
            raise
        print(f"error: {known[0] if known else in_flags(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print("interrupted; what was finished is saved", file=sys.stderr)
        sys.exit(143 if isinstance(error, Terminated) else 130)
    finally:
        if handled:
            signal.signal(signal.SIGTERM, previous)
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = streams


def in_flags(message: str) -> str:
    """A library's message with its arguments named as the command line names them."""
    for argument, flag in FLAGS.items():
        message = re.sub(argument, flag, message)
    return message


def cache_compilations() -> None:
    """Keep compiled programs on disk, so that a second run need not compile them again.

    The folder is JAX's own (`$JAX_COMPILATION_CACHE_DIR`), or else `programs` in `$SI_JAX_CACHE`
    or `~/.cache/si_jax`. Nothing is kept under `JAX_ENABLE_COMPILATION_CACHE=0`.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        folder = home() / "programs"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        if os.environ.get("SI_JAX_CACHE"):
            raise
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _terminate(number, frame):
    raise Terminated


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    installed = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "unknown"
    return installed
