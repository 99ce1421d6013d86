"""Stand in for the `__call__` of classes, in one thread and for a while."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

Seam = Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""`seam(module, call, args, kwargs)` stands in for `module(*args, **kwargs)`."""

_seam: ContextVar[Seam | None] = ContextVar("seam", default=None)
_calling: ContextVar[Any] = ContextVar("calling", default=None)
_lock = threading.Lock()
_replaced: dict[type, tuple[int, Any]] = {}  # class -> how many need it replaced, its own __call__


@contextlib.contextmanager
def intercepted(classes: Iterable[type], seam: Seam) -> Iterator[None]:
    """Inside, `seam` stands in for the calls of instances of `classes` in this thread.

    Other threads may use the same classes at the same time: their calls are what they were. The
    classes get their own `__call__` back when nobody needs it replaced any more, whatever happens.
    A class's call of its parent's `__call__` on the same object is not intercepted again.
    """
    owners = {c for cls in classes for c in cls.__mro__ if "__call__" in vars(c)} - {object}
    with _lock:
        for cls in owners:
            count, original = _replaced.get(cls, (0, vars(cls)["__call__"]))
            if not count:
                type.__setattr__(cls, "__call__", _replacement(original))
            _replaced[cls] = (count + 1, original)
    token = _seam.set(seam)
    try:
        yield
    finally:
        _seam.reset(token)
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

        def inner(*args, **kwargs):
            token = _calling.set(self)
            try:
                return original(self, *args, **kwargs)
            finally:
                _calling.reset(token)

        return seam(self, inner, args, kwargs)

    return call
