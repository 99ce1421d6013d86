"""What the library needs to know of a framework, the table of frameworks, and what they share."""

import contextlib
import functools
import importlib
import inspect
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

Visit = Callable[[str, Any, Callable[..., Any], tuple[Any, ...]], Any]
"""`visit(path, module, call, args)` stands in for a sub-module's call and returns its output.

`call(*args)` is the call itself, `args[0]` its input, and arrays have the batch axis first.
"""

Named = Mapping[str, Any]
"""What has names: variables by their paths, or keywords of a call."""


@dataclass(frozen=True, kw_only=True)
class Framework:
    """A framework of networks.

    Attributes:
        name: its name, for messages.
        prepare: (network, variables or None) -> (network for inference, its variables). The
            user's own object is never changed. Trainable weights stand under `"params"` where
            there is such a key. Raises a ValueError if the network cannot be used.
        run: (network, variables, images, keywords of the call, visit) -> the network's output.
        is_norm: whether a module normalises: these are the default taps.
        inline: context in which the framework's own rematerialisation is left out.
        unbound: a module without the arrays of the run in which it was called.
        title: what a network is called: its class, as the user named it.
        any_batch: whether one program may serve batches of any size, in an export: the number of
            images is a symbol there. Otherwise it is made for one image, and mapped over them.
    """

    name: str
    prepare: Callable[[Any, Any], tuple[Any, Named]]
    run: Callable[[Any, Named, Any, Named, Visit], Any]
    is_norm: Callable[[Any], bool]
    inline: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    unbound: Callable[[Any], Any] = lambda module: module
    title: Callable[[Any], str] = lambda network: type(network).__name__
    any_batch: bool = True


FRAMEWORKS: dict[tuple[str, str], str] = {
    ("flax.linen", "Module"): "si_jax.networks.linen",
    ("flax.nnx", "Module"): "si_jax.networks.nnx",
    ("keras", "Layer"): "si_jax.networks.keras",
    ("equinox", "Module"): "si_jax.networks.equinox",
    ("si_jax.networks.zero_shot", "ZeroShot"): "si_jax.networks.zero_shot",
    ("torch.nn", "Module"): "si_jax.networks.torch",
}
"""(package, base class of its networks) -> module whose `FRAMEWORK` serves them."""

REGISTERED: dict[type, Framework] = {}
"""Base class of a framework's networks -> what was registered for it; looked at first."""


def register_framework(base: type, framework: Framework) -> None:
    """Serve networks of a custom framework, in `si_jax.Model` and all that takes one.

    Args:
        base: the class whose instances are networks of the framework, those of its subclasses too.
        framework: how they are run.

    Raises:
        ValueError: if `base` is no class of its own, or is registered already.
    """
    if not isinstance(base, type) or base is object:
        raise ValueError(f"base (={base!r}) must be the class of the framework's networks")
    if base in REGISTERED:
        raise ValueError(
            f"base (={base.__qualname__}) is registered already, for {REGISTERED[base].name}"
        )
    REGISTERED[base] = framework


def framework_of(network: Any) -> Framework:
    """The framework that a network belongs to."""
    rows: list[tuple[Any, Any]] = [*REGISTERED.items()]
    # what was not imported cannot have made the network
    rows += [(getattr(sys.modules.get(k), base, None), m) for (k, base), m in FRAMEWORKS.items()]
    for cls, found in rows:
        if cls is not None and isinstance(network, cls):
            return importlib.import_module(found).FRAMEWORK if isinstance(found, str) else found
        if cls is not None and isinstance(network, type) and issubclass(network, cls):
            raise ValueError(
                f"network (={network.__name__}) is a class: give an instance of it, such as"
                f" {network.__name__}(...)"
            )
    if inspect.isroutine(network) or hasattr(network, "__wrapped__") or hasattr(network, "func"):
        return importlib.import_module("si_jax.networks.function").FRAMEWORK
    raise ValueError(
        f"network (a {type(network).__module__}.{type(network).__qualname__}) is of no framework"
        " that is served: give a Flax Linen or Flax NNX module, a Keras 3 model on the JAX backend,"
        " an Equinox or PyTorch module, or a function of (variables, images)"
    )


class StochasticNetworkError(ValueError):
    """A network draws random numbers at inference."""

    def __init__(self) -> None:
        super().__init__(
            "the network draws random numbers (rng) at inference, so that scores would depend on"
            " chance: leave that out, or switch it off, by an argument of the network's in"
            ' call_kwargs, such as {"training": False}'
        )


def is_a(classes: type | tuple[type, ...]) -> Callable[[Any], bool]:
    """Whether a module is an instance of a class, or of one of several."""
    return lambda module: isinstance(module, classes)


def check_left_out(variables: Any, network: str, advice: str = "") -> None:
    """Refuse variables beside a network that holds its own, but for those that `prepare` gave."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            f"variables must be left out for a {network}, which holds its weights itself{advice}"
        )


def first_positional(call: Callable, args: tuple, kwargs: Named) -> tuple[Callable, tuple]:
    """A call and its arguments such that the input is `args[0]`, however it was passed."""
    if args or not kwargs:
        return lambda *args: call(*args, **kwargs), args
    name, value = next(iter(kwargs.items()))
    rest = {k: v for k, v in kwargs.items() if k != name}
    return lambda first: call(**{name: first}, **rest), (value,)


def numbering() -> Callable[[str], str]:
    """A function that gives names as they are, but numbers one that comes again: `bn#1`."""
    counts: Counter[str] = Counter()

    def numbered(name):
        count = counts[name]
        counts[name] += 1
        return f"{name}#{count}" if count else name

    return numbered


@contextlib.contextmanager
def holding(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Inside, a variable of this thread holds a value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


Seam = Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""`seam(module, call, args, kwargs)` stands in for `module(*args, **kwargs)`."""

_seam: ContextVar[Seam | None] = ContextVar("seam", default=None)
_calling: ContextVar[Any] = ContextVar("calling", default=None)
_lock = threading.Lock()
_replaced: dict[type, tuple[int, Any]] = {}  # class -> how many need it replaced, its own __call__


@contextlib.contextmanager
def intercepted(classes: Iterable[type], seam: Seam) -> Iterator[None]:
    """Inside, `seam` stands in for the calls of instances of `classes`, in this thread alone.

    A class's call of its parent's `__call__` on the same object is not intercepted again.
    """
    owners = {c for cls in classes for c in cls.__mro__ if "__call__" in vars(c)} - {object}
    with _lock:
        for cls in owners:
            count, original = _replaced.get(cls, (0, vars(cls)["__call__"]))
            if not count:
                type.__setattr__(cls, "__call__", _replacement(original))
            _replaced[cls] = (count + 1, original)
    try:
        with holding(_seam, seam):
            yield
    finally:
        with _lock:
            for cls in owners:
                count, original = _replaced.pop(cls)
                if count > 1:
                    _replaced[cls] = (count - 1, original)
                else:
                    type.__setattr__(cls, "__call__", original)


def _replacement(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self, *args, **kwargs):
        seam = _seam.get()
        if seam is None or _calling.get() is self:
            return original(self, *args, **kwargs)
        inner = holding(_calling, self)(functools.partial(original, self))
        return seam(self, inner, args, kwargs)

    return call
