"""Scoring one set chunk by chunk: stored, resumed, shared, damaged or unreadable; and fits.

Without a network, by images and a scorer that remember what was asked of them.
"""

import dataclasses
import io
import resource
import sys
import time
import tracemalloc

import numpy as np
import pytest
from pictures import noise

import si_jax
from si_jax.data import pipeline, sources
from si_jax.data.benchmarks import Resolved
from si_jax.data.image_set import ImageSet, UnreadableImage
from si_jax.data.preprocessing import Preprocessing
from si_jax.detectors import make_detector
from si_jax.evaluation import job, scoring


class Counting(scoring.Scorer):
    """Scores without a network: the mean pixel; remembers what it was asked for."""

    def __init__(self, model, names=("energy", "msp"), bad=None):
        super().__init__({name: make_detector(name, model) for name in names})
        self.calls = []
        self.bad = bad  # the pixel value that gives no finite score

    def start(self, images, wanted=None, *, few=False):
        self.calls.append((sorted(wanted), images[:, 0, 0, 0].tolist()))
        means = images.mean(axis=(1, 2, 3)).astype(np.float32)
        means[images[:, 0, 0, 0] == self.bad] = np.nan
        return lambda: {name: {"score": means + k} for k, name in enumerate(self.detectors)}

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
            raise UnreadableImage(f"{self.set.ident(index)} cannot be decoded")
        return np.full((8, 8, 3), index, np.uint8), index % 5


def score(model, directory, images, *, scorer=None, facts=None, **options):
    scorer = scorer or Counting(model)
    options = {"batch_size": 4, "workers": 1, **options}
    facts = facts or {"protocol": "published"}
    found = scoring.score_set(
        scorer, images.set, lambda x: x, facts=facts, directory=directory, **options
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


@pytest.fixture(autouse=True)
def chunks_of_two_batches(monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 9)  # 8, in batches of 4


def chunks(*numbers, detectors=("energy", "msp")):
    return [f"{detector}/made/{number:06d}.npz" for detector in detectors for number in numbers]


def test_what_is_stored_is_not_computed_again(small, tmp_path):
    first, scorer = score(small, tmp_path, Images())
    assert indices(first) == scorer.computed["energy"] == list(range(20))
    assert first.computed == 20 and first.seconds > 0
    assert files(tmp_path) == chunks(0, 1, 2)
    images = Images()
    again, scorer = score(small, tmp_path, images)
    assert not scorer.calls and not images.loaded
    assert (again.computed, again.seconds) == (0, 0.0)
    assert indices(again) == list(range(20))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), RuntimeError("a bug")])
def test_an_interruption_keeps_what_was_done(small, tmp_path, error):
    with pytest.raises(type(error)):
        score(small, tmp_path, Images(error=error, at=18))
    assert files(tmp_path) == chunks(0)  # the second one's results were still to be fetched
    images = Images()
    found, scorer = score(small, tmp_path, images)
    assert indices(found) == list(range(20))
    assert scorer.computed["energy"] == images.loaded == list(range(8, 20))
    assert found.computed == 12
    assert files(tmp_path) == chunks(0, 1, 2)


def test_uneven_progress(small, tmp_path):
    """Each detector computes the chunks that it lacks, in the batches of the whole set."""
    score(small, tmp_path, Images())
    for path in chunks(1, detectors=["energy"]) + chunks(2, detectors=["msp"]):
        (tmp_path / path).unlink()
    more = Counting(small, ("energy", "msp", "max-logit"))
    found, _ = score(small, tmp_path, Images(), scorer=more)
    assert indices(found) == list(range(20)) and found.computed == 20
    rest = {"energy": list(range(8, 16)), "msp": list(range(16, 20))}
    assert more.computed == rest | {"max-logit": list(range(20))}
    batches = [images for _, images in more.calls]
    assert batches == [list(range(first, first + 4)) for first in range(0, 20, 4)]


