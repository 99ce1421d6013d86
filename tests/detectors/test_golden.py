"""Scores of every method on the digits, so that none changes without a new version.

    PYTHONPATH=. python tests/detectors/test_golden.py

writes them anew, once the changed methods' versions are raised in `si_jax.detectors`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import si_jax
from si_jax.data import digits
from si_jax.detectors import DETECTORS
from si_jax.detectors.fitting import Batches
from si_jax.evaluation.scoring import Scorer

PATH = Path(__file__).parents[1] / "golden" / "detector_scores.json"
OPTIONS = {"lts": {"percentile": 85.0}, "si-c": {"max_channels": 64}}
"""Other than the defaults, where these leave little to see, or take long."""

BUILT_IN = tuple(DETECTORS)


def computed():
    """Method -> its scores of twelve digits and four letters, fitted on 200 digits."""
    model = si_jax.load_model("digits")
    images, labels = digits.load("train")
    parts = [(images[i : i + 50], labels[i : i + 50]) for i in range(0, 200, 50)]
    batches = Batches(lambda: parts, model, keep=True)
    detectors = {}
    for name in BUILT_IN:
        detector = si_jax.make_detector(name, model, batch_size=50, **OPTIONS.get(name, {}))
        detectors[name] = detector.fit_batches(batches)
    test = np.concatenate([digits.load("test")[0][:12], digits.letters(4)])
    return {name: arrays["score"] for name, arrays in Scorer(detectors)(test).items()}


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_no_score_changes_without_a_new_version():
    golden = json.loads(PATH.read_text())
    assert set(golden) == set(BUILT_IN), "write the golden scores anew: see this file's head"
    for name, scores in computed().items():
        known = golden[name]
        assert isinstance(DETECTORS[name].version, int)
        if DETECTORS[name].version != known["version"]:
            pytest.fail(f"{name} has a new version: write the golden scores anew")
        message = f"{name}'s scores have changed: raise its version, write the golden scores anew"
        spread = np.ptp(known["scores"]) or 1
        np.testing.assert_allclose(
            scores, known["scores"], rtol=1e-3, atol=1e-3 * spread, err_msg=message
        )


def write():
    rows = {
        name: {"version": DETECTORS[name].version, "scores": [float(f"{s:.7g}") for s in scores]}
        for name, scores in computed().items()
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    PATH.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    write()
