"""Scoring one set: what is stored, interrupted, damaged or cannot be read."""

import dataclasses
import errno
import io
import os
import resource
import signal
import time
import tracemalloc

import numpy as np
import pytest

from si_jax import cli
from si_jax.data import pipeline
from si_jax.data.image_set import ImageSet, UnreadableImage
from si_jax.detectors import make_detector
from si_jax.evaluation import scoring
from si_jax.evaluation.store import Store


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
    assert files(tmp_path) == [
        "energy/made.partial.0.npz",
        "msp/made.partial.0.npz",
    ]
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


def test_progress_is_appended_in_parts(digits_model, tmp_path, monkeypatch):
    """Each file holds what is new, and what is lost of them is computed again."""
    monkeypatch.setattr(scoring, "MOST_ROWS", 8)
    written = []
    save_part = Store.save_part
    monkeypatch.setattr(
        Store,
        "save_part",
        lambda self, *args: written.append((args[0], args[3].seen)) or save_part(self, *args),
    )
    options = {"skip_unreadable": True}
    with pytest.raises(KeyboardInterrupt):
        score(digits_model, tmp_path, Images(30, {9}, error=KeyboardInterrupt(), at=26), **options)
    names = [f"made.partial.{first}.npz" for first in (0, 16, 8)]
    assert files(tmp_path) == [f"{d}/{name}" for d in ("energy", "msp") for name in names]
    assert written == [(d, 8) for _ in names for d in ("energy", "msp")]

    (tmp_path / "energy" / "made.partial.8.npz").unlink()
    found, scorer = score(digits_model, tmp_path, Images(30, {9}), **options)
    assert indices(found) == [k for k in range(30) if k != 9]
    rest = list(range(24, 30))
    assert scorer.computed == {"energy": [8, *range(10, 16), *rest], "msp": rest}
    assert found.computed == 14
    assert files(tmp_path) == ["energy/made.npz", "msp/made.npz"]


def test_a_part_that_is_deleted_meanwhile(digits_model, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "MOST_ROWS", 8)

    class Deleting(Images):
        def load(self, index):
            if index == 19:
                (tmp_path / "energy" / "made.partial.0.npz").unlink()
            return super().load(index)

    with pytest.raises(OSError, match=r"parts of .*made\.npz are gone: run it again"):
        score(digits_model, tmp_path, Deleting())
    found, scorer = score(digits_model, tmp_path, Images())
    assert indices(found) == list(range(20))
    assert scorer.computed == {"energy": list(range(8)), "msp": []}


def test_memory_grows_by_less_than_an_image_s_arrays(digits_model, tmp_path, monkeypatch):
    """But for scores, labels and indices: 32 bytes an image for two detectors, and a copy.

    An image has 768 bytes.
    """

    def peak(count):
        images = Images(name=f"made{count}")
        images.set = ImageSet(f"made{count}", count, "", made, str)
        tracemalloc.start()
        score(digits_model, tmp_path, images, scorer=Silent(digits_model), batch_size=50)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    def made(index):
        return np.full((16, 16, 3), index % 256, np.uint8), 0

    class Silent(Counting):
        def start(self, images, wanted=None, *, few=False):
            found = super().start(images, wanted, few=few)
            self.calls.clear()
            return found

    digits_model = dataclasses.replace(digits_model, input_size=(16, 16))
    monkeypatch.setattr(scoring, "MOST_ROWS", 500)
    peak(50)  # makes what is made once
    assert peak(4000) - peak(1500) < 2500 * 150


def test_decoding_and_computing_overlap(digits_model, tmp_path):
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

    scorer, images = Device(digits_model), Slow(160)
    ratios = []
    for attempt in range(3):
        began = time.monotonic()
        for _ in pipeline.batches(images.set, lambda x: x, 4, workers=4):
            pass
        middle = time.monotonic()
        score(digits_model, tmp_path / str(attempt), images, scorer=scorer, workers=4)
        decode, together = middle - began, time.monotonic() - middle
        ratios.append(together / max(decode, 40 * 0.01))
    print(ratios)
    assert min(ratios) < 1.25, ratios


def test_partial_progress_of_another_computation_is_dropped(digits_model, tmp_path):
    score(digits_model, tmp_path, Images())
    with pytest.raises(KeyboardInterrupt):
        other = Images(error=KeyboardInterrupt(), at=9)
        score(digits_model, tmp_path, other, facts={"protocol": "openood"})
    assert "energy/made.partial.0.npz" in files(tmp_path)
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
    with pytest.raises(OSError, match=r"No space left on device: .*made\.partial\.0\.npz"):
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
