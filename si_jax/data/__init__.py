"""From files and prepared sets to batches of images.

In flow folders, archives, TFDS sets and the digits that come with the package; out flow image sets,
the benchmarks made of them, and batches of images in a network's input size.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "digits":  # the images that the pages begin with, without a further import
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
