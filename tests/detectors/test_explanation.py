"""What a picture of a decision shows."""

import numpy as np
import pytest
from flax import linen as nn
from pictures import noise
from PIL import Image

import si_jax
from si_jax.detectors.explanation import attribution_maps, explanation, layer_positions

IMAGES = noise(60, seed=3)


@pytest.fixture(scope="module")
def detector(tiny):
    return si_jax.make_detector("gaia-z", tiny).calibrate(IMAGES, keep_images=20)


def test_maps_are_gradients_of_the_largest_logit(tiny):
    """Against differences, at the last map, which the head reads through a mean alone."""
    maps = attribution_maps(tiny, IMAGES[:1])
    assert set(maps) == {c.path for c in tiny.calls if isinstance(c.module, nn.BatchNorm)} - {
        "bn1"
    } | {"conv1"}
    assert all(values.max() == 1 and values.min() >= 0 for values in maps.values())
    assert maps["conv1"].shape == (8, 8) and maps["layer3_0/bn2"].shape == (2, 2)


def test_layers_are_placed_among_the_calibration_images(detector):
    ((_, _, rows),) = detector.results(IMAGES, predictions=True)
    density = detector.details(IMAGES)["tap_density"]
    np.testing.assert_allclose(
        detector.threshold.layers["tap_density"], np.percentile(density, [5, 50, 95], axis=0)
    )
    places = [
        layer_positions(detector, {"tap_density": rows["tap_density"][i : i + 1]})[1]
        for i in range(60)
    ]
    assert layer_positions(detector, rows)[0] == detector.settings["taps"]
    assert 0.85 < np.mean(np.abs(places) <= 1.2) <= 1


def test_the_nearest_calibration_image_of_itself(detector):
    kept = detector.threshold.examples
    shown = explanation(detector, kept[4])
    np.testing.assert_array_equal(shown.nearest[0], kept[4])
    assert shown.similarity[0] == pytest.approx(1, abs=1e-5)
    assert shown.similarity == sorted(shown.similarity, reverse=True)
    np.testing.assert_array_equal(shown.image, kept[4])


def texts(figure):
    own = [text.get_text() for text in figure.texts]
    return "\n".join(own + [axes.get_title(loc="left") for axes in figure.axes])


def test_a_figure_says_what_matters(detector, tiny, tmp_path):
    picture = Image.fromarray(IMAGES[0])
    figure = detector.explain(picture, title="some$name_{.png")
    p = float(detector.predict(picture).p_value[0])
    assert f"(p = {p:.3g})" in texts(figure) and "some$name_{.png" in texts(figure)
    assert "layers are abnormal" in texts(figure)
    figure.savefig(tmp_path / "explained.png", dpi=20)
    plain = si_jax.make_detector("energy", tiny).calibrate(IMAGES)
    assert "most probable classes" in texts(plain.explain(IMAGES[0]))
    far = plain.explain(IMAGES[:1] * 0)
    far.savefig(tmp_path / "far.png", dpi=20)
