"""Options and images that do not serve."""

import numpy as np
import pytest
from peer_networks import (
    CLASSES,
    FEATURES,
    Flat,
    Tiny,
    build,
)

import si_jax


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gen", {"gamma": 0}, r"gamma \(=0.0\)"),
        ("gen", {"top": 0}, r"top \(=0\)"),
        ("odin", {"temperature": -1}, r"temperature \(=-1.0\)"),
        ("odin", {"step": -0.1}, r"step \(=-0.1\)"),
        ("gradnorm", {"temperature": 0}, r"temperature \(=0.0\)"),
        ("ash-s", {"percentile": 100}, r"percentile \(=100.0\)"),
        ("scale", {"percentile": 96}, r"percentile \(=96.0\) leaves none of the 10 features"),
        ("react", {"percentile": 101}, r"percentile \(=101.0\)"),
        ("dice", {"percentile": -1}, r"percentile \(=-1.0\)"),
        ("knn", {"k": 0}, r"k \(=0\)"),
        ("knn", {"max_images": 0}, r"max_images \(=0\)"),
        ("ash-s", {"percentile": "high"}, r"percentile \(='high'\) must be a number"),
        ("energy", {"temperature": True}, r"temperature \(=True\) must be a number"),
        ("vim", {"dim": FEATURES}, r"dim \(=10\) must be from 1 to 9"),
        ("gradnorm", {"parameters": "some"}, r"parameters \(='some'\) must be one of head, all"),
        ("vra", {"low": 96}, r"low \(=96.0\) must not be above high \(=95.0\)"),
        ("vra", {"high": 101}, r"high \(=101.0\)"),
        ("nnguide", {"k": 0}, r"k \(=0\)"),
        ("nci", {"alpha": -1}, r"alpha \(=-1.0\)"),
        ("lts", {"percentile": 96}, r"percentile \(=96.0\) leaves none of the 10 features"),
        ("adascale-a", {"low": 86}, r"low \(=86.0\) must not be above high \(=85.0\)"),
        ("adascale-l", {"high": 100}, r"high \(=100.0\)"),
        ("adascale-a", {"pixels": 2}, r"pixels \(=2.0\)"),
        ("adascale-l", {"step": -1}, r"step \(=-1.0\)"),
        ("temperature-scaling", {"max_images": 0}, r"max_images \(=0\)"),
        ("residual", {"dim": 10}, r"dim \(=10\) must be from 1 to 9"),
        ("i-odin", {"step": -0.1}, r"step \(=-0.1\)"),
        ("rankfeat", {"stages": 0}, r"stages \(=0\)"),
        ("rankfeat", {"taps": "head"}, "feature map"),
        ("nac", {"bins": 3}, r"bins \(=3\) must be a whole number of at least 4"),
        ("cfood", {"share": 0}, r"share \(=0.0\) must be a number in \(0, 1\]"),
    ],
)
def test_options_that_make_no_sense_are_named(model, name, options, message):
    with pytest.raises(ValueError, match=message):
        si_jax.make_detector(name, model, **options)


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
    with pytest.raises(ValueError, match="images is empty"):
        si_jax.make_detector("dice", model).fit(train[0][:0])
    with pytest.raises(ValueError, match="span no further dimension"):
        si_jax.make_detector("vim", model).fit(train[0][:3])
    net = build(Tiny())
    net.variables["params"]["head"]["bias"] = np.full(CLASSES, np.nan, np.float32)
    with pytest.raises(ValueError, match="NaN"):
        si_jax.make_detector("dice", net).fit(train[0])


def test_rankfeat_without_a_feature_map():
    with pytest.raises(ValueError, match="needs a feature map"):
        si_jax.make_detector("rankfeat", build(Flat()))
