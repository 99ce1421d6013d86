"""Exported detectors are equal to the library's, and run without it."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

import si_jax
from si_jax.decision.export import LOADER, export_jax

FITTED = np.random.default_rng(3).integers(0, 256, (60, 8, 8, 3), np.uint8)
IMAGES = np.random.default_rng(4).integers(0, 256, (5, 8, 8, 3), np.uint8)


def calibrated(name, model, **options):
    detector = si_jax.make_detector(name, model, **options)
    return detector.fit(FITTED, np.arange(60) % 5).calibrate(FITTED)


def agrees(results, detector, images, rtol=1e-5):
    """To rounding: another program sums in another order."""
    expected = detector.predict(images).as_dict()
    assert results.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(results[key], values, rtol=rtol, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("name", ["energy", "i-odin", "knn", "si-c"])
def test_a_detector_of_each_kind_is_equal_once_exported(name, tiny, tmp_path):
    options = {"k": 3} if name == "knn" else {}
    detector = calibrated(name, tiny, **options)
    space: dict = {}
    exec(LOADER, space)
    run = space["load"](export_jax(detector, tmp_path / "d.jaxexport"))
    for count in (1, 5):
        agrees(run(IMAGES[:count]), detector, IMAGES[:count])


def test_the_loader_needs_jax_and_numpy_alone(tiny, tmp_path):
    detector = calibrated("energy", tiny)
    path = export_jax(detector, tmp_path / "d.jaxexport", platforms=["cpu"])
    np.save(tmp_path / "images.npy", IMAGES)
    script = LOADER + textwrap.dedent(f"""
        import sys
        result = load({str(path)!r})(np.load({str(tmp_path / "images.npy")!r}))
        assert not any(name.split(".")[0] in ("si_jax", "flax", "orbax") for name in sys.modules)
        np.save({str(tmp_path / "score.npy")!r}, result["score"])
    """)
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "score.npy"), detector.score(IMAGES), rtol=1e-5)


def test_without_a_threshold_there_is_no_verdict(tiny, tmp_path):
    space: dict = {}
    exec(LOADER, space)
    path = export_jax(si_jax.make_detector("msp", tiny), tmp_path / "d", platforms=["cpu"])
    assert space["load"](path)(IMAGES).keys() == {"score", "label", "probability"}
    with pytest.raises(ValueError, match="must be fitted first"):
        export_jax(si_jax.make_detector("knn", tiny), tmp_path / "e")
