"""Thresholds keep their promise."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from pictures import noise
from PIL import Image
from scipy.stats import norm

import si_jax
from si_jax.data.preprocessing import Preprocessing, preprocessing_for
from si_jax.detectors.threshold import Threshold, p_values


def drawn(rng, count):
    return np.sort(rng.normal(size=count).astype(np.float32))


@pytest.mark.parametrize(("count", "tpr"), [(19, 0.95), (100, 0.9), (333, 0.95)])
def test_the_promised_rate_holds_over_calibration_sets(count, tpr):
    rng = np.random.default_rng(0)
    thresholds = [Threshold(drawn(rng, count), tpr) for _ in range(2000)]
    accepted = norm.sf([t.value for t in thresholds])
    error = accepted.std() / np.sqrt(len(accepted))
    exact = 1 - thresholds[0].rank / (count + 1)
    assert exact >= tpr
    assert abs(accepted.mean() - exact) < 4 * error
    low, high = thresholds[0].interval
    assert abs(np.mean((low <= accepted) & (accepted <= high)) - 0.95) < 0.02


def test_p_values_are_uniform_or_larger_and_agree_with_the_threshold():
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(500):
        threshold = Threshold(drawn(rng, 60), 0.9)
        scores = rng.normal(size=50).astype(np.float32)
        scores[:5] = threshold.scores[rng.integers(60, size=5)]  # ties
        p = p_values(threshold.scores, scores)
        np.testing.assert_array_equal(scores < np.float32(threshold.value), p <= 1 - 0.9 + 1e-12)
        rates.append([(p[5:] <= a).mean() for a in (0.05, 0.1, 0.5)])
    assert np.all(np.mean(rates, axis=0) <= np.array([0.05, 0.1, 0.5]) + 0.006)


def test_ranks_by_hand():
    def rank(n, tpr):
        return Threshold(np.arange(n, dtype=np.float32), tpr).rank

    assert [rank(9, 0.9), rank(19, 0.95), rank(38, 0.95), rank(39, 0.95)] == [1, 1, 1, 2]
    assert rank(99, 0.9) == 10  # whatever 1 - 0.9 is in binary
    threshold = Threshold(np.array([0, 1, 2, 3], np.float32), 0.6)
    assert threshold.value == 1
    np.testing.assert_allclose(
        p_values(threshold.scores, np.float32([-1, 0, 2.5, 9])), [0.2, 0.4, 0.8, 1]
    )


IMAGES = noise(40, seed=5)


@pytest.fixture(scope="module")
def calibrated(small):
    return si_jax.make_detector("energy", small, batch_size=8).calibrate(IMAGES, keep_images=7)


def test_predictions(calibrated, small, tiny_images):
    result = calibrated.predict(tiny_images)
    logits = jax.nn.softmax(small.logits(tiny_images))
    np.testing.assert_array_equal(result.label, logits.argmax(axis=-1))
    np.testing.assert_allclose(result.probability, logits.max(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(result.score, calibrated.score(tiny_images), rtol=1e-6)
    np.testing.assert_array_equal(result.is_ood, result.score < calibrated.threshold.value)
    assert len(result) == 13 and set(result.as_dict()) >= {"label", "is_ood", "p_value"}
    parts = [calibrated.predict(tiny_images[i : i + 1]).score for i in range(13)]
    np.testing.assert_allclose(np.concatenate(parts), result.score, rtol=1e-5)


def test_kept_images_are_some_of_the_calibration_images(calibrated):
    kept = {example.tobytes() for example in calibrated.threshold.examples}
    assert len(kept) == 7 and kept <= {image.tobytes() for image in IMAGES}


def test_files_are_turned_upright(calibrated):
    (image,) = noise(1)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(image).copy()).save(file, "png", exif=exif)
    found = calibrated.score(file.getvalue())
    np.testing.assert_allclose(found, calibrated.score(image[None]), rtol=1e-5)


def test_the_card_says_how_files_are_prepared(small):
    assert preprocessing_for((8, 8)) == Preprocessing((8, 8), 8)
    assert preprocessing_for((8, 6)) == Preprocessing((8, 6), (8, 6))
    entry = {"resize": None, "crop": [8, 8]}
    card = {**small.card, "preprocessing": entry}
    detector = si_jax.make_detector("energy", dataclasses.replace(small, card=card))
    assert detector.preprocessing == Preprocessing((8, 8), None)
    for bad in ({"crop": [8, 8]}, {"resize": 8, "crop": 8}, "resize"):
        with pytest.raises(ValueError, match=r"card's preprocessing .*must be like"):
            preprocessing_for((8, 8), {"preprocessing": bad})
    with pytest.raises(ValueError, match="crops to 8x8, but the network takes 9x9"):
        preprocessing_for((9, 9), {"preprocessing": entry})


@pytest.mark.parametrize(
    ("count", "tpr", "message"),
    [
        (18, 0.95, "18 calibration images are too few.*at least 19"),
        (98, 0.99, "at least 99"),
        (50, 1.0, "tpr .=1.0. must be a number between"),
        (50, True, "tpr .=True. must be a number"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_thresholds_that_cannot_be(count, tpr, message):
    with pytest.raises(ValueError, match=message):
        Threshold(np.zeros(count, np.float32), tpr)


def test_what_has_no_threshold_or_no_fit(small, tiny_images):
    detector = si_jax.make_detector("energy", small)
    for call in (detector.predict, detector.explain):
        with pytest.raises(ValueError, match="no threshold: call calibrate"):
            call(tiny_images[:1])
    with pytest.raises(ValueError, match="must be fitted first"):
        si_jax.make_detector("knn", small).calibrate(tiny_images)


def test_a_threshold_does_not_outlive_its_fit_nor_another_preprocessing(small, tiny_images):
    pictures = [Image.fromarray(image) for image in tiny_images] * 2
    detector = si_jax.make_detector("knn", small, k=2).fit(tiny_images).calibrate(pictures)
    prepared = "shorter side to 8, centre crop 8x8"
    assert detector.threshold.preprocessing == detector.predict(pictures).preprocessing == prepared
    assert detector.predict(tiny_images).preprocessing == ""
    detector.preprocessing = Preprocessing((8, 8), 16)
    detector.predict(tiny_images)  # comes in the input size
    with pytest.raises(ValueError, match=r"prepared by 'shorter side to 8.*calibrate again"):
        detector.predict(pictures)
    detector.fit(tiny_images)
    with pytest.raises(ValueError, match="no threshold"):
        detector.predict(tiny_images)


def test_nan_is_no_ground_for_a_decision(small, tiny_images, with_variables):
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), dict(small.variables))
    detector = si_jax.make_detector("energy", with_variables(small, broken))
    with pytest.raises(ValueError, match="calibration image's score is NaN"):
        detector.calibrate(IMAGES)
    detector.threshold = Threshold(np.arange(20, dtype=np.float32))
    with pytest.raises(ValueError, match="score of image 0 is NaN"):
        detector.predict(tiny_images)
