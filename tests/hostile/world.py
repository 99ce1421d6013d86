"""A small world to damage: a network, images, a finished run, a saved detector; and its readers.

A reader takes the world's directory and returns a text that is the same for the same bits.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

import si_jax
from si_jax import cli, commands
from si_jax.data import sources
from si_jax.data.benchmarks import OodSet, Resolved
from si_jax.data.folders import from_folder
from si_jax.data.image_set import ImageSet
from si_jax.data.preprocessing import Preprocessing
from si_jax.detectors.loading import load_detector
from si_jax.evaluation import scoring
from si_jax.evaluation.job import Job, make_detectors
from si_jax.reporting import runs
from si_jax.training import training
from si_jax.weights.checkpoint import load_model, save_checkpoint
from si_jax.weights.convert import load_state, to_float32
from si_jax.weights.saved import weights_hash

CLASSES = 3
FITTED = "mahalanobis"
DETECTORS = ("msp", FITTED)


def digest(*arrays: object) -> str:
    """Hash of arrays and of whatever else can be written as text."""
    sha = hashlib.sha256()
    for array in map(np.asarray, arrays):
        sha.update(f"{array.dtype}{array.shape}".encode())
        sha.update(array.tobytes() if array.dtype != object else b"")
    return sha.hexdigest()


def make(root: Path) -> None:
    """Write the world."""
    rng = np.random.default_rng(0)
    for part, count in (("val", 12), ("train", 24)):
        for label in range(CLASSES):
            _images(root / "data" / part / f"class{label}", count, rng)
    for name in ("one", "two"):
        _images(root / "data" / "ood" / name, 30, rng)
    model = si_jax.build_model("resnet8", CLASSES, seed=1, input_size=(8, 8), widths=(4, 6, 8))
    save_checkpoint(root / "checkpoint", model)
    images = rng.integers(0, 256, (20, 8, 8, 3), np.uint8)
    labels = rng.integers(0, CLASSES, 20)
    np.savez_compressed(root / "images.npz", images=images, labels=labels)
    crops = rng.integers(0, 256, (32, 32, 3, 6), np.uint8)
    content = {"X": crops, "y": rng.integers(1, 11, (6, 1), np.uint8)}
    savemat(root / "test_32x32.mat", content, do_compression=True)
    arrays = {f"layer{i}.weight": rng.normal(size=(4, 3)).astype(np.float32) for i in range(5)}
    np.savez(root / "weights.npz", **arrays)
    Image.fromarray(crops[..., 0]).save(root / "data" / "val" / "class0" / "crop.jpg")
    held_out = ["--images", str(root / "data" / "val")]
    out = ["--out", str(root / "detector")]
    command(["calibrate", str(root / "checkpoint"), "--detector", "msp", *held_out, *out])
    command(arguments("evaluation", root, root / "run"))
    readers = Readers(root)
    readers.scores(root)
    readers.fit(root)
    readers.training(root)


def _images(folder: Path, count: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")


def command(argv: list[str]) -> None:
    """Run a command of `si-jax` as its own process would; SystemExit unless all went well."""
    cli.run(lambda: commands.dispatch(argv))


def arguments(which: str, root: Path, out: Path) -> list[str]:
    """The command that evaluates, or that trains."""
    options = {"--dataset": root / "data", "--out": out, "--batch-size": 8}
    if which == "evaluation":
        options["--checkpoint"] = root / "checkpoint"
        line = ["evaluate", "--detectors", *DETECTORS]
    else:
        options |= {"--init": root / "checkpoint", "--epochs": 8}
        line = ["train"]
    return [*line, *(str(x) for pair in options.items() for x in pair)]


def evaluated(out: Path) -> str:
    """The bits of a finished evaluation."""
    scores = {}
    for path in sorted((out / "scores").rglob("*.npz")):
        with np.load(path) as file:
            scores[str(path.relative_to(out))] = digest(*(file[name] for name in sorted(file)))
    results = json.loads((out / "results.json").read_text())["results"]
    return json.dumps([scores, results])


def trained(out: Path) -> str:
    """The bits of a finished training."""
    return weights_hash(dict(load_model(out).variables))


class Readers:
    """Everything that reads files, by the name of what it reads.

    `root` is an undamaged world, for what is needed beside the damaged file.
    """

    def __init__(self, root: Path):
        self.model = load_model(root / "checkpoint")
        self.sets = {
            name: from_folder(root / "data" / path, name=name)
            for name, path in (("known", "val"), ("one", "ood/one"), ("train", "train"))
        }
        with np.load(root / "images.npz") as file:
            self.batch = file["images"], file["labels"]
        sets = Resolved(
            benchmark="known",
            num_classes=self.model.num_classes,
            protocol="own",
            preprocessing=Preprocessing(resize=8, crop=(8, 8)),
            test=self.sets["known"],
            train=self.sets["train"],
            ood=(OodSet("one", "far", self.sets["one"]),),
        )
        self.job = Job(self.model, make_detectors(["msp"], self.model, batch_size=8), sets)

    def scores(self, root: Path) -> str:
        scored = scoring.score_job(self.job, root / "store")
        return digest(*(one.arrays["msp"]["score"] for one in scored.values()))

    def fit(self, root: Path) -> str:
        made = make_detectors([FITTED], self.model, batch_size=8)
        job = dataclasses.replace(self.job, detectors=made)
        scoring.fit_job(job, root / "fits")
        return digest(*(v for _, v in sorted(made[FITTED].state.items())))

    def training(self, root: Path) -> str:
        images, labels = self.batch
        recipe = training.Recipe(epochs=1, batch_size=10)
        trained = training.train(self.model, images, labels, recipe, directory=root / "training")
        return weights_hash(dict(trained.variables))

    def run(self, root: Path) -> str:
        run = runs.load(root / "run")
        scores = [a["score"] for sets in run.arrays.values() for a in sets.values()]
        picks = [image for kept in run.thumbnails.values() for image in kept.values()]
        return digest(*scores, *picks) + json.dumps(run.results.to_json(), sort_keys=True)

    def checkpoint(self, root: Path) -> str:
        model = load_model(root / "checkpoint")
        facts = {k: v for k, v in model.card.items() if k != "versions"}
        return weights_hash(dict(model.variables)) + json.dumps(facts, sort_keys=True)

    def detector(self, root: Path) -> str:
        detector = load_detector(root / "detector")
        return weights_hash(dict(detector.model.variables)) + digest(detector.threshold.scores)

    def archive(self, root: Path) -> str:
        return _pixels(sources.from_npz(root / "images.npz"))

    def matlab(self, root: Path) -> str:
        return _pixels(sources.from_svhn_mat(root / "test_32x32.mat"))

    def images(self, root: Path) -> str:
        return _pixels(from_folder(root / "data" / "val" / "class0"))

    def weights(self, root: Path) -> str:
        state = load_state(root / "weights.npz", None, [])[0]
        return digest(*(to_float32(k, v) for k, v in sorted(state.items())))

    def report(self, root: Path) -> str:
        return printed(root, "report", root / "run", "--out", root / "report")

    def predict(self, root: Path) -> str:
        return printed(root, "predict", root / "detector", root / "data" / "ood" / "one", "--json")


def printed(root: Path, *words: object) -> str:
    """What a command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        command([str(word) for word in words])
    return out.getvalue().replace(str(root), "")


