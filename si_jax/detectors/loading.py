"""A saved detector, checked and loaded again; see `si_jax.detectors.saving`."""

import json
import os
from pathlib import Path

import numpy as np

from si_jax.data.preprocessing import preprocessing_for
from si_jax.detectors import DETECTORS, former, make_detector
from si_jax.detectors.detector import Detector
from si_jax.detectors.saving import ARRAYS, CARD, FORMAT, Card, ThresholdCard, plain, probe_logits
from si_jax.detectors.threshold import Threshold
from si_jax.model import Model
from si_jax.weights.checkpoint import INSIDE, bundled_directory, load_model
from si_jax.weights.saved import check_sums, read_arrays, read_card

PROBE_TOLERANCE = 1e-3  # of the largest logit; other matrix kernels differ by 1e-6


def load_detector(directory: str | os.PathLike, *, model: Model | None = None) -> Detector:
    """Load a detector that `Detector.save` wrote, or a bundled one by its name, such as `"digits"`.

    Args:
        directory: the directory, or the name.
        model: the network, where its code is not this library's: a `Model` of the same module, with
            any weights, fresh ones for instance; those that were saved take their place.

    Returns:
        The detector, fitted and calibrated as it was saved.

    Raises:
        ValueError: if there is no such detector; it is damaged, edited, or was written by a newer
            version; the detector's score has changed since; or `model` is missing or another.
    """
    directory = find_detector(directory)
    if check_sums(directory):
        card = read_card(directory / CARD, Card)
        arrays = read_arrays(directory / ARRAYS) if (directory / ARRAYS).is_dir() else {}
        facts = None
    else:
        content, arrays = former.read(directory)
        card, facts = Card.model_validate(content | {"format": FORMAT}), content["model"]
    name = card.detector
    if name not in DETECTORS:
        raise ValueError(f"{directory} holds a detector {name!r}, which this version has not")
    if card.version != DETECTORS[name].version:
        raise ValueError(
            f"the score of {name!r} has changed since {directory} was saved (version"
            f" {card.version}, now {DETECTORS[name].version}): fit, calibrate and save it again"
        )
    if "probe" in arrays and model is None:
        raise ValueError(
            f"{directory} holds a detector of a network whose code is not saved with it: give it"
            " again, load_detector(directory, model=si_jax.Model(...))"
        )
    if facts is None:
        loaded = load_model(directory / INSIDE, precision=card.precision, like=model)
    else:
        loaded = former.network(facts, arrays["variables"], model)
    if model is not None:
        _check_same(model, loaded, arrays.get("probe"))
    model = loaded
    detector = make_detector(name, model, batch_size=card.batch_size, **card.options)
    settings = json.loads(json.dumps(detector.settings, default=plain))
    if any(settings.get(key) != value for key, value in card.settings.items()):
        raise ValueError(
            f"{directory} was saved with other defaults of {name!r}: its settings were"
            f" {card.settings}, and would be {detector.settings}; fit and save it again"
        )
    if detector.needs_fit:
        detector.load_state(arrays["state"])
    detector.preprocessing = preprocessing_for(
        model.input_size, {"preprocessing": card.preprocessing}
    )
    if card.threshold:
        detector.threshold = _threshold(card.threshold, arrays["threshold"])
    detector.card = card.card
    return detector


def find_detector(directory: str | os.PathLike) -> Path:
    """The directory of a saved detector, or of a bundled one by its name."""
    for place in (Path(directory).expanduser(), bundled_directory() / directory):
        if (place / CARD).is_file():
            return place.resolve()
    if Path(directory).is_dir():
        raise ValueError(
            f"{directory} holds no {CARD}: it is no saved detector, or that file is missing"
        )
    names = sorted(card.parent.name for card in bundled_directory().glob(f"*/{CARD}"))
    raise ValueError(
        f"there is no detector {str(directory)!r}: give the directory of one that was saved by"
        f" detector.save, or one of the bundled: {', '.join(names) or 'none'}"
    )


def _check_same(given: Model, saved: Model, probe: dict[str, np.ndarray] | None) -> None:
    """Check that a network that is given is the one that a detector was saved with."""
    expected = {key: getattr(saved, key) for key in ("input_size", "mean", "std")}
    for key, value in {**expected, "head": saved.card.get("head", given.head)}.items():
        if getattr(given, key) != value:
            raise ValueError(
                f"the model's {key} (={getattr(given, key)!r}) is not the one that the detector was"
                f" saved with, {value!r}"
            )
    if probe is not None:
        difference = np.abs(probe_logits(saved) - probe["logits"]).max()
        if not difference <= PROBE_TOLERANCE * np.abs(probe["logits"]).max():
            raise ValueError(
                "the model is not the one that the detector was saved with: of the same weights it"
                " makes other logits"
            )


def _threshold(card: ThresholdCard, arrays: dict[str, np.ndarray]) -> Threshold:
    layers = {k[len("layers.") :]: v for k, v in arrays.items() if k.startswith("layers.")}
    examples = arrays.get("examples"), arrays.get("example_features")
    return Threshold(arrays["scores"], card.tpr, card.preprocessing, layers, *examples)
