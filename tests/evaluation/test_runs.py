import csv
import errno
import functools
import io
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from si_jax import cli
from si_jax.commands import evaluate
from si_jax.data import digits
from si_jax.data.image_set import ImageSet, UnreadableImage
from si_jax.detectors import make_detector
from si_jax.evaluation import benchmark, scoring
from si_jax.evaluation.metrics import METRICS
from si_jax.evaluation.store import Store
from si_jax.reporting import html

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "evaluate.py"
SETS = ["digits", "photos", "shuffled", "noise", "letters"]
DETECTORS = ["energy", "gaia-z"]
LIMIT = 150  # three batches


# Scoring one set.


class Counting(scoring.Scorer):
    """Scores without a network: the mean pixel; remembers what it was asked for."""

    def __init__(self, model, names=("energy", "msp"), bad=None):
        super().__init__({name: make_detector(name, model) for name in names})
        self.calls = []
        self.bad = bad  # the pixel value that gives no finite score

    def __call__(self, images, wanted=None):
        self.calls.append((sorted(wanted), images[:, 0, 0, 0].tolist()))
        means = images.mean(axis=(1, 2, 3)).astype(np.float32)
        means[images[:, 0, 0, 0] == self.bad] = np.nan
        return {name: {"score": means + k} for k, name in enumerate(self.detectors)}

    @property
    def computed(self):
        """detector -> the images that it was asked for, by their pixel."""
        found = {name: [] for name in self.detectors}
        for wanted, images in self.calls:
            for name in wanted:
                found[name] += images
        return found


class Images:
    """Image k is filled with k; some cannot be read, and one may end the run."""

    def __init__(self, size=20, unreadable=(), name="made", error=None, at=None):
        self.unreadable = set(unreadable)
        self.error, self.at = error, at
        self.loaded = []
        self.set = ImageSet(name, size, f"{name}{size}", self.load, lambda k: f"{name}/{k}.png")

    def load(self, index):
        self.loaded.append(index)
        if index == self.at and self.error is not None:
            raise self.error
        if index in self.unreadable:
            raise UnreadableImage(f"{self.set.ident(index)} can't be decoded")
        return np.full((32, 32, 3), index, np.uint8), index % 5


def score(model, directory, images, *, scorer=None, facts=None, **options):
    scorer = scorer or Counting(model)
    options = {"batch_size": 4, "workers": 1, **options}
    facts = facts or {"protocol": "published"}
    found = scoring.score_set(
        scorer, images.set, lambda x: x, facts=facts, store=Store(directory), **options
    )
    return found, scorer


def indices(found):
    rows = {name: arrays["index"].tolist() for name, arrays in found.arrays.items()}
    for name, arrays in found.arrays.items():
        shift = list(found.arrays).index(name)
        np.testing.assert_array_equal(arrays["score"], arrays["index"] + shift)
        np.testing.assert_array_equal(arrays["label"], arrays["index"] % 5)
    (first, *others) = rows.values()
    assert all(other == first for other in others)
    return first


def files(directory):
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


def test_what_is_stored_is_not_computed_again(digits_model, tmp_path):
    first, scorer = score(digits_model, tmp_path, Images())
    assert indices(first) == list(range(20))
    assert scorer.computed["energy"] == list(range(20))
    assert first.computed == 20
    assert first.seconds > 0
    assert files(tmp_path) == ["energy/made.npz", "msp/made.npz"]

    images = Images()
    again, scorer = score(digits_model, tmp_path, images)
    assert not scorer.calls
    assert not images.loaded
    assert (again.computed, again.seconds) == (0, 0.0)
    assert indices(again) == list(range(20))

    more = Counting(digits_model, ("energy", "msp", "max-logit"))
    assert indices(score(digits_model, tmp_path, Images(), scorer=more)[0]) == list(range(20))
    assert more.computed == {"energy": [], "msp": [], "max-logit": list(range(20))}