def test_files_of_another_computation_are_replaced(small, tmp_path):
    """Also those of a larger set; and no results of both are ever mixed."""
    score(small, tmp_path, Images(40))
    with pytest.raises(KeyboardInterrupt):
        other = Images(40, error=KeyboardInterrupt(), at=18)
        score(small, tmp_path, other, facts={"protocol": "openood"})
    found, scorer = score(small, tmp_path, Images(40))
    assert scorer.computed["msp"] == list(range(8))
    found, scorer = score(small, tmp_path, Images(12))
    assert indices(found) == scorer.computed["energy"] == list(range(12))
    assert files(tmp_path) == chunks(0, 1)
    score(small, tmp_path, Images(12), batch_size=3)
    assert files(tmp_path) == chunks(0, 1)  # of 9 and 3 images
    found, scorer = score(small, tmp_path, Images(12))
    assert indices(found) == scorer.computed["energy"] == list(range(12))


@pytest.mark.parametrize("gone", [range(10), range(8, 20), (7, 11), (8,)])
def test_resuming_beside_skipped_images(small, tmp_path, gone):
    options = {"skip_unreadable": True}
    with pytest.raises(KeyboardInterrupt):
        score(small, tmp_path, Images(32, gone, error=KeyboardInterrupt(), at=31), **options)
    assert files(tmp_path) == chunks(0, 1)
    images = Images(32, gone)
    found, scorer = score(small, tmp_path, images, **options)
    rest = [k for k in range(32) if k not in gone]
    assert indices(found) == rest
    assert found.unreadable == tuple(f"made/{k}.png" for k in gone)
    assert found.computed == 16
    assert scorer.computed["energy"] == [k for k in rest if k >= 16]
    assert set(images.loaded) == {*gone, *range(16, 32)}


