"""The record of results: old ones stay readable, damaged ones end in one sentence."""

import json
import random

import pytest

from si_jax.data.files import read_json
from si_jax.evaluation.results import SCHEMA, Results
from si_jax.reporting import report

ROW = {"auroc": 0.9, "fpr95": 0.2, "fpr95_ood_positive": 0.3}
CONTENT = {
    "results": {"msp": {"svhn": ROW, "lsun": ROW}},
    "averages": {"msp": {"far": ROW}},
    "groups": {"svhn": "far", "lsun": "far"},
    "counts": {"cifar10": 5, "svhn": 4, "lsun": 3},
    "model": {"name": "resnet8", "parameters": 3, "input_size": [32, 32], "mean": [0.5]},
    "settings": {"msp": {"temperature": 1.0}},
    "in_distribution": "cifar10",
    "benchmark": "cifar10",
    "protocol": "published",
    "preprocessing": "none",
    "checkpoint": "somewhere",
    "seed": 0,
    "accuracy": None,
    "intervals": {"msp": {"svhn": {"auroc": [0.8, 0.95]}}},
    "bootstrap": {"resamples": 200, "seed": 0, "level": 0.95},
    "note of another version": [1, 2],
}


def test_there_and_back():
    results = Results.from_json(CONTENT)
    assert results.limit is None and results.extra["note of another version"] == [1, 2]
    written = json.loads(json.dumps(results.to_json()))
    assert written["schema"] == results["schema"] == SCHEMA
    assert results["results"] == CONTENT["results"]
    assert Results.from_json(written) == results
    assert Results.from_json({**CONTENT, "schema": 1}) == results


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schema", SCHEMA + 1, f"'schema' is {SCHEMA + 1}, and this version"),
        ("results", {}, "it holds no detector"),
        ("results", {"msp": {"svhn": ROW}}, "the sets of detector 'msp' are not those of"),
        ("results", {"msp": {"svhn": ROW | {"auroc": "x"}}}, "type for 'msp' on 'svhn' on 'auroc'"),
        ("averages", {}, "the averages of detector 'msp' are not those of"),
        ("counts", 3, "'counts' is of the wrong type: it must be an object"),
        ("seed", True, "'seed' is of the wrong type: it must be a valid integer"),
        ("seed", 1.5, "'seed' is of the wrong type"),
        ("accuracy", "high", "'accuracy' is of the wrong type"),
        ("settings", {"msp": 3}, "'settings' is of the wrong type for 'msp'"),
        ("unreadable", {"svhn": [3]}, "'unreadable' is of the wrong type for 'svhn'"),
        ("counts", {"cifar10": 5, "svhn": 4}, "'counts' lacks the set 'lsun'"),
        ("intervals", {"msp": {"svhn": {"auroc": [1.0]}}}, "must be pairs"),
        ("model", {"name": "x"}, "'model' lacks 'parameters'"),
        ("averages", {"msp": {"far": {}}}, "not all metrics of 'msp' on 'far' are numbers from 0"),
    ],
)
def test_what_is_wrong_is_said(name, value, message):
    with pytest.raises(ValueError, match=message):
        Results.from_json({**CONTENT, name: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": Infinity}', "Infinity"),
        ('{"a": 1e999}', "1e999"),
        ('{"a": 1' + "0" * 30 + "}", "no finite number"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 50 levels"),
        ("[" * 60 + "]" * 60, "nested deeper than 50 levels"),
        ("{", "Expecting"),
    ],
)
def test_json_is_read_within_bounds(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(path)


def altered(seed):
    """The content with any value anywhere replaced by any other, or without it."""
    rng = random.Random(seed)
    content = json.loads(json.dumps(CONTENT))
    place = content
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    others = [None, True, -1, 10**9, 1.5, "", "\x1b\n$", [], {}, [[]], {"a": {}}, ["x"], 1e300]
    if rng.random() < 0.2 and isinstance(place, dict):
        del place[key]
    else:
        place[key] = rng.choice(others)
    return content


def test_altered_records_are_read_or_refused_in_one_sentence():
    """A ValueError, or a record that can be shown."""
    for seed in range(150):
        try:
            results = Results.from_json(altered(seed))
        except ValueError as error:
            assert "\n" not in str(error), seed
            continue
        report.text(results)
        report.metadata(results)
