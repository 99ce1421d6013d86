import threading
import time

import numpy as np
import pytest
from pictures import write

from si_jax.data.folders import from_folder
from si_jax.data.image_set import ImageSet, UnreadableImage
from si_jax.data.pipeline import batches
from si_jax.data.preprocessing import Preprocessing

CROP = Preprocessing(crop=(4, 4))


def make_set(count=10, unreadable=(), log=None, delay=0.0):
    """Images filled with their own index; `log` receives the indices as they are decoded."""

    def load(index):
        time.sleep(delay * (1 + index % 3))
        if log is not None:
            log.append(index)
        if index in unreadable:
            raise UnreadableImage(f"image {index} is broken.")
        return np.full((4, 4, 3), index, np.uint8), index * 2

    return ImageSet("made", count, "0", load, lambda index: f"made[{index}]")


def decoding_threads():
    return [thread for thread in threading.enumerate() if "si_jax-decode" in thread.name]


def test_shape_padding_and_order():
    found = list(batches(make_set(10, delay=0.001), CROP, 4, workers=3))
    assert [(batch.images.shape, batch.images.dtype) for batch in found] == [
        ((4, 4, 4, 3), np.uint8)
    ] * 3
    np.testing.assert_array_equal(found[1].images[:, 0, 0, 0], [4, 5, 6, 7])
    np.testing.assert_array_equal(found[1].labels, [8, 10, 12, 14])
    np.testing.assert_array_equal(found[2].indices, [8, 9, -1, -1])
    np.testing.assert_array_equal(found[2].mask, [True, True, False, False])
    np.testing.assert_array_equal(found[2].labels, [16, 18, -1, -1])
    assert not found[2].images[2:].any()
    assert all(batch.unreadable == () for batch in found)
    assert not decoding_threads()
    for options in ({"workers": 1, "prefetch": 0}, {"workers": 5, "prefetch": 4}):
        again = [batch.images for batch in batches(make_set(10), CROP, 4, **options)]
        np.testing.assert_array_equal(again, [batch.images for batch in found])


def test_never_more_than_a_few_batches_ahead_and_closing_early_ends_the_threads():
    log = []
    stream = batches(make_set(1000, log=log), CROP, 5, prefetch=2)
    assert not log and not decoding_threads()  # nothing is decoded before it's asked for
    for used in range(1, 4):
        next(stream)
        time.sleep(0.02)
        assert max(log) < 5 * (used + 2)
    assert decoding_threads()
    stream.close()
    decoded = len(log)
    time.sleep(0.02)
    assert not decoding_threads() and len(log) == decoded


def test_unreadable_images_are_an_error_or_skipped_and_named_on_demand():
    stream = batches(make_set(10, unreadable={5}), CROP, 4)
    next(stream)
    with pytest.raises(UnreadableImage, match="image 5 is broken"):
        next(stream)
    assert not decoding_threads()
    found = list(batches(make_set(10, unreadable={5, 7, 9}), CROP, 4, skip_unreadable=True))
    assert [batch.unreadable for batch in found] == [(), ("made[5]", "made[7]"), ("made[9]",)]
    np.testing.assert_array_equal(found[1].mask, [True, False, True, False])
    np.testing.assert_array_equal(found[1].indices, [4, 5, 6, 7])
    np.testing.assert_array_equal(found[1].labels, [8, -1, 12, -1])
    assert not found[1].images[1].any()
    later = list(batches(make_set(8, unreadable={4, 5, 6, 7}), CROP, 4, skip_unreadable=True))
    assert not later[1].mask.any() and len(later[1].unreadable) == 4
    with pytest.raises(UnreadableImage, match=r"None of the first 4 images .*made\[0\]"):
        list(batches(make_set(8, unreadable=set(range(8))), CROP, 4, skip_unreadable=True))


def test_other_errors_are_never_skipped():
    def broken(image):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(batches(make_set(), broken, 4, skip_unreadable=True))
    assert not decoding_threads()
    for options in ({"batch_size": 0}, {"workers": 0}, {"prefetch": -1}):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=rf"{name} \(={value}\)"):  # at once
            batches(make_set(), CROP, **{"batch_size": 4, **options})


def test_images_of_different_shapes(tmp_path):
    for name, size in (("a", 8), ("b", 9)):
        write(tmp_path / f"{name}.png", np.zeros((size, size, 3), np.uint8))
    folder = from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"b\.png is uint8 of shape \(9, 9, 3\)"):
        list(batches(folder, lambda image: image, 2))
    assert next(iter(batches(folder, CROP, 2))).mask.all()
