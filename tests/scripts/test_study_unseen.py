import numpy as np
import pytest

import study_unseen
from study_unseen import CALIBRATION, DETECTORS, Candidate, Network, candidates

GROUPS = {
    "houses-crop": "far",
    "houses-resize": "far",
    "scenes-crop": "far",
    "animals-crop": "near",
}


def network(seed):
    """Random values, of which out-of-distribution images have less."""
    rng = np.random.default_rng(seed)
    names = [*DETECTORS, "confidence", "energy", "channel_average", "zero_deflation"]
    sets = ["test", CALIBRATION, "shift-noise", *GROUPS]
    known = {"test", CALIBRATION}
    return Network(
        {s: {k: rng.normal(0 if s in known else -1, 1, 60) for k in names} for s in sets}, GROUPS
    )


@pytest.fixture(scope="module")
def networks():
    return {"one": network(1), "two": network(2), "three": network(3)}


def test_report(networks):
    text = study_unseen.report(networks, changes=1, resamples=5)
    assert all(f"{name}, {group}" in text for name in networks for group in ("far", "near"))
    assert all(str(candidate) in text for candidate in candidates(1)[1:])
    assert len(candidates(2)) > len(candidates(1)) > len(candidates(0)) == 2


def test_what_is_held_out_has_no_part_in_the_choice(networks):
    """Whatever a network, or a set in either size, would say of the candidates."""
    good, bad = candidates(1)[3:5]
    flat = dict.fromkeys(candidates(1), np.array([0.5, 0.5, 0.5]))
    best, worst = flat | {bad: np.array([1, 0, 0])}, flat | {good: np.array([0.9, 0.1, 0.1])}

    def rows(table, other, replaced):
        return {
            c: {s: (other if s in replaced else table)[c] for s in GROUPS} for c in candidates(1)
        }

    houses = ("houses-crop", "houses-resize")
    measured = {
        "one": rows(best, best, ()),
        "two": rows(worst, best, houses),
        "three": rows(worst, best, houses),
    }
    choose = study_unseen.choose
    assert choose(measured, networks, network="one", image_set="houses-crop") == good
    assert choose(measured, networks) == bad


def test_default_is_the_hinge_form(networks):
    """Of the same components on the same images."""
    one = networks["one"]
    (scores,) = (study_unseen.scores(one, [Candidate()])).values()
    z = study_unseen.standardised(one)
    total, usual = (
        sum(z[s][k].clip(max=10) for k in ("energy", "channel_average", "zero_deflation"))
        for s in ("test", CALIBRATION)
    )
    below = np.median(usual) - usual
    h = ((np.median(usual) - total) / below[below > 0].mean()).clip(min=0)
    expected = 0.75 * z["test"]["confidence"] + 0.25 * z["test"]["energy"] - 0.6 * h**2
    np.testing.assert_allclose(scores["test"], expected, rtol=1e-12)