@pytest.mark.parametrize(
    "change",
    [
        {"facts": {"protocol": "openood"}},
        {"facts": {"protocol": "published", "weights": "others"}},
        {"images": {"size": 21}},
    ],
)
def test_a_file_of_another_computation_is_not_used(digits_model, tmp_path, change):
    score(digits_model, tmp_path, Images())
    images = Images(**change.get("images", {}))
    found, scorer = score(digits_model, tmp_path, images, facts=change.get("facts"))
    assert scorer.computed["energy"] == list(range(images.set.size))
    assert found.computed == images.set.size


def test_a_changed_option_concerns_its_detector_alone(digits_model, tmp_path):
    score(digits_model, tmp_path, Images())
    scorer = Counting(digits_model)
    scorer.detectors["energy"] = make_detector("energy", digits_model, temperature=2.0)
    score(digits_model, tmp_path, Images(), scorer=scorer)
    assert scorer.computed == {"energy": list(range(20)), "msp": []}


def damaged(kind, content):
    if kind == "array":
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(3))
        return buffer.getvalue()
    if kind == "objects":
        buffer = io.BytesIO()
        np.savez(buffer, score=np.array([{}], object), key=np.array("k"), seen=np.array(1))
        return buffer.getvalue()
    middle = len(content) // 2
    flipped = content[: middle - 40] + bytes(255 - b for b in content[middle - 40 : middle])
    return {
        "empty": b"",
        "truncated": content[:middle],
        "garbage": b"not a file of arrays",
        "flipped": flipped + content[middle:],
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "truncated", "garbage", "flipped", "array", "objects"])
def test_a_damaged_file_is_computed_anew(digits_model, tmp_path, kind):
    score(digits_model, tmp_path, Images())
    path = tmp_path / "energy" / "made.npz"
    path.write_bytes(damaged(kind, path.read_bytes()))
    found, scorer = score(digits_model, tmp_path, Images())
    assert scorer.computed == {"energy": list(range(20)), "msp": []}
    assert indices(found) == list(range(20))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), RuntimeError("a bug")])
def test_an_interruption_keeps_what_was_done(digits_model, tmp_path, error):
    with pytest.raises(type(error)):
        score(digits_model, tmp_path, Images(error=error, at=13))
    assert files(tmp_path) == ["energy/made.partial.npz", "msp/made.partial.npz"]
    images = Images()
    found, scorer = score(digits_model, tmp_path, images)
    assert indices(found) == list(range(20))
    assert scorer.computed["energy"] == images.loaded == list(range(12, 20))
    assert found.computed == 8
    assert files(tmp_path) == ["energy/made.npz", "msp/made.npz"]


def test_sigterm_keeps_what_was_done(digits_model, tmp_path, capsys):
    scorer = Counting(digits_model)

    class Killed(Images):
        def load(self, index):
            if index == 13:
                while len(scorer.computed["msp"]) < 12:  # the batches before, on another thread
                    time.sleep(0.01)
                time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)
            return super().load(index)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: score(digits_model, tmp_path, Killed(), scorer=scorer))
    assert ended.value.code == 143
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    found, scorer = score(digits_model, tmp_path, Images())
    assert indices(found) == list(range(20))
    assert scorer.computed["msp"] == list(range(12, 20))


