"""Options: whatever kind a value comes in, it is converted and checked by the annotation."""

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import pytest

import si_jax
from si_jax.detectors import DETECTORS, default_options
from si_jax.detectors.features import kept_count
from si_jax.detectors.options import Count, Percentile, Positive, Range, convert, describe

TAPS = str | Sequence[str] | Callable | None
SHRINKAGE = Annotated[float, Range("(0, 1]")] | Literal["ledoit-wolf"]


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Count, 5, 5),
        (Count, np.int64(5), 5),
        (Count, np.array(5), 5),
        (Count, jnp.int32(5), 5),
        (Count, "5", 5),
        (Count | None, None, None),
        (Count | None, "null", None),
        (Count | None, "none", None),
        (float, 90, 90.0),
        (float, np.float32(0.5), 0.5),
        (float, "1/255", 1 / 255),
        (float, "1e-3", 1e-3),
        (float, "inf", float("inf")),
        (float, float("inf"), float("inf")),
        (SHRINKAGE, "0.25", 0.25),
        (SHRINKAGE, "ledoit-wolf", "ledoit-wolf"),
        (bool, "true", True),
        (bool, np.bool_(False), False),
        (TAPS, "layer1_*", "layer1_*"),
        (TAPS, "5", "5"),
        (TAPS, ("a", "b"), ["a", "b"]),
        (TAPS, '["a", "b"]', ["a", "b"]),
        (TAPS, None, None),
        (TAPS, len, len),
        (TAPS, "[1]", "[1]"),  # a strange name, which no layer of a network will have
        (inspect.Parameter.empty, len, len),
    ],
)
def test_what_is_taken(annotation, value, expected):
    converted = convert(annotation, "option", value)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Count, 0, r"option \(=0\) must be a whole number of at least 1"),
        (Count, 5.0, "a whole number of at least 1"),
        (Count, True, r"option \(=True\)"),
        (Count, np.bool_(True), r"option \(=np.True_\)"),
        (Count, "1/255", r"option \(='1/255'\)"),
        (Positive, 0, r"option \(=0.0\) must be a number above 0"),
        (Positive, "inf", r"option \(=inf\) must be a number above 0"),
        (Positive, "1/0", "a number above 0"),
        (float, float("nan"), "must be a number"),
        (float, "nan", "must be a number"),
        (float, [1.0], "must be a number"),
        (Percentile, "high", r"option \(='high'\) must be a number in \[0, 100\)"),
        (Annotated[str, ("add", "multiply")], [1], r"\(=\[1\]\) must be one of add, mult"),
        (SHRINKAGE, None, r"\(=None\) must be"),
        (SHRINKAGE, "oracle", r"\(='oracle'\) must be"),
        (SHRINKAGE, 0, r"option \(=0.0\) must be a number in \(0, 1\], or 'ledoit-wolf'"),
        (Count | None, "many", "a whole number of at least 1, or none"),
        (TAPS, 5, "a list of names, or a name, or none"),
        (TAPS, [1], "a list of names"),
    ],
)
def test_what_is_refused(annotation, value, message):
    with pytest.raises(ValueError, match=message):
        convert(annotation, "option", value)


OPTIONS = {
    "a whole number of at least 0": "seed",
    "a whole number of at least 1": "k max_channels max_images orders stages tail tap_chunk top"
    " nac.least openmax.alpha",
    "a whole number of at least 4": "bins",
    "a whole number of at least 20": "max_calibration",
    "a whole number of at least 1, or none": "dim steps",
    "a number above 0": "gamma power reg temperature nac.alpha",
    "a number of at least 0": "step weight nci.alpha relation.least",
    "a number of at least 0, or none": "step_size",
    "a number in [0, 1]": "pixels",
    "a number in (0, 1]": "select share",
    "a number in (0, 1], or 'ledoit-wolf'": "shrinkage",
    "a number in [0, 100)": "percentile low high k1 k2",
    "a number in [0, 100]": "react.percentile vra.low vra.high",
    "a number, or none": "threshold",
    "a list of names, or a name": "components",
    "a list of names, or a name, or none": "inner taps",
    "a name, or none": "outer variant",
    "one of add, multiply, or none": "combine",
    "one of auto, general, gradient, activation, closed": "engine",
    "one of ce, max, or none": "objective",
    "one of head, all": "parameters",
    "one of hinge, sum": "form",
    "one of published, published-defaults": "preset",
    "true or false": "normalise",
}
"""What may be given -> options, and those of one detector."""


