"""Images and labels that do not serve."""

import numpy as np
import pytest
from peer_networks import CLASSES, Flat, Tiny, build

import si_jax


def test_k_larger_than_the_number_of_fitting_images(model, train):
    with pytest.raises(ValueError, match=r"k \(=81\) must be at most .* 80"):
        si_jax.make_detector("knn", model, k=81).fit(*train)


@pytest.mark.parametrize(
    "name",
    ["mahalanobis", "relative-mahalanobis", "multi-mahalanobis", "gmm", "she", "openmax", "grood"],
)
def test_labels_that_do_not_serve(model, train, name):
    detector = si_jax.make_detector(name, model)
    images, labels = train
    with pytest.raises(ValueError, match="labels are needed"):
        detector.fit(images)
    with pytest.raises(ValueError, match=r"labels \(up to 4\)"):
        detector.fit(images, labels + 1)
    with pytest.raises(ValueError, match=r"1 of the 4 classes have no fitting image, class 2"):
        detector.fit(images, np.where(labels == 2, 1, labels))
    if "mahalanobis" in name:
        with pytest.raises(ValueError, match=r"singular: images \(=12\) are too few"):
            detector.fit(images[:12], labels[:12])
    assert detector.state is None


def test_fits_that_find_nothing_to_learn(model, train):
    images, _ = train
    with pytest.raises(ValueError, match="one distance from their mean"):
        si_jax.make_detector("openmax", model).fit(images[:4].repeat(5, axis=0), np.arange(20) // 5)
    with pytest.raises(ValueError, match="too few"):
        si_jax.make_detector("cfood", model).fit(images[:2])


def test_images_that_do_not_serve(model, train):
    with pytest.raises(ValueError, match="span no further dimension"):
        si_jax.make_detector("vim", model).fit(train[0][:3])
    net = build(Tiny())
    net.variables["params"]["head"]["bias"] = np.full(CLASSES, np.nan, np.float32)
    with pytest.raises(ValueError, match="NaN"):
        si_jax.make_detector("dice", net).fit(train[0])


def test_rankfeat_without_a_feature_map():
    with pytest.raises(ValueError, match="needs a feature map"):
        si_jax.make_detector("rankfeat", build(Flat()))
