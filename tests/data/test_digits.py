import numpy as np
import pytest

from si_jax.data import digits


@pytest.fixture(scope="module")
def test_split():
    return digits.load("test")


def test_splits_are_fixed_stratified_disjoint_and_inked(test_split):
    train, train_labels = digits.load("train")
    test, test_labels = test_split
    assert (train.shape, test.shape) == ((1200, 32, 32, 3), (597, 32, 32, 3))
    assert train.dtype == test.dtype == np.uint8
    share = np.bincount(train_labels, minlength=10) / 1200 - np.bincount(test_labels) / 597
    assert np.abs(share).max() < 0.002
    both = np.concatenate([train, test]).reshape(1797, -1)
    assert len(np.unique(both, axis=0)) == 1797
    np.testing.assert_array_equal(train, digits.load("train")[0])
    assert np.ptp(test, axis=-1).max() == 0 and (test.min(), test.max()) == (0, 255)
    counts, _ = digits._counts_and_labels("test")
    blocks = test[..., 0].reshape(597, 8, 4, 8, 4).mean(axis=(2, 4))
    assert np.corrcoef(blocks.ravel(), counts.ravel())[0, 1] > 0.98
    with pytest.raises(ValueError, match="'validation'"):
        digits.load("validation")


@pytest.mark.parametrize("name", digits.OOD_SETS)
def test_ood_set(name):
    make = digits.OOD_SETS[name]
    images = make(40, seed=3)
    assert (images.shape, images.dtype) == ((40, 32, 32, 3), np.uint8)
    assert np.ptp(images, axis=-1).max() == 0
    np.testing.assert_array_equal(images, make(40, seed=3))
    assert not np.array_equal(images, make(40, seed=4))
    assert len(np.unique(images.reshape(40, -1), axis=0)) == 40
    assert make(0).shape == (0, 32, 32, 3)


def test_shuffled_keeps_pixels_but_never_the_image(test_split):
    images = digits.shuffled(700)  # more than there are held-out digits
    pixels = {np.sort(image, axis=None).tobytes() for image in test_split[0]}
    assert all(np.sort(image, axis=None).tobytes() in pixels for image in images)
    originals = {image.tobytes() for image in test_split[0]}
    assert not any(image.tobytes() in originals for image in images)


def test_letters_and_noise_are_inked_like_digits_and_no_letter_looks_like_one(test_split):
    ink = test_split[0].mean()
    assert abs(digits.letters(200).mean() / ink - 1) < 0.15
    assert abs(digits.noise(200).mean() / ink - 1) < 0.1 and len(digits.noise()) == 500
    assert not set(digits.LETTERS) & set("OoQDIilZzSsBGgqbJ")