def test_a_file_that_cannot_grow(small, tmp_path, monkeypatch):
    """As on a full disk: what was there stays, and nothing lies beside it."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # a file that may not grow either
    score(small, tmp_path, Images())
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        with pytest.raises(OSError, match=r"made/000000\.npz"):
            score(small, tmp_path, Images(), facts={"protocol": "openood"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_what_is_known_of_the_layers_is_not_held_in_memory(small, tmp_path, monkeypatch):
    """Nor are images, of 768 bytes: arrays are written chunk by chunk, and read when asked for."""
    monkeypatch.setattr(scoring, "CHUNK", 512)

    class Layered(Counting):
        def start(self, images, wanted=None, *, few=False):
            means = images.mean(axis=(1, 2, 3)).astype(np.float32)
            layers = np.arange(128, dtype=np.float32) + means[:, None]
            return lambda: {"energy": {"score": means, "tap_density": layers}}

    def peak(count):
        images = Images(name=f"made{count}")
        images.set = ImageSet(images.set.name, count, "", made, str)
        scorer = Layered(small, ("energy",))
        tracemalloc.start()
        found, _ = score(small, tmp_path, images, scorer=scorer, batch_size=50)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found.arrays["energy"], held

    def made(index):
        return np.full((16, 16, 3), index % 256, np.uint8), 0

    small = dataclasses.replace(small, input_size=(16, 16))
    peak(50)
    few, many = peak(1200), peak(3000)
    assert many[1] - few[1] < 1800 * 128  # a quarter of what the layers' shares take
    arrays = many[0]
    assert set(arrays) == {"score", "index", "label", "tap_density"} and len(arrays) == 4
    assert arrays["tap_density"].shape == (3000, 128)
    np.testing.assert_array_equal(arrays["tap_density"][:, 0], arrays["score"])
    (tmp_path / "energy" / "made3000" / "000002.npz").unlink()
    with pytest.raises(OSError, match=r"000002\.npz was deleted or changed meanwhile"):
        arrays["tap_density"]


def test_decoding_and_computing_overlap(small, tmp_path, monkeypatch):
    """With a decoder and a device that each need 10 ms a batch, which they sleep through."""
    device = {"free": 0.0}

    class Device(Counting):
        def start(self, images, wanted=None, *, few=False):
            fetch = super().start(images, wanted, few=few)
            ready = device["free"] = max(device["free"], time.monotonic()) + 0.01

            def wait():
                time.sleep(max(0.0, ready - time.monotonic()))
                return fetch()

            return wait

    class Slow(Images):
        def load(self, index):
            time.sleep(0.01)
            return super().load(index)

    monkeypatch.setattr(scoring, "CHUNK", 512)
    images, ratios = Slow(160), []
    for attempt in range(3):  # the machine may be busy
        began = time.monotonic()
        for _ in pipeline.batches(images.set, lambda x: x, 4, workers=4):
            pass
        middle = time.monotonic()
        score(small, tmp_path / str(attempt), images, scorer=Device(small), workers=4)
        decode, together = middle - began, time.monotonic() - middle
        ratios.append(together / max(decode, 40 * 0.01))
        if ratios[-1] < 1.25:
            return
    pytest.fail(f"the work of both takes longer than that of one: {ratios}")


def test_skipped_images_are_counted_and_named_every_time(small, tmp_path, capsys):
    gone = {1, 2, 13}
    rest = [k for k in range(20) if k not in gone]
    told = "made: 3 of 20 images cannot be read and are left out: made/1.png, made/2.png, made/13"
    for computed in (20, 0):
        found, _ = score(small, tmp_path, Images(unreadable=gone), skip_unreadable=True)
        assert indices(found) == rest
        assert found.unreadable == ("made/1.png", "made/2.png", "made/13.png")
        assert found.computed == computed
        assert capsys.readouterr().err.count(told) == 1

    with pytest.raises(ValueError, match=r"made/1\.png"):  # not without being asked to
        score(small, tmp_path, Images(unreadable=gone))
    found, _ = score(small, tmp_path, Images(unreadable={13}), skip_unreadable=True)  # restored
    assert indices(found) == [k for k in range(20) if k != 13]
    assert indices(score(small, tmp_path, Images())[0]) == list(range(20))


def test_not_one_image_can_be_read(small, tmp_path):
    with pytest.raises(ValueError, match="made: not one image can be read"):
        score(small, tmp_path, Images(6, range(6)), skip_unreadable=True)


def test_an_image_that_is_damaged_between_two_runs(small, tmp_path):
    score(small, tmp_path, Images())
    more = Counting(small, ("energy", "max-logit"))
    with pytest.raises(ValueError, match="made: the stored scores of 'max-logit'"):
        score(small, tmp_path, Images(unreadable={3}), scorer=more, skip_unreadable=True)


def test_a_score_that_is_not_finite_is_an_error(small, tmp_path):
    with pytest.raises(ValueError, match=r"'energy' .* not finite for made/14\.png"):
        score(small, tmp_path, Images(), scorer=Counting(small, bad=14))
    assert files(tmp_path) == chunks(0)


def test_images_that_do_not_fit_the_network(small, tmp_path):
    images = Images()
    images.set = ImageSet("made", 3, "f", lambda k: (np.zeros((9, 8, 3), np.uint8), 0), str)
    with pytest.raises(ValueError, match=r"shape \(9, 8, 3\).* shape \(8, 8, 3\)"):
        score(small, tmp_path, images)


IMAGES = noise(100)
NAMES = ("knn", "vim", "energy")


@pytest.fixture
def fit(small, tmp_path):
    """Fits beside what else determines them; the detectors."""
    train = sources.from_arrays("train", IMAGES)
    preprocessing = Preprocessing(resize=8, crop=(8, 8))
    sets = Resolved("made", 4, "published", preprocessing, train, train, ood=())

    def run(protocol="published"):
        made = job.make_detectors(NAMES, small, options={"knn": {"k": 5}})
        given = job.Job(small, made, dataclasses.replace(sets, protocol=protocol))
        told, (note,) = scoring.fit_job(given, tmp_path)
        assert told == {"set": "train", "images": 100, "detectors": ["knn", "vim"]}
        assert note.startswith("train: 100 of its 100 images are, byte for byte, among the 100")
        return made

    return run


def test_all_fits_share_one_pass_and_are_kept(fit, small, tiny_images, tmp_path, monkeypatch):
    passes, original = [], scoring.batches
    monkeypatch.setattr(scoring, "batches", lambda *a, **k: passes.append(1) or original(*a, **k))
    first, again = fit(), fit()
    assert len(passes) == 1  # the second time from the files
    (tmp_path / "knn.npz").write_bytes(b"nonsense")
    scores = {name: first[name].score(tiny_images) for name in ("knn", "vim")}
    for name, expected in scores.items():
        np.testing.assert_array_equal(again[name].score(tiny_images), expected)
    direct = si_jax.make_detector("knn", small, k=5).fit(IMAGES).score(tiny_images)
    repaired = fit()["knn"]
    assert len(passes) == 2
    np.testing.assert_array_equal(repaired.score(tiny_images), scores["knn"])
    np.testing.assert_allclose(scores["knn"], direct, rtol=1e-4, atol=1e-4)
    fit("openood")
    assert len(passes) == 3
