"""What detectors cost in forward passes, for `scripts/benchmark.py engines`."""

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.networks import NETWORKS
from si_jax import models, splitting
from si_jax.checks import check_least
from si_jax.detectors import DETECTORS, Detector, Inputs, make_detector
from si_jax.detectors.base import State
from si_jax.detectors.fitting import Batches
from si_jax.model import Model
from si_jax.networks.programs import compiled

LEAST_SECONDS = 0.3
"""How long short programs are timed at a time, being called over and over."""

FIT_IMAGES = 64
"""How many images those detectors that need a fit are fitted on; three a class, or as many as there
are features and classes, if that is more."""

ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "si-z": ("si-z", {}),
    "si-z, activation": ("si-z", {"engine": "activation"}),
    "si-z, gradient": ("si-z", {"engine": "gradient"}),
    "si-z, multiply, closed": ("si-z", {"preset": "published-defaults", "engine": "closed"}),
    "si-z, multiply, general": ("si-z", {"preset": "published-defaults", "engine": "general"}),
    "si-z, multiply, general, tap by tap": (
        "si-z",
        {"preset": "published-defaults", "engine": "general", "tap_chunk": 1},
    ),
    "si-a, one step": ("si-a", {"steps": 1}),
    "si-a, two steps": ("si-a", {}),
}
"""What the row of an engine is called -> the detector and its options."""

TIMED: dict[str, tuple[str, dict[str, Any]]] = {
    **ENGINES,
    **{name: (name, {}) for name in DETECTORS if name not in ("si-z", "si-a")},
}
"""What a row is called -> the detector and its options: every engine, and every other detector."""

TOGETHER = "all that share a pass"
"""The row of the detectors that need nothing but a forward pass, all in one program."""

QUICK = ("si-z, activation", "si-z, gradient", "si-z, multiply, closed", "si-c", "msp", "energy")
"""The rows that are timed where time is short."""


def random_model(
    name: str, input_size: tuple[int, int] | None = None, precision: str = "highest"
) -> Model:
    """A network with random weights, drawn without compiling its initialisation.

    Weights are normal with He's variance, scales and variances of norms 1 and offsets 0.

    Args:
        name: a key of `si_jax.models.ARCHITECTURES`, or of `benchmarks.networks.NETWORKS`.
        input_size: height and width of the images; None for the architecture's own.
        precision: see `si_jax.Model`.

    Raises:
        ValueError: if there is no such architecture.
    """
    call: dict[str, Any] = {}
    head: str | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    if name in NETWORKS:
        module, size = NETWORKS[name](), input_size or (224, 224)
        mean, std = models.NORMALISATIONS["imagenet"]
    else:
        arch = models.architecture(name)
        module = arch.family.build(num_classes=arch.num_classes, **arch.options)
        size, (mean, std) = input_size or arch.input_size, models.NORMALISATIONS[arch.normalisation]
        head, call = arch.family.head, {"train": False}
    images = jax.ShapeDtypeStruct((1, *size, len(mean)), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim > 1:
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return (scale * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
        ones = path[-1].key in ("scale", "var")
        return np.full(leaf.shape, 1 if ones else 0, leaf.dtype)

    return Model(
        module,
        jax.tree_util.tree_map_with_path(draw, shapes),
        input_size=size,
        mean=mean,
        std=std,
        head=head,
        name=name,
        call_kwargs=call,
        precision=precision,
    )


def time_detectors(
    model: Model,
    *,
    batch_size: int,
    repeats: int,
    names: Sequence[str] | None = None,
    others: Mapping[str, Callable[[], Any]] | None = None,
) -> list[dict[str, Any]]:
    """What detectors cost in forward passes, on one device.

    Detectors that learn from training images learn from random ones here. All programs run once in
    each repetition, so that the machine's moods touch them alike; a ratio
    is that of two times of one repetition.

    Args:
        model: the network.
        batch_size: images per call, for all alike.
        repeats: repetitions, of which the median counts.
        names: keys of `TIMED`; None for all.
        others: title -> function to time beside them, which scores a batch of as many images.

    Returns:
        The forward pass, then each detector, then those that share a forward pass in one program
        (`TOGETHER`, where there are several), then `others`: `"name"`, `"seconds_per_image"`,
        `"images_per_second"`, `"ratio"`, `"ratio_low"` and `"ratio_high"` (the least and the
        greatest), `"compile_seconds"`, `"flops_per_image"`, `"flops_ratio"` and `"memory_bytes"`
        (what the compiled program says it does and needs; None where it does not), and `"engine"`
        and `"settled"` (the share of the images that an engine other than `general` settles).

    Raises:
        ValueError: if `batch_size` is not positive.
    """
    check_least(1, batch_size=batch_size)

    def logits(variables, images, states):
        return splitting.forward(model, variables, model.normalise(images)).logits

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, *model.image_shape), np.uint8)
    detectors = fitted(model, TIMED if names is None else names, batch_size)
    groups = {title: {title: detector} for title, detector in detectors.items()}
    shared = {title: d for title, d in detectors.items() if d.shared_forward}
    if len(shared) > 1:
        groups[TOGETHER] = shared
    functions: dict[str, Callable[..., Any]] = {"forward pass": logits}
    states: dict[str, dict[str, State]] = {"forward pass": {}}
    for title, group in groups.items():
        functions[title] = partial(scores, model, group)
        states[title] = {name: d.check_fitted() for name, d in group.items()}

    device = jax.local_devices()[0]
    shared = jax.device_put((model.variables, images), device)
    arguments = {k: (*shared, jax.device_put(state, device)) for k, state in states.items()}
    programs, compile_seconds = {}, {}
    for title, function in tqdm(functions.items(), desc="compiling", unit="program", leave=False):
        began = time.perf_counter()
        programs[title] = compiled(jax.jit(function), *arguments[title])
        compile_seconds[title] = time.perf_counter() - began

    def caller(title):
        return lambda: jax.block_until_ready(programs[title](*arguments[title]))

    run = {title: caller(title) for title in programs} | dict(others or {})
    first = {title: function() for title, function in run.items()}  # warms up
    calls = {title: _calls(function) for title, function in run.items()}
    seconds: dict[str, list[float]] = {title: [] for title in run}
    for _ in tqdm(range(repeats), desc="timing", unit="repetition", leave=False):
        for title, function in run.items():
            seconds[title].append(_seconds(function, calls[title]))

    flops = {title: _flops(program) for title, program in programs.items()}
    plain = flops["forward pass"]
    rows = []
    for title, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["forward pass"], strict=True)]
        own = flops.get(title)
        rows.append(
            {
                "name": title,
                "seconds_per_image": statistics.median(times) / batch_size,
                "images_per_second": batch_size / statistics.median(times),
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "compile_seconds": compile_seconds.get(title),
                "flops_per_image": own and own / batch_size,
                "flops_ratio": own and plain and own / plain,
                "memory_bytes": _memory(programs[title]) if title in programs else None,
                **_engine(detectors.get(title), first[title]),
            }
        )
    return rows


