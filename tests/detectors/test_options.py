"""Options: whatever kind a value comes in, it is converted and checked by the annotation."""

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import pytest

import si_jax
from si_jax import testing
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
        (SHRINKAGE, 0, r"option \(=0.0\) must be a number in \(0, 1\], or 'ledoit-wolf'"),
        (Count | None, "many", "a whole number of at least 1, or none"),
        (TAPS, 5, "a list of names, or a name, or none"),
        (TAPS, [1], "a list of names"),
        (TAPS, "[1]", None),
    ],
)
def test_what_is_refused(annotation, value, message):
    if message is None:  # a strange name, which no layer of a network will have
        assert convert(annotation, "option", value) == value
        return
    with pytest.raises(ValueError, match=message):
        convert(annotation, "option", value)


def test_what_has_no_annotation_is_taken_as_it_is():
    assert convert(inspect.Parameter.empty, "option", value := object()) is value


@pytest.mark.parametrize("name", DETECTORS)
def test_every_option_of_every_detector_is_annotated_and_takes_its_default(name):
    parameters = inspect.signature(DETECTORS[name].build).parameters
    for option, default in default_options(name).items():
        annotation = parameters[option].annotation
        assert annotation is not inspect.Parameter.empty
        assert describe(annotation)
        converted = convert(annotation, option, default)
        assert converted == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("knn", {"k": np.int64(5)}),
        ("vim", {"dim": np.int64(4)}),
        ("gen", {"top": np.int32(3)}),
        ("ash-s", {"percentile": np.float32(90)}),
        ("si-z", {"steps": np.int64(2)}),
        ("react", {"threshold": "inf"}),
        ("msp", {"batch_size": np.int64(8)}),
    ],
)
def test_numpys_numbers_and_text_make_the_same_detector(tiny, name, options):
    plain = {
        k: float(v) if k in ("percentile", "threshold") else int(v) for k, v in options.items()
    }
    made, expected = (si_jax.make_detector(name, tiny, **o) for o in (options, plain))
    assert repr(made.settings) == repr(expected.settings)
    assert repr(made.batch_size) == repr(expected.batch_size)


