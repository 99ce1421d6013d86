"""Scoring one set: what is stored, damaged or cannot be read."""

import dataclasses
import io
import time
import tracemalloc

import numpy as np
import pytest
from counting import Counting, Images, files, indices, score

from si_jax.data import pipeline
from si_jax.data.image_set import ImageSet
from si_jax.evaluation import scoring


def test_what_is_stored_is_not_computed_again(small, tmp_path):
    first, scorer = score(small, tmp_path, Images())
    assert indices(first) == list(range(20))
    assert scorer.computed["energy"] == list(range(20))
    assert first.computed == 20
    assert first.seconds > 0
    assert files(tmp_path) == ["energy/made/000000.npz", "msp/made/000000.npz"]

    images = Images()
    again, scorer = score(small, tmp_path, images)
    assert not scorer.calls
    assert not images.loaded
    assert (again.computed, again.seconds) == (0, 0.0)
    assert indices(again) == list(range(20))

    more = Counting(small, ("energy", "msp", "max-logit"))
    assert indices(score(small, tmp_path, Images(), scorer=more)[0]) == list(range(20))
    assert more.computed == {"energy": [], "msp": [], "max-logit": list(range(20))}


def test_a_file_of_another_computation_is_not_used(small, tmp_path):
    score(small, tmp_path, Images())
    for size, facts in ((20, {"protocol": "openood"}), (21, {"protocol": "openood"})):
        images = Images(size)
        found, scorer = score(small, tmp_path, images, facts=facts)
        assert scorer.computed["energy"] == list(range(size)) and found.computed == size


def damaged(content):
    """Kind of damage -> what is in the file."""
    array, objects, middle = io.BytesIO(), io.BytesIO(), len(content) // 2
    np.save(array, np.zeros(3))
    np.savez(objects, score=np.array([{}], object), key=np.array("k"), seen=np.array(1))
    flipped = bytes(255 - b for b in content[middle - 40 : middle])
    return {
        "empty": b"",
        "truncated": content[:middle],
        "garbage": b"not a file of arrays",
        "flipped": content[: middle - 40] + flipped + content[middle:],
        "array": array.getvalue(),
        "objects": objects.getvalue(),
    }


def test_a_damaged_file_is_computed_anew(small, tmp_path):
    score(small, tmp_path, Images())
    path = tmp_path / "energy" / "made" / "000000.npz"
    for kind, content in damaged(path.read_bytes()).items():
        path.write_bytes(content)
        found, scorer = score(small, tmp_path, Images())
        assert scorer.computed == {"energy": list(range(20)), "msp": []}, kind
        assert indices(found) == list(range(20))


def test_what_is_known_of_the_layers_is_not_held_in_memory(small, tmp_path):
    """Nor are images, of 768 bytes: arrays are written chunk by chunk, and read when asked for."""

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


def test_decoding_and_computing_overlap(small, tmp_path):
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

    scorer, images = Device(small), Slow(160)
    ratios = []
    for attempt in range(3):
        began = time.monotonic()
        for _ in pipeline.batches(images.set, lambda x: x, 4, workers=4):
            pass
        middle = time.monotonic()
        score(small, tmp_path / str(attempt), images, scorer=scorer, workers=4)
        decode, together = middle - began, time.monotonic() - middle
        ratios.append(together / max(decode, 40 * 0.01))
    print(ratios)
    assert min(ratios) < 1.25, ratios


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


def test_a_score_that_is_not_finite_is_an_error(small, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 8)
    with pytest.raises(ValueError, match=r"'energy' .* not finite for made/14\.png"):
        score(small, tmp_path, Images(), scorer=Counting(small, bad=14))
    assert files(tmp_path) == ["energy/made/000000.npz", "msp/made/000000.npz"]
    found, scorer = score(small, tmp_path, Images())
    assert indices(found) == list(range(20))
    assert scorer.computed["energy"] == list(range(8, 20))


def test_images_that_do_not_fit_the_network(small, tmp_path):
    images = Images()
    other = ImageSet("made", 3, "f", lambda k: (np.zeros((9, 8, 3), np.uint8), 0), str)
    images.set = other
    with pytest.raises(ValueError, match=r"shape \(9, 8, 3\).* shape \(8, 8, 3\)"):
        score(small, tmp_path, images)
