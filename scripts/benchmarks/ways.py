"""Programs compiled in both of XLA's ways on a CPU, for `scripts/benchmark.py ways`."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.speed import random_model
from si_jax.detectors import Inputs, make_detector
from si_jax.networks.programs import YNNPACK, without_ynnpack


def measure(names: Sequence[str], detector: str, batch_size: int, repeats: int) -> list[dict]:
    """CPU time, of all threads, of a forward pass and of a detector, without YNNPACK and with it.

    Args:
        names: networks, as `random_model` takes them; BiT's in 224x224 pixels.
        detector: the detector's name; left out where a network does not serve it.
        batch_size: images per call.
        repeats: repetitions, of which the least counts.
    """
    if jax.default_backend() != "cpu":
        raise ValueError("ways: both are ways of XLA on a CPU: set JAX_PLATFORMS=cpu")
    rows = []
    for name in names:
        model = random_model(name, (224, 224) if name.startswith("bit") else None)
        images = np.random.default_rng(0).integers(
            0, 256, (batch_size, *model.image_shape), np.uint8
        )
        programs: dict[str, Callable[[Inputs], Any]] = {"forward pass": _logits}
        try:
            compute = make_detector(detector, model).compute
            programs[detector] = partial(compute, state={})
        except ValueError as e:
            print(f"{name}: {e}")
        for what, function in programs.items():
            rows.append({"model": name, "program": what, **_time(model, images, function, repeats)})
    return rows


def _logits(inputs: Inputs) -> Any:
    return inputs.forward.logits


def _time(model: Any, images: np.ndarray, function: Any, repeats: int) -> dict[str, Any]:
    traced = jax.jit(lambda v, x: function(Inputs(model, v, x))).trace(model.variables, images)
    lowered, arguments = traced.lower(), jax.device_put((model.variables, images))
    ways = {"without": {YNNPACK: ""}, "with": {}}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    programs = {way: lowered.compile(compiler_options=ways[way]) for way in ways}
    for i in range(repeats + 1):
        for way, program in programs.items():
            began = time.process_time()
            jax.block_until_ready(program(*arguments))
            if i:  # the first warms up
                seconds[way].append((time.process_time() - began) / len(images))
    least = {way: min(times) for way, times in seconds.items()}
    chosen = "without" if without_ynnpack(traced.jaxpr) else "with"
    return {**least, "chosen": chosen, "ratio": least[chosen] / min(least.values())}