@pytest.fixture(scope="module")
def small():
    return testing.small_model()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gen", {"gamma": 0}, r"gamma \(=0.0\)"),
        ("gen", {"top": 0}, r"top \(=0\)"),
        ("odin", {"temperature": -1}, r"temperature \(=-1.0\)"),
        ("odin", {"step": -0.1}, r"step \(=-0.1\)"),
        ("gradnorm", {"temperature": 0}, r"temperature \(=0.0\)"),
        ("ash-s", {"percentile": 100}, r"percentile \(=100.0\)"),
        ("scale", {"percentile": 96}, r"percentile \(=96.0\) leaves none of the 8 features"),
        ("react", {"percentile": 101}, r"percentile \(=101.0\)"),
        ("dice", {"percentile": -1}, r"percentile \(=-1.0\)"),
        ("knn", {"k": 0}, r"k \(=0\)"),
        ("knn", {"max_images": 0}, r"max_images \(=0\)"),
        ("ash-s", {"percentile": "high"}, r"percentile \(='high'\) must be a number"),
        ("energy", {"temperature": True}, r"temperature \(=True\) must be a number"),
        ("vim", {"dim": 8}, r"dim \(=8\) must be from 1 to 7"),
        ("gradnorm", {"parameters": "some"}, r"parameters \(='some'\) must be one of head, all"),
        ("vra", {"low": 96}, r"low \(=96.0\) must not be above high \(=95.0\)"),
        ("vra", {"high": 101}, r"high \(=101.0\)"),
        ("nnguide", {"k": 0}, r"k \(=0\)"),
        ("nci", {"alpha": -1}, r"alpha \(=-1.0\)"),
        ("lts", {"percentile": 96}, r"percentile \(=96.0\) leaves none of the 8 features"),
        ("adascale-a", {"low": 86}, r"low \(=86.0\) must not be above high \(=85.0\)"),
        ("adascale-l", {"high": 100}, r"high \(=100.0\)"),
        ("adascale-a", {"pixels": 2}, r"pixels \(=2.0\)"),
        ("adascale-l", {"step": -1}, r"step \(=-1.0\)"),
        ("temperature-scaling", {"max_images": 0}, r"max_images \(=0\)"),
        ("residual", {"dim": 8}, r"dim \(=8\) must be from 1 to 7"),
        ("i-odin", {"step": -0.1}, r"step \(=-0.1\)"),
        ("rankfeat", {"stages": 0}, r"stages \(=0\)"),
        ("rankfeat", {"taps": "head"}, "feature map"),
        ("nac", {"bins": 3}, r"bins \(=3\) must be a whole number of at least 4"),
        ("cfood", {"share": 0}, r"share \(=0.0\) must be a number in \(0, 1\]"),
        ("nothing", {}, "unknown detector 'nothing'.*si-z.*energy"),
        ("energy", {"steps": 2}, "does not take the option steps.*temperature"),
        ("energy", {"temperature": 0.0}, "temperature"),
        ("si-z", {"preset": "mine"}, "preset.*published"),
        ("si-z", {"engine": "fast"}, "engine.*general, gradient, activation"),
        ("si-z", {"combine": "multiply", "engine": "gradient"}, "engines that do: general"),
        ("si-a", {"engine": "gradient"}, "engines that do: general"),
        ("si-a", {"engine": "activation", "steps": 1}, "engines that do: general, gradient"),
        ("si-a", {"select": 0.0}, "select"),
        ("si-z", {"tap_chunk": 0}, "tap_chunk"),
        ("si-z", {"batch_size": -1}, "batch_size"),
        ("gaia-z", {"taps": "nowhere"}, "nowhere"),
        ("gaia-z", {"taps": "bn1", "variant": "gn"}, "exclude"),
        (
            "si-c",
            {"components": "energy,heat"},
            r"\(='energy,heat'\) must be .*zero-deflation",
        ),
        ("si-c", {"components": ""}, r"components \(=''\) must be"),
        ("si-c", {"components": []}, r"components \(=\[\]\) must be"),
        ("si-c", {"components": 3}, r"components \(=3\) must be"),
        ("si-c", {"shrinkage": 0}, r"shrinkage \(=0.0\) must be a number in \(0, 1\]"),
        ("si-c", {"shrinkage": 2}, r"shrinkage \(=2.0\) must be a number in \(0, 1\]"),
        ("si-c", {"shrinkage": True}, r"shrinkage \(=True\) must be a number in"),
        ("si-c", {"shrinkage": float("nan")}, r"shrinkage \(=nan\) must be a number in \(0, 1\]"),
        ("si-c-forward", {"shrinkage": "oracle"}, r"shrinkage \(='oracle'\) must be"),
        ("si-c", {"shrinkage": None}, r"shrinkage \(=None\) must be"),
        ("si-c", {"max_channels": 0}, r"max_channels \(=0\) must be"),
        ("si-c", {"max_channels": 1}, r"max_channels \(=1\) must be at least 2"),
        ("si-c", {"max_calibration": 5}, r"max_calibration \(=5\) must be"),
        ("si-c-forward", {"seed": -1}, r"seed \(=-1\) must be"),
        ("si-c-forward", {"form": "no"}, r"form \(='no'\) must be one of hinge, sum"),
        ("si-c", {"taps": "nowhere"}, "nowhere"),
        (
            "si-c-forward",
            {"components": "channel-average"},
            "one or more of energy, zero",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_that_make_no_sense_are_named(small, name, options, message):
    with pytest.raises(ValueError, match=message):
        si_jax.make_detector(name, small, **options)


def test_published_defaults():
    published = {
        "odin": {"temperature": 1000.0, "step": 0.0014},
        "gen": {"gamma": 0.1, "top": 100},
        "ash-p": {"percentile": 65.0},
        "ash-b": {"percentile": 65.0},
        "ash-s": {"percentile": 65.0},
        "scale": {"percentile": 85.0},
        "dice": {"percentile": 90.0},
        "gradnorm": {"temperature": 1.0, "parameters": "head"},
        "i-odin": {"temperature": 1000.0, "step": 0.0014},
        "lts": {"percentile": 95.0},
        "nci": {"alpha": 0.0001},
        "mahalanobis": {"normalise": False},
        "vim": {"dim": None},
        "gmm": {"reg": 1e-6},
        "openmax": {"tail": 20, "alpha": 10},
        "mcm": {"temperature": 1.0},
        "grad-uncertainty": {"parameters": "head"},
        "cfood": {"share": 0.01, "max_images": 5000},
        "grood": {"max_images": 50_000},
        "gram": {"orders": 10, "taps": None},
        "nac": {"alpha": 100, "bins": 50, "least": 50, "max_images": 1000, "taps": None},
        "relation": {"power": 1, "least": 0.03, "max_images": 50_000},
    }
    assert {name: default_options(name) for name in published} == published
    assert default_options("react")["percentile"] == 90
    assert default_options("knn")["k"] == 50
    assert default_options("nnguide")["k"] == 10
    assert (default_options("vra")["low"], default_options("vra")["high"]) == (60, 95)
    adascale = {"low": 75, "high": 85, "k1": 5, "k2": 1, "weight": 10, "pixels": 0.05, "step": 0.5}
    for name in ("adascale-a", "adascale-l"):
        assert {k: default_options(name)[k] for k in adascale} == adascale
    assert default_options("rankfeat")["stages"] == 2
    assert kept_count(512, 65.0) == 512 - 333