def test_resuming_with_another_batch_size_and_uneven_progress(digits_model, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        score(digits_model, tmp_path, Images(error=KeyboardInterrupt(), at=9))
    with pytest.raises(KeyboardInterrupt):
        more = Counting(digits_model, ("energy", "msp", "max-logit"))
        score(
            digits_model,
            tmp_path,
            Images(error=KeyboardInterrupt(), at=6),
            scorer=more,
            batch_size=3,
        )
    assert more.computed == {"energy": [], "msp": [], "max-logit": list(range(6))}
    more = Counting(digits_model, ("energy", "msp", "max-logit"))
    found, _ = score(digits_model, tmp_path, Images(), scorer=more, batch_size=5)
    assert indices(found) == list(range(20))
    assert more.computed["max-logit"] == list(range(5, 20))
    assert more.computed["energy"] == list(range(5, 20))  # in whole batches, from 8 on


def test_partial_progress_of_another_computation_is_dropped(digits_model, tmp_path):
    score(digits_model, tmp_path, Images())
    with pytest.raises(KeyboardInterrupt):
        other = Images(error=KeyboardInterrupt(), at=9)
        score(digits_model, tmp_path, other, facts={"protocol": "openood"})
    assert "energy/made.partial.npz" in files(tmp_path)
    found, scorer = score(digits_model, tmp_path, Images())
    assert not scorer.calls
    assert indices(found) == list(range(20))
    assert files(tmp_path) == ["energy/made.npz", "msp/made.npz"]


def test_an_unreadable_image_is_an_error_that_names_it(digits_model, tmp_path):
    with pytest.raises(ValueError, match=r"made/9\.png can't be decoded"):
        score(digits_model, tmp_path, Images(unreadable={9}))
    found, scorer = score(digits_model, tmp_path, Images(unreadable={9}), skip_unreadable=True)
    assert scorer.computed["energy"] == [*range(8, 9), *range(10, 20)]  # the rest was kept
    assert found.unreadable == ("made/9.png",)


def test_skipped_images_are_counted_and_named_every_time(digits_model, tmp_path, capsys):
    gone = {1, 2, 13}
    rest = [k for k in range(20) if k not in gone]
    told = "made: 3 of 20 images cannot be read and are left out: made/1.png, made/2.png, made/13"
    for computed in (20, 0):
        found, _ = score(digits_model, tmp_path, Images(unreadable=gone), skip_unreadable=True)
        assert indices(found) == rest
        assert found.unreadable == ("made/1.png", "made/2.png", "made/13.png")
        assert found.computed == computed
        assert capsys.readouterr().err.count(told) == 1

    with pytest.raises(ValueError, match=r"made/1\.png"):  # not without being asked to
        score(digits_model, tmp_path, Images(unreadable=gone))
    found, _ = score(
        digits_model, tmp_path, Images(unreadable={13}), skip_unreadable=True
    )  # restored
    assert indices(found) == [k for k in range(20) if k != 13]
    assert indices(score(digits_model, tmp_path, Images())[0]) == list(range(20))


@pytest.mark.parametrize("gone", [range(10), range(8, 20), (7, 11), (8,)])
def test_resuming_beside_skipped_images(digits_model, tmp_path, gone):
    options = {"skip_unreadable": True}
    with pytest.raises(KeyboardInterrupt):
        score(digits_model, tmp_path, Images(20, gone, error=KeyboardInterrupt(), at=19), **options)
    assert len(files(tmp_path)) == 2
    images = Images(20, gone)
    found, scorer = score(digits_model, tmp_path, images, **options)
    rest = [k for k in range(20) if k not in gone]
    assert indices(found) == rest
    assert found.unreadable == tuple(f"made/{k}.png" for k in gone)
    assert found.computed == 4
    assert scorer.computed["energy"] == [k for k in rest if k >= 16]
    assert set(images.loaded) == {*gone, *range(16, 20)}


def test_not_one_image_can_be_read(digits_model, tmp_path):
    with pytest.raises(ValueError, match="made: not one image can be read"):
        score(digits_model, tmp_path, Images(6, range(6)), skip_unreadable=True)


def test_an_image_that_is_damaged_between_two_runs(digits_model, tmp_path):
    score(digits_model, tmp_path, Images())
    more = Counting(digits_model, ("energy", "max-logit"))
    with pytest.raises(ValueError, match="made: the stored scores of 'max-logit'"):
        score(digits_model, tmp_path, Images(unreadable={3}), scorer=more, skip_unreadable=True)


def test_a_score_that_is_not_finite_is_an_error(digits_model, tmp_path):
    with pytest.raises(ValueError, match=r"'energy' .* not finite for made/14\.png"):
        score(digits_model, tmp_path, Images(), scorer=Counting(digits_model, bad=14))
    assert "energy/made.npz" not in files(tmp_path)
    found, scorer = score(digits_model, tmp_path, Images())
    assert indices(found) == list(range(20))
    assert scorer.computed["energy"] == list(range(12, 20))


def test_images_that_do_not_fit_the_network(digits_model, tmp_path):
    images = Images()
    other = ImageSet("made", 3, "f", lambda k: (np.zeros((33, 32, 3), np.uint8), 0), str)
    images.set = other
    with pytest.raises(ValueError, match=r"shape \(33, 32, 3\).* shape \(32, 32, 3\)"):
        score(digits_model, tmp_path, images)


def test_full_disk_simulated(digits_model, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    score(digits_model, tmp_path, Images())
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    monkeypatch.setattr(scoring, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*made\.partial\.npz"):
        score(digits_model, tmp_path, Images(), facts={"protocol": "openood"})
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_a_file_that_cannot_grow(digits_model, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        with pytest.raises(OSError, match=r"made\.npz"):
            score(digits_model, tmp_path, Images())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == []
    assert indices(score(digits_model, tmp_path, Images())[0]) == list(range(20))


# The script.


def arguments(directory, *more, detectors=DETECTORS, limit=LIMIT):
    given = ["--detectors", *detectors, "--out", str(directory), *more]
    return [*given, "--limit", str(limit)] if limit else given


def environment(cache):
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    kept |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    kept |= {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    return kept | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """Two processes that evaluated into one directory at once: (directory, their outputs)."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    command = [sys.executable, str(SCRIPT), *arguments(directory)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, env=environment(cache), **pipes) for _ in range(2)]
    outputs = [process.communicate() for process in started]
    for process, (_, messages) in zip(started, outputs, strict=True):
        assert process.returncode == 0, messages
    return directory, outputs


def scores(directory, detectors=(*DETECTORS, "prediction")):
    found = {}
    for detector in detectors:
        for name in SETS:
            path = directory / "scores" / detector / f"{name}.npz"
            with np.load(path, allow_pickle=False) as file:
                found[detector, name] = {key: file[key] for key in file.files}
    return found


def assert_equal_scores(one, other, exactly=True):
    assert one.keys() == other.keys()
    for which in one:
        assert one[which].keys() == other[which].keys()
        for key in one[which]:
            if exactly or key in ("index", "label", "seen", "key"):
                np.testing.assert_array_equal(one[which][key], other[which][key])
            else:
                np.testing.assert_allclose(one[which][key], other[which][key], rtol=1e-4, atol=1e-6)


def test_two_processes_at_once(finished):
    directory, ((one, _), (other, _)) = finished
    assert one == other
    found = files(directory)
    assert not [name for name in found if "partial" in name or "/." in name or name[0] == "."]
    for arrays in scores(directory).values():
        assert len(arrays["score"]) == LIMIT
        assert np.isfinite(arrays["score"]).all()


def test_results(finished):
    directory, ((printed, messages), (_, others)) = finished
    content = json.loads((directory / "results.json").read_text())
    assert list(content["results"]) == DETECTORS
    for rows in content["results"].values():
        assert list(rows) == SETS[1:]
        for row in rows.values():
            assert set(row) >= set(METRICS)
            assert all(0 <= row[metric] <= 1 for metric in METRICS)
    expected = {"protocol": "published", "benchmark": "digits", "checkpoint": "digits", "seed": 0}
    assert {key: content[key] for key in expected} == expected
    assert content["model"]["name"] == "resnet8"
    assert content["counts"] == dict.fromkeys(SETS, LIMIT)
    assert content["unreadable"] == {}
    assert set(content["seconds"]) == {*SETS, "total"}
    assert {"python", "jax", "jaxlib", "flax", "numpy", "si-jax"} <= set(content["versions"])
    assert content["accuracy"] > 0.9
    assert all(f"{name}: " in messages + others for name in SETS)  # progress bars

    with (directory / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(DETECTORS) * 4
    for line in lines:
        row = content["results"][line["detector"]][line["set"]]
        assert int(line["images"]) == LIMIT
        for metric in METRICS:
            assert float(line[metric]) == pytest.approx(row[metric], abs=1e-6)

    for text in ("AUROC / FPR95, %", "published convention", "OpenOOD convention", "far average"):
        assert text in printed
    for detector, rows in content["results"].items():
        (line, _) = [line for line in printed.splitlines() if line.startswith(f"{detector} ")]
        for row in rows.values():
            assert f"{100 * row['auroc']:.2f} / {100 * row['fpr95']:6.2f}" in line


@pytest.fixture
def script(monkeypatch, digits_model):
    """Runs `main` with cheap parts; gives the results and (detector, set) -> images computed."""
    cached = {name: functools.cache(make) for name, make in digits.OOD_SETS.items()}
    monkeypatch.setattr(digits, "OOD_SETS", cached)
    monkeypatch.setattr(benchmark, "intervals", lambda job, arrays: {})
    monkeypatch.setattr(html, "write", lambda run, directory: directory / "report.html")
    load_model = evaluate.si_jax.load_model
    monkeypatch.setattr(
        evaluate.si_jax,
        "load_model",
        lambda name: digits_model if name == "digits" else load_model(name),
    )
    computed, current = {}, []
    batches, call = scoring.batches, scoring.Scorer.__call__

    def spy_batches(image_set, *args, **options):
        current[:] = [image_set.name]
        return batches(image_set, *args, **options)

    def spy(self, images, wanted=None):
        for name in wanted:
            computed[name, current[0]] = computed.get((name, current[0]), 0) + len(images)
        if script.real:
            return call(self, images, wanted)
        means = images.mean(axis=(1, 2, 3)).astype(np.float32)
        return {name: {"score": means % 10} for name in wanted}

    def script(*arguments):
        computed.clear()
        evaluate.main(list(arguments))
        (out,) = [b for a, b in itertools.pairwise(arguments) if a == "--out"]
        return json.loads((Path(out) / "results.json").read_text()), dict(computed)

    script.real = False
    monkeypatch.setattr(scoring, "batches", spy_batches)
    monkeypatch.setattr(scoring.Scorer, "__call__", spy)
    return script


def test_a_rerun_computes_nothing(script, finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished[0], directory)
    before = json.loads((directory / "results.json").read_text())
    results, computed = script(*arguments(directory))
    assert computed == {}
    assert results["results"] == before["results"]
    assert results["computed"] == dict.fromkeys(SETS, 0)
    assert {results["seconds"][name] for name in SETS} == {0.0}
    assert_equal_scores(scores(directory), scores(finished[0]))


def test_a_change_recomputes_what_it_must(script, tmp_path):
    def changed(*more, detectors=("energy", "si-z"), limit=40):
        _, computed = script(*arguments(tmp_path, *more, detectors=detectors, limit=limit))
        assert set(computed.values()) <= {limit or 500, 597}
        everywhere = {detector for detector, _ in computed}
        assert set(computed) == {(d, name) for d in everywhere for name in SETS}
        return everywhere

    everything = {"energy", "si-z", "prediction"}
    assert changed() == everything
    assert changed() == set()
    assert changed("--steps", "3") == {"si-z"}
    assert changed("--steps", "3", "--batch-size", "8") == set()
    assert changed("--steps", "3", "--set", "energy.temperature=2") == {"energy"}
    assert changed(detectors=("si-z", "msp")) == {"si-z", "msp"}
    assert changed("--seed", "1") == everything
    assert changed("--seed", "1", limit=30) == everything
    assert changed("--seed", "1", "--precision", "high", limit=30) == everything
    assert changed("--protocol", "openood", limit=30) == everything
    assert changed(limit=None) == everything
    assert changed("--seed", "1", limit=None) == set()  # no subset, so no seed


DRIVER = """
import json, sys, time
from si_jax.commands import evaluate
from si_jax.evaluation import benchmark, scoring
from si_jax.reporting import html

html.write = lambda run, directory: directory  # not looked at
benchmark.intervals = lambda job, arrays: {}
stall_at, log, *arguments = sys.argv[1:]
scoring.SAVE_EVERY = 0.0
batches, call = scoring.batches, scoring.Scorer.__call__
computed, current = {}, []

def slow(image_set, *args, **options):
    current[:] = [image_set.name]
    for number, batch in enumerate(batches(image_set, *args, **options)):
        if image_set.name == stall_at and number == 2:
            time.sleep(600)
        yield batch

def spy(self, images, wanted=None):
    for name in wanted:
        computed[f"{name} {current[0]}"] = computed.get(f"{name} {current[0]}", 0) + len(images)
    return call(self, images, wanted)

scoring.batches, scoring.Scorer.__call__ = slow, spy
evaluate.main(arguments)
with open(log, "w") as file:
    json.dump(computed, file)
"""


def test_killed_and_run_again(finished, tmp_path, cache):
    driver, log, directory = tmp_path / "driver.py", tmp_path / "log.json", tmp_path / "run"
    driver.write_text(DRIVER)

    def command(stall_at):
        head = [sys.executable, str(driver), stall_at, str(log)]
        return head + arguments(directory)

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": environment(cache)}
    store = Store(directory / "scores")
    names = (*DETECTORS, "prediction")
    with subprocess.Popen(command("shuffled"), **quiet) as process:
        while process.poll() is None:
            time.sleep(0.05)
            if all(_seen(store.path(name, "shuffled", partial=True)) == 128 for name in names):
                break
        process.kill()
        messages = process.stderr.read().decode()
    assert process.returncode == -signal.SIGKILL, messages
    assert not (directory / "results.json").exists()
    for name in names:
        assert store.path(name, "photos").is_file()
        assert not store.path(name, "shuffled").exists()

    subprocess.run(command("nowhere"), check=True, **quiet)
    assert_equal_scores(scores(directory), scores(finished[0]))
    counts = {"shuffled": LIMIT - 128, "noise": LIMIT, "letters": LIMIT}
    expected = {f"{name} {images}": n for name in names for images, n in counts.items()}
    assert json.loads(log.read_text()) == expected
    content = json.loads((directory / "results.json").read_text())
    assert content["computed"] == {"digits": 0, "photos": 0, **counts}
    uninterrupted = json.loads((finished[0] / "results.json").read_text())
    assert content["results"] == uninterrupted["results"]
    assert not list(directory.rglob("*.partial.npz"))


def _seen(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            return int(file["seen"])
    except OSError:
        return 0


def test_unreadable_images_of_a_folder(script, tmp_path, capsys):
    folder = tmp_path / "odd"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(5):
        image = rng.integers(0, 256, (40, 36, 3), np.uint8)
        Image.fromarray(image).save(folder / "deep" / f"{number}.png")
    (folder / "deep" / "broken.png").write_bytes((folder / "deep" / "3.png").read_bytes()[:100])
    given = arguments(tmp_path / "run", "--ood", f"odd={folder}", detectors=["energy"], limit=30)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: script(*given))
    assert ended.value.code == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert "broken.png" in errors[0]
    for _ in range(2):
        results, _ = script(*given, "--skip-unreadable")
        assert results["unreadable"] == {"odd": ["deep/broken.png"]}
        assert results["counts"]["odd"] == 5
        assert results["groups"]["odd"] == "extra"
        printed = capsys.readouterr()
        told = "odd: 1 of 6 images cannot be read and are left out: deep/broken.png"
        assert printed.err.count(told) == 1
        assert "left out of odd: 1 unreadable" in printed.out


def test_the_default_detectors_with_and_without_training_images(
    script, tmp_path, capsys, monkeypatch
):
    import dataclasses

    few = ["--limit", "8", "--fit-limit", "30"]
    results, _ = script(*few, "--out", str(tmp_path / "with"))
    assert list(results["results"]) == ["si-c", "si-z", "gaia-z", "msp", "max-logit", "energy"]
    assert results["fit"] == {"set": "digits_train", "images": 30, "detectors": ["si-c"]}
    assert "left out" not in capsys.readouterr().err

    resolve = evaluate.benchmarks.resolve

    def without_training(*args, **options):
        return dataclasses.replace(
            resolve(*args, **options), train=None, train_absent="it is nowhere."
        )

    monkeypatch.setattr(evaluate.benchmarks, "resolve", without_training)
    results, _ = script(*few, "--out", str(tmp_path / "without"))
    assert list(results["results"]) == ["si-z", "gaia-z", "msp", "max-logit", "energy"]
    assert results["fit"] == {}
    told = [x for x in capsys.readouterr().err.splitlines() if "left out" in x]
    assert told == [
        "si-c is left out: it must be fitted on training images, which are absent: it is nowhere."
    ]
    for asked in (["--detectors", "energy", "si-c"], ["--set", "si-c.form=sum"]):
        with pytest.raises(ValueError, match=r"si-c must be fitted .* it is nowhere"):
            script(*few, *asked, "--out", str(tmp_path / "asked"))


def test_a_network_that_gives_nan(
    script, tmp_path, capsys, monkeypatch, digits_model, with_variables
):
    import jax

    broken = jax.tree.map(lambda x: np.asarray(x) * np.float32("nan"), digits_model.variables)
    model = with_variables(digits_model, broken)
    monkeypatch.setattr(evaluate.si_jax, "load_model", lambda name: model)
    script.real = True
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: script(*arguments(tmp_path, detectors=["energy"], limit=8)))
    assert ended.value.code == 2
    assert "detector 'energy' gave a score that is not finite" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--detectors", "enrgy"], ["unknown detector 'enrgy'", "energy", "si-z", "gaia-a"]),
        (["--dataset", "cifar11"], ["'cifar11'", "cifar10", "cifar100", "imagenet", "digits"]),
        (["--protocol", "pubished"], ["'pubished'", "published", "openood"]),
        (["--checkpoint", "no-such"], ["no-such", "digits"]),
        (["--checkpoint", "random"], ["needs --model"]),
        (["--checkpoint", "random", "--model", "resnet7"], ["'resnet7'", "resnet20", "bit_r50x1"]),
        (["--set", "energy"], ["--set energy", "DETECTOR.OPTION=VALUE"]),
        (["--set", "temperature=2"], ["DETECTOR.OPTION=VALUE"]),
        (["--set", "energy.heat=2"], ["'energy'", "heat", "temperature"]),
        (["--set", "energy.temperature=hot"], ["temperature", "hot", "number"]),
        (["--set", "si-z.steps=2"], ["si-z", "not evaluated"]),
        (["--steps", "2"], ["energy", "steps"]),
        (["--precision", "hihg"], ["'hihg'", "highest, high, default"]),
        (["--limit", "0"], ["limit (=0)"]),
        (["--batch-size", "0"], ["batch_size (=0)"]),
        (["--ood", "mine"], ["--ood mine", "NAME=PATH"]),
        (["--ood", "mine=/no/such/folder"], ["/no/such/folder is not a folder"]),
        (["--ood", "mine={empty}"], ["holds no images", ".png"]),
        (["--ood", "mine={text}"], ["is not a folder"]),
        (["--out", "{text}"], ["text.txt"]),
    ],
)
def test_mistakes(script, tmp_path, capsys, given, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("not images")
    places = {"empty": tmp_path / "empty", "text": tmp_path / "text.txt"}
    given = [word.format(**places) for word in given]
    with pytest.raises(SystemExit) as ended:
        cli.run(
            lambda: evaluate.main([*arguments(tmp_path, detectors=["energy"], limit=4), *given])
        )
    assert ended.value.code == 2
    (message,) = [x for x in capsys.readouterr().err.splitlines() if "img/s" not in x]
    assert message.startswith("error: ")
    for text in expected:
        assert text in message


def test_a_mistake_ends_the_process_with_status_2():
    command = [sys.executable, str(SCRIPT), "--dataset", "cifar11"]
    ended = subprocess.run(command, env=environment("unused"), capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: unknown dataset 'cifar11'")
    assert ended.stderr.count("\n") == 1
