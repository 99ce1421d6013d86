"""Score files: their names, which of them are none, and their keys.

A key is another where a score could change, and the same where none could.
"""

import dataclasses
import importlib.metadata
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import si_jax
from si_jax.detectors import DETECTORS, Method, Plan, make_detector, register_detector
from si_jax.evaluation import store
from si_jax.evaluation.store import check_names, chunk_path, load_scores, read_chunk, write_keyed
from si_jax.networks.function import tap


def test_different_names_have_different_folders(tmp_path):
    names = ["x", "x.npz", "x%2Enpz", "a/b", "a_b", "a%2Fb", ".x", "%2Ex", "ä", "$x$", ".."]
    paths = {
        chunk_path(tmp_path, detector, name, number)
        for detector in ("msp", "a/b", "a_b")
        for name in names
        for number in (0, 1)
    }
    assert len(paths) == 3 * 2 * len(names)
    assert all(path.parent.parent.parent == tmp_path for path in paths)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([""], "must be printable characters"),
        ([" x"], "must be printable characters"),
        (["a\nb"], r"'a\\nb' must be printable"),
        (["\x1b[31m"], "must be printable characters"),
        (["\udc80"], r"'\\udc80' must be printable"),
        (["x" * 300], "is too long"),
        (["ä" * 60], "is too long"),
        (["total"], "'total' is reserved"),
        (["svhn", "SVHN"], "'svhn' and 'SVHN' differ in case alone"),
        (["svhn", "lsun", "svhn"], "'svhn' is given twice"),
    ],
)
def test_names_that_cannot_be_used(names, message):
    with pytest.raises(ValueError, match=message):
        check_names(names)


def test_names_that_can():
    check_names(["svhn", "a/b", "a_b", r"$\frac{$", "<b>", "ä", "x.partial", "with space"])


WHOLE = {
    "score": np.array([0.5, 0.25], np.float32),
    "index": np.array([4, 6]),
    "label": np.array([-1, 2], np.int32),
    "layers": np.ones((2, 3)),
}


@pytest.mark.parametrize(
    "change",
    [
        {"score": np.zeros((2, 2), np.float32)},
        {"score": np.array(["a", "b"])},
        {"score": np.zeros(2, int)},
        {"index": np.array([-1, 3])},
        {"index": np.array([3, 3])},
        {"index": np.arange(3)},
        {"index": np.zeros((2, 1), int)},
        {"label": np.zeros(2)},
        {"label": None},
        {"layers": np.ones((3, 2))},
    ],
)
def test_arrays_that_do_not_fit_each_other_count_for_nothing(tmp_path, change):
    path = chunk_path(tmp_path, "msp", "x")
    arrays = {name: array for name, array in (WHOLE | change).items() if array is not None}
    write_keyed(path, "key", arrays)
    assert read_chunk(path, "key") is None


def test_a_damaged_file_counts_for_nothing(tmp_path):
    path = chunk_path(tmp_path, "msp", "x")
    write_keyed(path, "key", WHOLE)
    assert read_chunk(path, "key")["index"].tolist() == [4, 6]
    assert read_chunk(path, "another") is None
    content, array, objects = path.read_bytes(), io.BytesIO(), io.BytesIO()
    middle = len(content) // 2
    np.save(array, np.zeros(3))
    np.savez(objects, score=np.array([{}], object), key=np.array("key"))
    flipped = bytes(255 - b for b in content[middle - 40 : middle])
    flipped = content[: middle - 40] + flipped + content[middle:]
    made = array.getvalue(), objects.getvalue()
    for damaged in (b"", content[:middle], b"not a file of arrays", flipped, *made):
        path.write_bytes(damaged)
        assert read_chunk(path, "key") is None, damaged


def test_a_finished_set_is_read_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="x holds no scores: evaluate again"):
        load_scores(tmp_path, "msp", "x")
    later = WHOLE | {"index": np.array([8, 9])}
    for number, arrays in enumerate((WHOLE, later)):
        write_keyed(chunk_path(tmp_path, "msp", "x", number), "key", arrays)
    found = load_scores(tmp_path, "msp", "x")
    assert found["index"].tolist() == [4, 6, 8, 9] and found["layers"].shape == (4, 3)
    assert set(found) == set(WHOLE) and len(found) == 4
    with pytest.raises(KeyError):
        found["nothing"]
    for key, arrays in (("another", later), ("key", WHOLE)):
        write_keyed(chunk_path(tmp_path, "msp", "x", 1), key, arrays)
        with pytest.raises(ValueError, match=r"000001\.npz is no score file of that run"):
            load_scores(tmp_path, "msp", "x")


WEIGHTS = {"hidden": np.ones((16, 4), np.float32), "head": np.ones((4, 3), np.float32)}


def network(weights, x, power=1):
    x = jax.nn.relu(x.reshape(len(x), -1) @ weights["hidden"])
    return tap(x**power, "head") @ weights["head"]


def documented(weights, x, power=1):
    """The same."""
    flat = x.reshape(len(x), -1)  # under another name
    return tap(jax.nn.relu(flat @ weights["hidden"]) ** power, "head") @ weights["head"]


def another(weights, x):
    x = jax.nn.relu(x.reshape(len(x), -1) @ weights["hidden"])
    return tap(jnp.abs(x) + 1, "head") @ weights["head"]


def facts(function=network, weights=WEIGHTS, **changes):
    model = si_jax.Model(function, weights, (4, 4), (0.5,), (0.5,), head="head", **changes)
    return store.key_of(store.model_facts(model))


def test_what_changes_scores_changes_the_key_and_nothing_else(monkeypatch):
    usual = facts()
    assert usual == facts() == facts(documented)
    others = [
        facts(another),
        facts(weights={name: 2 * array for name, array in WEIGHTS.items()}),
        facts(precision="high"),
        facts(call_kwargs={"power": 1}),
        facts(call_kwargs={"power": 2}),
    ]
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0" if name == "jax" else version(name)
    )
    others.append(facts())
    assert len({usual, *others}) == len(others) + 1


def test_a_methods_version_is_in_the_key(small, monkeypatch):
    def key(name, **options):
        return store.key_of(store.detector_facts(make_detector(name, small, **options)))

    assert key("energy") == key("energy")
    assert key("energy") == key("energy", temperature=1.0)  # resolved options
    assert key("energy") != key("energy", temperature=2.0)
    before = key("energy")
    raised = dataclasses.replace(DETECTORS["energy"], version=99)
    monkeypatch.setitem(DETECTORS, "energy", raised)
    assert key("energy") != before


def test_nothing_stored_of_a_method_without_a_version_is_used(small):
    def build(model):
        return Plan(lambda inputs, state: {"score": inputs.forward.logits.max(-1)})

    register_detector("own", Method(build, "largest logit", "a test"))
    made = [make_detector("own", small) for _ in range(2)]
    assert len({store.key_of(store.detector_facts(one)) for one in made}) == 2