def test_every_option_of_every_detector_is_described_and_takes_its_default():
    words = {option: words for words, options in OPTIONS.items() for option in options.split()}
    for name, method in DETECTORS.items():
        parameters = inspect.signature(method.build).parameters
        for option, default in default_options(name).items():
            annotation = parameters[option].annotation
            expected = words.get(f"{name}.{option}") or words[option]
            assert describe(annotation) == expected, (name, option)
            converted = convert(annotation, option, default)
            assert converted == (list(default) if isinstance(default, tuple) else default)


def test_a_detector_is_made_with_what_was_converted(small):
    made = si_jax.make_detector("react", small, threshold="inf", batch_size=np.int64(8))
    assert repr((made.settings["threshold"], made.batch_size)) == "(inf, 8)"
    assert not made.needs_fit


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scale", {"percentile": 96}, r"percentile \(=96.0\) leaves none of the 8 features"),
        ("vim", {"dim": 8}, r"dim \(=8\) must be from 1 to 7"),
        ("vra", {"low": 96}, r"low \(=96.0\) must not be above high \(=95.0\)"),
        ("lts", {"percentile": 96}, r"percentile \(=96.0\) leaves none of the 8 features"),
        ("adascale-a", {"low": 86}, r"low \(=86.0\) must not be above high \(=85.0\)"),
        ("residual", {"dim": 8}, r"dim \(=8\) must be from 1 to 7"),
        ("rankfeat", {"taps": "head"}, "feature map"),
        ("nothing", {}, "unknown detector 'nothing'.*si-z.*energy"),
        ("energy", {"steps": 2}, "does not take the option steps.*temperature"),
        ("si-z", {"combine": "multiply", "engine": "gradient"}, "engines that do: general"),
        ("si-a", {"engine": "gradient"}, "engines that do: general"),
        ("si-a", {"engine": "activation", "steps": 1}, "engines that do: general, gradient"),
        ("si-z", {"batch_size": -1}, "batch_size"),
        ("gaia-z", {"taps": "nowhere"}, "nowhere"),
        ("gaia-z", {"taps": "bn1", "variant": "gn"}, "exclude"),
        ("si-c", {"components": "heat"}, r"\(='heat'\) must be .*zero-deflation"),
        ("si-c", {"components": ""}, r"components \(=''\) must be"),
        ("si-c", {"components": []}, r"components \(=\[\]\) must be"),
        ("si-c", {"max_channels": 1}, r"max_channels \(=1\) must be at least 2"),
        ("si-c", {"taps": "nowhere"}, "nowhere"),
        ("si-c-forward", {"components": "channel-average"}, "one or more of energy, zero"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_that_make_no_sense_are_named(small, name, options, message):
    with pytest.raises(ValueError, match=message):
        si_jax.make_detector(name, small, **options)


def test_published_defaults_that_no_score_of_a_test_tells():
    """Of many images, or of many features."""
    published = {
        "lts": {"percentile": 95},
        "openmax": {"tail": 20, "alpha": 10},
        "cfood": {"max_images": 5000},
        "nac": {"max_images": 1000},
        **{key: {"max_images": 50000} for key in ("react", "knn", "grood", "relation")},
    }
    for name, options in published.items():
        assert {key: default_options(name)[key] for key in options} == options
    assert kept_count(512, 65.0) == 512 - 333
