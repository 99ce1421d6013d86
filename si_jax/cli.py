"""What the commands share: parsers, errors in one sentence, versions, the compilation cache."""

import argparse
import contextlib
import importlib.metadata
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "SI_JAX_COMPILATION_CACHE"
PACKAGES = ("si-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


FLAGS = {
    r"\ballow_missing=True": "--allow-missing",
    r"\bood=\{'(.+?)': PATH\}": r"--ood \1=PATH",
    r"\bas data_dir\b": "as --data-dir",
}
"""What the library's errors call an argument -> what it is called on the command line."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: what is under way may be saved, as after Ctrl-C."""


class Stream:
    """A text stream that never fails: what cannot be written is dropped, and that is noted.

    A reader that has gone, a full disk or a stream that was closed must not lose a run's results.
    Characters that the stream's encoding lacks are written as escapes.

    Args:
        stream: standard output or error; None where that is closed.

    Attributes:
        failed: whether something could not be written.
    """

    def __init__(self, stream: Any):
        self.stream, self.failed = stream, False

    def write(self, text: str) -> int:
        """Write `text`; returns its length in any case."""
        if self.stream is None or self.failed:
            self.failed = True
            return len(text)
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding or "ascii"
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # ValueError: it was closed
            self.failed = True
        return len(text)

    def flush(self) -> None:
        """Write what is held back."""
        if self.stream is None or self.failed:
            return
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self.failed = True

    def __getattr__(self, name: str) -> Any:
        if self.stream is None:
            raise AttributeError(name)
        return getattr(self.stream, name)


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; a user's mistake ends in one sentence and exit status 2.

    SIGTERM ends it as Ctrl-C does, so that progress is saved. If standard output or error is
    closed, full, or read by nobody any more, the command goes on, and the exit status is 1 at its
    end. Compiled programs are cached on disk; see `cache_compilations`.
    """
    cache_compilations()
    handled = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _terminate) if handled else None
    streams = sys.stdout, sys.stderr
    out, err = sys.stdout, sys.stderr = Stream(streams[0]), Stream(streams[1])
    try:
        main()
        out.flush()
        err.flush()
        if out.failed:
            print("error: standard output could not be written", file=sys.stderr)
        if out.failed or (err.failed and err.stream is not None):
            sys.exit(1)
    except (ValueError, OSError) as error:
        if os.environ.get("SI_JAX_TRACEBACK"):
            raise
        print(f"error: {in_flags(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if memory_exhausted(error):
            text = "memory is exhausted: take smaller batches or fewer images"
        elif "Unable to initialize backend" in str(error):  # JAX_PLATFORMS names another machine's
            text = " ".join(str(error).split())
        else:
            raise
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print("interrupted; what was finished is saved", file=sys.stderr)
        sys.exit(143 if isinstance(error, Terminated) else 130)
    finally:
        if handled:
            signal.signal(signal.SIGTERM, previous)
        for stream in (out, err):
            stream.flush()
            if stream.failed and stream.stream is not None:
                _silence(stream.stream)
        sys.stdout, sys.stderr = streams


def memory_exhausted(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: Python's, XLA's, or that of a thread."""
    signs = ("RESOURCE_EXHAUSTED", "bad_alloc", "Out of memory", "can't start new thread")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def in_flags(message: str) -> str:
    """A library's message with its arguments named as the command line names them."""
    for argument, flag in FLAGS.items():
        message = re.sub(argument, flag, message)
    return message


def _silence(stream: Any) -> None:
    """Let what a broken stream still holds go nowhere, lest Python complain of it at its exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def cache_compilations() -> Path | None:
    """Keep compiled programs on disk, so that a second run need not compile them again.

    The folder is `$SI_JAX_COMPILATION_CACHE` (`off` or empty: none), or else that which JAX is
    told of (`$JAX_COMPILATION_CACHE_DIR`), or else `si-jax/programs` in the user's cache folder.

    Returns:
        The folder, or None where nothing is cached.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given is not None and given.strip().lower() in ("", "off", "0", "none"):
        return None
    jax_folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given is None and jax_folder:
        return Path(jax_folder)
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        folder = Path(given).expanduser() if given else home / "si-jax" / "programs"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        if given:
            raise
        return None
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return folder


def _terminate(number, frame):
    raise Terminated


def parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for a sub-command of `si-jax`, with the description as it is written."""
    return argparse.ArgumentParser(
        prog=f"si-jax {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def command_line(command: str, argv: Sequence[str] | None) -> str:
    """The command that does again what is done now.

    Args:
        command: the sub-command of `si-jax`.
        argv: its arguments; None for those of this process.
    """
    return shlex.join(["si-jax", command, *(sys.argv[1:] if argv is None else argv)])


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    installed = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "unknown"
    return installed