def fitted(model: Model, names: Iterable[str], batch_size: int) -> dict[str, Detector]:
    """Detectors that have learnt from random images what they need; one pass for all of them.

    Args:
        model: the network.
        names: keys of `TIMED`.
        batch_size: images per batch.

    Returns:
        Name -> detector.
    """
    rng = np.random.default_rng(1)
    classes = model.num_classes
    count = max(FIT_IMAGES, 3 * classes, classes + model.num_features)
    images = rng.integers(0, 256, (count, *model.image_shape), np.uint8)
    labels = np.arange(count) % classes

    def stream():
        for start in range(0, count, batch_size):
            part = slice(start, start + batch_size)
            yield images[part], labels[part]

    batches = Batches(stream, model, keep=True)
    detectors = {}
    for title in tqdm(list(names), desc="fitting", leave=False):
        name, options = TIMED[title]
        detectors[title] = make_detector(name, model, batch_size=batch_size, **options)
        detectors[title].fit_batches(batches)
    return detectors


def scores(model: Model, detectors: Mapping[str, Detector], variables, images, states) -> dict:
    """What detectors give for a batch, as one program: name -> arrays."""
    inputs = Inputs(model, variables, images)
    return {name: d.compute(inputs, states[name]) for name, d in detectors.items()}


def hardware() -> str:
    """The device, and of a CPU its name and the number of cores that this process may use."""
    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return f"one {kind}"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {name}"


def _seconds(function: Callable[[], Any], calls: int) -> float:
    """Seconds of a call, the mean over several."""
    began = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - began) / calls


def _calls(function: Callable[[], Any]) -> int:
    """How many calls take about `LEAST_SECONDS`, at least one."""
    return max(1, min(1000, round(LEAST_SECONDS / _seconds(function, 1))))


def _engine(detector: Detector | None, results: Any) -> dict[str, Any]:
    """The engine of a detector that has several, and the share of images that it settles."""
    if detector is None or "engine" not in detector.settings:
        return {}
    (arrays,) = results.values()
    return {
        "engine": detector.settings["engine"],
        "settled": float(np.mean(arrays["settled"])) if "settled" in arrays else 1.0,
    }


def _flops(program: Any) -> float | None:
    """Floating-point operations of a compiled program, as far as it says."""
    try:
        analysis = program.cost_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    analysis = analysis[0] if isinstance(analysis, list) and analysis else analysis
    return (analysis or {}).get("flops") or None


def _memory(program: Any) -> int | None:
    """Bytes that a compiled program needs at most, as far as it says."""
    try:
        analysis = program.memory_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    if analysis is None:
        return None
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    needed = sum(int(getattr(analysis, part, 0)) for part in parts)
    # on some devices the peak leaves the temporary buffers out
    return max(needed, int(getattr(analysis, "peak_memory_in_bytes", 0))) or None
