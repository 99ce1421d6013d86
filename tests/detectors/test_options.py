"""Options: whatever kind a value comes in, it is converted and checked by the annotation."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import pytest

import si_jax
from si_jax.detectors import DETECTORS, default_options
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
    import inspect

    assert convert(inspect.Parameter.empty, "option", value := object()) is value


@pytest.mark.parametrize("name", DETECTORS)
def test_every_option_of_every_detector_is_annotated_and_takes_its_default(name):
    import inspect

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
