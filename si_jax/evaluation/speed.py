"""Times of the input pipeline and of the detectors, for `scripts/benchmark.py`."""

import contextlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from PIL import Image
from tqdm import tqdm

from si_jax import models, splitting
from si_jax.data import digits, sources
from si_jax.data.checks import check_least
from si_jax.data.image_set import ImageSet
from si_jax.data.pipeline import batches
from si_jax.detectors import DETECTORS, Inputs, make_detector
from si_jax.detectors.base import State
from si_jax.model import Model

TFDS_SETS = (("cifar10", "test"), ("cifar100", "test"), ("svhn_cropped", "test"))
"""Those that are timed where they are prepared."""

LEAST_SECONDS = 0.3
"""How long short programs are timed at a time, being called over and over."""

FIT_IMAGES = 64
"""How many images those detectors that need a fit are fitted on, or two a class if that is more."""

ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "si-z, activation": ("si-z", {"engine": "activation"}),
    "si-z, gradient": ("si-z", {"engine": "gradient"}),
    "si-z, multiply, closed": ("si-z", {"preset": "published-defaults", "engine": "closed"}),
    "si-z, multiply, general": ("si-z", {"preset": "published-defaults", "engine": "general"}),
    "si-a, one step": ("si-a", {"steps": 1}),
    "si-a, two steps": ("si-a", {}),
}
"""What the row of an engine is called -> the detector and its options."""

TIMED: dict[str, tuple[str, dict[str, Any]]] = {
    **ENGINES,
    **{name: (name, {}) for name in DETECTORS if name not in ("si-z", "si-a")},
}
"""What a row is called -> the detector and its options: every engine, and every other detector."""

QUICK = ("si-z, activation", "si-z, gradient", "si-z, multiply, closed", "si-c", "msp", "energy")
"""The rows that are timed where time is short."""


@contextlib.contextmanager
def image_sets(
    folder: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None
) -> Iterator[dict[str, ImageSet]]:
    """Sources to time: name -> set.

    Args:
        folder: a folder of images; None for small PNG and JPEG files that are made for the while.
        data_dir: directory of TFDS sets, of which those of `TFDS_SETS` that are prepared are
            taken.

    Raises:
        ValueError: if `folder` holds no images, or `data_dir` is given and holds no such set.
    """
    sets = {"digits, arrays": sources.from_arrays("digits", *digits.load("test"))}
    with tempfile.TemporaryDirectory() as scratch:
        if folder is not None:
            sets[f"folder {folder}"] = sources.from_folder(folder)
        else:
            for kind, side in (("png", 32), ("jpg", 32), ("jpg", 256)):
                path = Path(scratch, f"{kind}{side}")
                make_folder(path, kind, side)
                sets[f"folder, {kind.upper()} {side}x{side}"] = sources.from_folder(path)
        prepared = {}
        if data_dir is not None:
            for name, split in TFDS_SETS:
                with contextlib.suppress(sources.MissingSet):
                    prepared[f"TFDS, {name}/{split}"] = sources.from_tfds(
                        name, split, data_dir, fetch=False
                    )
            if not prepared:
                names = ", ".join(name for name, _ in TFDS_SETS)
                raise ValueError(f"{data_dir} holds none of {names}: prepare one of them there")
        yield sets | prepared


