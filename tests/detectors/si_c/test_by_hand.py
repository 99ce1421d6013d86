"""S&I-C against NumPy written for the purpose."""

import jax
import numpy as np
import pytest
from scipy.special import logit as scipy_logit
from scipy.special import logsumexp, softmax
from si_c_networks import CLASSES, SIZE, WIDTHS

import si_jax
from si_jax.detectors.si_c import fit as si_c_fit
from si_jax.detectors.si_c import readings as si_c_readings
from si_jax.detectors.si_c import score as si_c_score


def read_by_hand(model, images):
    """Energy, channel-average and densities in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), model.variables["params"])
    stats = jax.tree.map(lambda x: np.asarray(x, np.float64), model.variables["batch_stats"])
    x = (images / 255 - 0.5) / 0.25
    masks, slopes = [], []
    for k in ("1", "2"):
        norm, stat = params[f"bn{k}"], stats[f"bn{k}"]
        slope = norm["scale"] / np.sqrt(stat["var"] + 1e-5)
        x = x @ params[f"conv{k}"]["kernel"] + params[f"conv{k}"]["bias"]
        x = (x - stat["mean"]) * slope + norm["bias"]
        masks.append(x > 0)
        slopes.append(slope)
        x = np.maximum(x, 0)
    weights = params["head"]["kernel"]
    logits = x.mean(axis=(1, 2)) @ weights + params["head"]["bias"]
    gradient2 = masks[1] / SIZE**2
    gradient1 = masks[0] * ((gradient2 * slopes[1]) @ params["conv2"]["kernel"].T)
    v = [np.abs(g.mean(axis=(1, 2))) for g in (gradient1, gradient2)]
    p = softmax(logits, axis=-1)
    outer2 = np.abs((1 - CLASSES * p) @ weights.T).mean(axis=-1)
    return {
        "confidence": scipy_logit(p.max(axis=-1)),
        "energy": logsumexp(logits, axis=-1),
        "channel_average": np.log(outer2) - np.log((np.concatenate(v, axis=-1) ** 2).mean(-1)),
        "density": np.concatenate([m.mean(axis=(1, 2)) for m in masks], axis=-1),
    }


def fit_by_hand(readings, shrinkage=0.1):
    """A function of readings that gives the three components, and the calibration part."""
    rng = np.random.default_rng(0)
    count = len(readings["energy"])
    second = np.concatenate([rng.permutation(10) < 3 for _ in range(count // 10)])
    first = readings["density"][~second]
    mean = first.mean(axis=0)
    sigma = np.maximum(first.std(axis=0), 0.5 / SIZE**2)
    assert (first.std(axis=0) > 0).all()
    u = (first - mean) / sigma
    inverse = np.linalg.inv(
        (1 - shrinkage) * np.cov(u.T, bias=True) + shrinkage * np.eye(u.shape[-1])
    )

    def components(readings):
        u = (readings["density"] - mean) / sigma
        m = -0.5 * np.log(np.einsum("ni,ij,nj->n", u, inverse, u))
        taps = np.stack([np.mean(part**2, axis=-1) for part in np.split(u, [WIDTHS[0]], 1)], -1)
        return np.stack([readings["energy"], readings["channel_average"], m], axis=-1), taps

    return components, second


def standardised_by_hand(values, new):
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95], axis=0)
    return (new - median) / ((high - low) / 3.29)


def hinge_form_by_hand(known, new, known_sum, new_sum):
    """Confidence less the squared hinge; `known` of the calibration images."""
    base = [
        standardised_by_hand(known[name], new[name]) * share
        for name, share in (("confidence", 0.75), ("energy", 0.25))
    ]
    median = np.quantile(known_sum, 0.5)
    shortfall = np.mean(median - known_sum[known_sum < median])
    return sum(base) - 0.6 * (np.maximum(0, median - new_sum) / shortfall) ** 2


def test_against_numpy(model, train, images, fitted):
    known, new = read_by_hand(model, train), read_by_hand(model, images)
    components, second = fit_by_hand(known)
    held = {name: x[second] for name, x in known.items()}
    values, taps = components(held)
    raw, abnormality = components(new)
    z, held_z = standardised_by_hand(values, raw), standardised_by_hand(values, values)
    found = fitted["si-c"].details(images)
    np.testing.assert_allclose(found["confidence"], new["confidence"], rtol=1e-4, atol=1e-5)
    for i, name in enumerate(("energy", "channel_average", "zero_deflation")):
        np.testing.assert_allclose(found[name], raw[:, i], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["standardised"], z, rtol=1e-3, atol=1e-3)
    expected = hinge_form_by_hand(held, new, held_z.sum(axis=-1), z.sum(axis=-1))
    np.testing.assert_allclose(found["score"], expected, rtol=1e-3, atol=5e-3)
    assert (found["hinge"] > 0).any() and (found["hinge"] == 0).any()
    assert found["score"].dtype == found["tap_pvalue"].dtype == np.float32
    expected = (1 + (taps[None] >= abnormality[:, None]).sum(axis=1)) / (1 + len(taps))
    np.testing.assert_allclose(found["tap_pvalue"], expected, atol=1e-6)
    assert (z[:, 2] > 0).any()
    other = si_jax.make_detector("si-c", model, form="sum")
    other.load_state(fitted["si-c"].state)
    np.testing.assert_allclose(other.score(images), z.sum(axis=-1), rtol=1e-3, atol=2e-3)
    two, held_two = z[:, [0, 2]].sum(axis=-1), held_z[:, [0, 2]].sum(axis=-1)
    found = fitted["si-c-forward"].details(images)
    expected = hinge_form_by_hand(held, new, held_two, two)
    np.testing.assert_allclose(found["score"], expected, rtol=1e-3, atol=5e-3)
    assert set(found) == {
        "score", "sum", "hinge", "confidence", "energy", "zero_deflation", "standardised",
        "tap_pvalue",
    }  # fmt: skip


def test_readings_and_numpy_give_what_the_detector_gives(model, train, images, fitted):
    """The whole way without the network, as for a study of many combinations."""
    reader = si_c_readings.reader(model)
    known = si_c_readings.readings(reader, model, train)
    parts = [{k: x[i : i + 33] for k, x in known.items()} for i in range(0, len(train), 33)]
    state = si_c_fit.fit(parts, reader.channels)
    for name, array in fitted["si-c"].state.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(state[name], array, rtol=1e-3, atol=1e-4)
    found = si_c_score.apply(state, si_c_readings.readings(reader, model, images))
    for name, array in fitted["si-c"].details(images).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("components", ["energy", "zero-deflation", "channel-average,energy"])
def test_some_components(model, train, images, fitted, components):
    found = si_jax.make_detector("si-c", model, components=components, form="sum").fit(train)
    details, whole = found.details(images), fitted["si-c"].details(images)
    names = [name.replace("-", "_") for name in sorted(components.split(","))]
    taps = ["tap_pvalue"] if components == "zero-deflation" else []
    expected = {"channel_average": 1, "energy": 0, "zero_deflation": 2}
    always = {"score", "sum", "hinge", "confidence", "standardised"}
    assert set(details) == {*always, *names, *taps}
    columns = sorted(expected[name] for name in names)
    for name in [*names, *taps]:
        np.testing.assert_allclose(details[name], whole[name], rtol=1e-5)
    np.testing.assert_allclose(
        details["score"], whole["standardised"][:, columns].sum(axis=-1), rtol=1e-4, atol=1e-4
    )