def _pixels(images: ImageSet) -> str:
    loaded = [images.load(index) for index in range(len(images))]
    return digest(*(part for image, label in loaded for part in (image, label)))


KINDS: dict[str, tuple[str, str, bool]] = {
    "score file": ("scores", "store/**/*.npz", True),
    "fit": ("fit", "fits/*.npz", True),
    "score file of a run": ("run", "run/scores/**/*.npz", True),
    "thumbnails": ("run", "run/thumbnails.npz", True),
    "results.json": ("run", "run/results.json", False),
    "card.json": ("checkpoint", "checkpoint/card.json", True),
    "weights directory": ("checkpoint", "checkpoint/weights/**/*", True),
    "detector directory": ("detector", "detector/**/*", True),
    "state of a training": ("training", "training/state/**/*", True),
    "npz of images": ("archive", "images.npz", True),
    "image": ("images", "data/val/class0/*", False),
    "MATLAB file": ("matlab", "test_32x32.mat", False),
    "npz of weights": ("weights", "weights.npz", True),
    "si-jax report": ("report", "run/results.json", False),
    "si-jax predict": ("predict", "detector/**/*", True),
}
"""Kind -> reader, which files are damaged, and whether other values than the written are a fault.

An image, a MATLAB file and a run's results hold no hash: there, a value may become another.
"""


def reader(readers: Readers, kind: str) -> Callable[[Path], str]:
    """The reader of a kind."""
    return getattr(readers, KINDS[kind][0])


def victims(root: Path, kind: str) -> list[Path]:
    """The files of a kind."""
    paths = sorted(path for path in root.glob(KINDS[kind][1]) if path.is_file())
    assert paths, f"{kind}: there is no {KINDS[kind][1]} in {os.listdir(root)}"
    return paths