def time_pipeline(
    sets: Mapping[str, ImageSet],
    transform: Callable[[np.ndarray], np.ndarray],
    *,
    workers: Sequence[int],
    limit: int,
    batch_size: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Images/s of decoding, transforming and batching, with nothing done to the batches.

    Args:
        sets: name -> set.
        transform: as for `si_jax.data.pipeline.batches`.
        workers: numbers of threads to try.
        limit: images of each set.
        batch_size: rows of a batch.
        repeats: passes over each set, of which the median counts.

    Returns:
        For each set `"source"`, `"images"` and `"images_per_second"`, one for each of `workers`.
    """
    sets = {name: sources.subset(images, limit) for name, images in sets.items()}
    jobs = [(name, count) for name in sets for count in workers]
    seconds: dict[tuple[str, int], list[float]] = {job: [] for job in jobs}
    with tqdm(total=(repeats + 1) * len(jobs), desc="data", unit="pass", leave=False) as bar:
        for repeat in range(repeats + 1):  # the first pass warms the caches up and is not counted
            for job in jobs:
                name, count = job
                began = time.perf_counter()
                for _ in batches(sets[name], transform, batch_size, workers=count):
                    pass
                if repeat:
                    seconds[job].append(time.perf_counter() - began)
                bar.update()
    return [
        {
            "source": name,
            "images": len(images),
            "images_per_second": [
                len(images) / statistics.median(seconds[name, count]) for count in workers
            ],
        }
        for name, images in sets.items()
    ]


def random_model(
    name: str, input_size: tuple[int, int] | None = None, precision: str = "highest"
) -> Model:
    """A network with random weights, drawn without compiling its initialisation.

    Weights are normal with He's variance, scales and variances of norms 1 and offsets 0.

    Args:
        name: a key of `si_jax.models.ARCHITECTURES`.
        input_size: height and width of the images; None for the architecture's own.
        precision: see `si_jax.Model`.

    Raises:
        ValueError: if there is no such architecture.
    """
    arch = models.architecture(name)
    size = tuple(input_size or arch.input_size)
    module: nn.Module = arch.build(num_classes=arch.num_classes, **arch.options)
    images = jax.ShapeDtypeStruct((1, *size, len(arch.mean)), np.float32)
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
        mean=arch.mean,
        std=arch.std,
        head=arch.head,
        name=name,
        call_kwargs={"train": False},
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
        The forward pass, then each detector, then `others`: `"name"`, `"seconds_per_image"`,
        `"images_per_second"`, `"ratio"`, `"ratio_low"` and `"ratio_high"` (the least and the
        greatest), `"compile_seconds"`, `"flops_per_image"`, `"flops_ratio"` and `"memory_bytes"`
        (what the compiled program says it does and needs; None where it does not).

    Raises:
        ValueError: if `batch_size` is not positive.
    """
    check_least(1, batch_size=batch_size)

    def logits(variables, images, state):
        return splitting.forward(model, variables, model.normalise(images)).logits

    def program(detector):
        return lambda variables, images, state: detector.compute(
            Inputs(model, variables, images), state
        )

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, *model.image_shape), np.uint8)
    count = max(FIT_IMAGES, 2 * model.num_classes)
    training = rng.integers(0, 256, (count, *model.image_shape), np.uint8)
    labels = np.arange(count) % model.num_classes
    functions: dict[str, Callable[..., Any]] = {"forward pass": logits}
    states: dict[str, State] = {"forward pass": {}}
    chosen = TIMED if names is None else {name: TIMED[name] for name in names}
    for title, (name, options) in tqdm(chosen.items(), desc="fitting", leave=False):
        detector = make_detector(name, model, batch_size=batch_size, **options)
        functions[title] = program(detector)
        if detector.needs_fit:
            detector.fit(training, labels)
        states[title] = detector.check_fitted()

    device = jax.local_devices()[0]
    shared = jax.device_put((model.variables, images), device)
    arguments = {k: (*shared, jax.device_put(state, device)) for k, state in states.items()}
    programs, compile_seconds = {}, {}
    for title, function in tqdm(functions.items(), desc="compiling", unit="program", leave=False):
        began = time.perf_counter()
        programs[title] = jax.jit(function).lower(*arguments[title]).compile()
        compile_seconds[title] = time.perf_counter() - began

    def caller(title):
        return lambda: jax.block_until_ready(programs[title](*arguments[title]))

    run = {title: caller(title) for title in programs} | dict(others or {})
    for function in run.values():
        function()  # warms up
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
            }
        )
    return rows


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


def make_folder(path: Path, kind: str, side: int, count: int = 200) -> None:
    """Write smooth random images, which compress as photographs rather than as noise do."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (max(2, side // 8), max(2, side // 8), 3), np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        image.save(path / f"{number:04d}.{kind}")
