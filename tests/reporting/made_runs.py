"""Small finished runs, as an evaluation leaves them."""

import numpy as np

from si_jax.data.image_set import ImageSet
from si_jax.evaluation import metrics
from si_jax.evaluation.results import Results
from si_jax.evaluation.store import chunk_path, write_keyed
from si_jax.reporting import runs

SETS = {"known": 60, "svhn": 40, "places": 30, "near<b>|*": 25}
GROUPS = {"svhn": "far", "places": "far", "near<b>|*": "near"}
TAPS = ["bn1", "layer1_0/bn1", "layer2_0/bn1"]
SETTINGS = {"si-z": {"steps": 2, "taps": TAPS}, "gaia-a": {"taps": TAPS[1:]}, "msp": {}}


def image_set(name, size):
    def load(index):
        shade = sum(name.encode()) % 97 + index
        return np.full((150, 120, 3), shade % 256, np.uint8), -1

    return ImageSet(name, size, name, load, lambda index: f"{name}/{index}.png")


def minimal(**changes):
    """Results of one detector, but for what is given."""
    content = {
        "results": {"msp": {}}, "settings": {"msp": {"seed": changes.get("seed", 0)}},
        "model": {"name": "resnet8", "weights_sha256": "0"}, "checkpoint": "c", "seed": 0,
        "averages": {}, "groups": {}, "counts": {}, "accuracy": None, "benchmark": "b",
        "in_distribution": "a", "protocol": "published", "preprocessing": "none",
    }  # fmt: skip
    return Results(**content | changes)


def make_run(directory, *, seed=0, shift=0.0, **changes):
    """A small finished run, as si-jax evaluate leaves it."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, size in SETS.items():
        arrays[name] = {}
        for number, detector in enumerate(SETTINGS):
            scores = rng.normal((name == "known") * (1 + shift) * number, 1, size)
            found = {"score": scores.astype(np.float32), "label": np.full(size, -1)}
            found["index"] = np.arange(size)
            if detector == "si-z":
                found["tap_density"] = rng.random((size, 3)).astype(np.float32)
            if detector == "gaia-a":
                found["tap_average"] = rng.random((size, 2)).astype(np.float32)
                found["outer"] = 1 + rng.random(size).astype(np.float32)
            arrays[name][detector] = found
            write_keyed(chunk_path(directory / "scores", detector, name), detector, found)
    results = {
        d: {n: metrics.evaluate(arrays["known"][d]["score"], arrays[n][d]["score"]) for n in GROUPS}
        for d in SETTINGS
    }
    intervals = {d: {n: {"auroc": [0.25, 0.75]} for n in GROUPS} for d in SETTINGS}
    content = {
        "results": results,
        "averages": {d: metrics.averages(rows, GROUPS) for d, rows in results.items()},
        "intervals": intervals,
        "bootstrap": {"resamples": 200, "seed": 0, "level": 0.95},
        "groups": GROUPS,
        "counts": SETS,
        "in_distribution": "known",
        "accuracy": 0.9 + 0.01 * seed,
        "model": {"name": "resnet8", "parameters": 78042, "classes": 10, "input_size": [32, 32],
                  "mean": [0.5] * 3, "std": [0.5] * 3, "weights_sha256": "ab"},
        "settings": SETTINGS,
        "benchmark": "synthetic",
        "protocol": "published",
        "preprocessing": "no resize",
        "checkpoint": "<script>alert(1)</script>",
        "seed": seed,
        "limit": None,
        "absent": {"lsun": "places"},
        "incomplete": ["far"],
        "versions": {"python": "3.11"},
        "command": "python scripts/evaluate.py --out a&b",
        "seconds": {"total": 1.5},
    } | changes  # fmt: skip
    runs.write(Results.from_json(content), directory)
    sets = [image_set(name, size) for name, size in SETS.items()]
    runs.save_thumbnails(directory, arrays, sets, lambda image: image[:120])
    return directory
