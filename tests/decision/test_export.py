"""Exported detectors are equal to the library's, and run without it."""

import subprocess
import sys
import textwrap

import jax
import jax.export
import numpy as np
import pytest
from pictures import noise

import si_jax
from si_jax import testing
from si_jax.decision.export import LOADER, ONNX_LOADER, export_jax, export_onnx
from si_jax.detectors import DETECTORS, Inputs, default_options
from si_jax.detectors.fitting import Batches

pytestmark = pytest.mark.usefixtures("quick_to_compile", "one_device")
FITTED, IMAGES = noise(60, seed=3), noise(5, seed=4)


@pytest.fixture(scope="module")
def model():
    return testing.small_model()


def calibrated(name, model, **options):
    return si_jax.make_detector(name, model, **options).fit(FITTED).calibrate(FITTED)


def agrees(results, detector, images, rtol=1e-5):
    """To rounding: another program sums in another order."""
    expected = detector.predict(images).as_dict()
    assert results.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(results[key], values, rtol=rtol, atol=2e-5, err_msg=key)


@pytest.mark.slow
def test_every_detector_is_equal_once_exported(model, tmp_path):
    """All of them in one program, as compiling each alone takes a minute."""
    images = FITTED, np.arange(60) % model.num_classes
    batches = Batches(lambda: [images], model, keep=True)
    detectors, programs = {}, {}
    for name in DETECTORS:
        options = {"knn": {"k": 3}, "lts": {"percentile": 60}}.get(name, {})
        options |= {"steps": 2} if "steps" in default_options(name) else {}
        detector = si_jax.make_detector(name, model, **options)
        detectors[name] = detector.fit_batches(batches)
        path = export_jax(detectors[name], tmp_path / name, platforms=["cpu"])
        programs[name] = jax.export.deserialize(bytearray(path.read_bytes()))

    @jax.jit
    def unexported(variables, states, images):
        inputs = Inputs(model, variables, images)
        found = {k: d.compute(inputs, states[k], exact=True) for k, d in detectors.items()}
        return {name: arrays["score"] for name, arrays in found.items()}

    states = {name: detector.state for name, detector in detectors.items()}
    run = jax.jit(lambda images: {name: p.call(images) for name, p in programs.items()})
    results, expected = run(IMAGES), unexported(model.variables, states, IMAGES)
    assert results.keys() == expected.keys() == DETECTORS.keys()
    for name, scores in expected.items():
        rounding = 1e-5 * np.abs(scores).max() + 2e-7  # of the terms of near-zero divergences
        np.testing.assert_allclose(results[name]["score"], scores, 0, rounding, err_msg=name)
        assert results[name].keys() == {"score", "label", "probability"}  # there is no threshold


def test_a_decision_is_equal_once_exported_and_needs_jax_and_numpy_alone(model, tmp_path):
    detector = calibrated("knn", model, k=3)
    export_jax(detector, tmp_path / "d.jaxexport")
    np.save(tmp_path / "images.npy", IMAGES)
    script = LOADER + textwrap.dedent("""
        import sys
        run, images = load("d.jaxexport"), np.load("images.npy")
        for count in (1, 5):
            np.savez(f"{count}.npz", **run(images[:count]))
        assert not any(name.split(".")[0] in ("si_jax", "flax", "orbax") for name in sys.modules)
    """)
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=300)
    for count in (1, 5):
        agrees(np.load(tmp_path / f"{count}.npz"), detector, IMAGES[:count])
    with pytest.raises(ValueError, match="must be fitted first"):
        export_jax(si_jax.make_detector("knn", model), tmp_path / "e")


@pytest.fixture
def jax2onnx():
    if jax.__version_info__ >= (0, 11):
        pytest.skip("jax2onnx 0.17.1 does not know this JAX")
    return pytest.importorskip("jax2onnx", reason="ONNX needs jax2onnx")


def test_a_detector_in_onnx(model, tmp_path, jax2onnx):
    detector, space = calibrated("si-c-forward", model), {}
    exec(ONNX_LOADER, space)
    run = space["load"](export_onnx(detector, tmp_path / "d.onnx"))
    for count in (1, 5):
        agrees(run(IMAGES[:count]), detector, IMAGES[:count])


def test_what_onnx_lacks_is_reported(model, tmp_path, monkeypatch, jax2onnx):
    with pytest.raises(ValueError, match=r"'odin' cannot be written as ONNX.*\(scatter pattern"):
        export_onnx(si_jax.make_detector("odin", model), tmp_path / "d.onnx")
    detector = si_jax.make_detector("msp", model)
    monkeypatch.setattr(detector, "score", lambda images: np.full(len(images), 0.5, np.float32))
    with pytest.raises(ValueError, match="gives other scores once written as ONNX, up to 0"):
        export_onnx(detector, tmp_path / "d.onnx")
    assert not (tmp_path / "d.onnx").exists()


def test_onnx_needs_a_package_that_knows_this_jax(model, tmp_path, monkeypatch):
    jax2onnx = pytest.importorskip("jax2onnx", reason="ONNX needs jax2onnx")
    detector = si_jax.make_detector("msp", model)

    def fails(*args, **kwargs):
        raise AttributeError("module 'jax._src.core' has no attribute 'ClosedJaxpr'")

    monkeypatch.setattr(jax2onnx, "to_onnx", fails)
    message = rf"does not know jax {jax.__version__} \(module .*: write the detector for JAX, or"
    with pytest.raises(ValueError, match=message):
        export_onnx(detector, tmp_path / "d.onnx")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ValueError, match=r'needs the package .*: pip install "si-jax\[onnx\]"'):
        export_onnx(detector, tmp_path / "d.onnx")
