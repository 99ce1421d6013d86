"""Names of score files, and names of sets that are refused."""

import numpy as np
import pytest

from si_jax.evaluation.keyed_files import write_keyed
from si_jax.evaluation.store import (
    Progress,
    Store,
    check_distinct,
    check_names,
    escaped,
)


def test_different_names_have_different_files(tmp_path):
    store = Store(tmp_path)
    names = ["x", "x.partial", "x%2Epartial", "a/b", "a_b", "a%2Fb", ".x", "%2Ex", "ä", "$x$", ".."]
    paths = {
        store.path(detector, name, part=part)
        for detector in ("msp", "a/b", "a_b")
        for name in names
        for part in (None, 0)
    }
    assert len(paths) == 3 * 2 * len(names)
    assert all(path.parent.parent == tmp_path for path in paths)
    assert {len(escaped(name)) < 255 for name in names} == {True}


def test_a_set_called_as_partial_progress_keeps_its_scores(tmp_path):
    store = Store(tmp_path)
    rows = {"index": np.arange(2), "label": np.zeros(2, int)}
    for name, value in (("x.partial", 1.0), ("x", 2.0)):
        score = np.full(2, value, np.float32)
        store.save("msp", name, "key", {"score": score, **rows})
    for name, value in (("x.partial", 1.0), ("x", 2.0)):
        progress = store.load("msp", name, "key")
        assert progress.done and progress.arrays["score"].tolist() == [value, value]


@pytest.mark.parametrize(
    ("arrays", "seen"),
    [
        ({"score": np.zeros((2, 2), np.float32)}, 2),
        ({"score": np.zeros(2, np.float32), "index": np.arange(3)}, 2),
        ({"score": np.zeros(2, np.float32)}, 1),
        ({"score": np.array(["a", "b"])}, 2),
        ({"index": np.array([5, 9])}, 2),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_computed_again(tmp_path, arrays, seen):
    store = Store(tmp_path)
    whole = {"score": np.zeros(2, np.float32), "index": np.arange(2), "label": np.zeros(2, int)}
    assert store.save("msp", "x", "key", whole)
    assert store.load("msp", "x", "key").seen == 2
    store.save("msp", "x", "key", whole | arrays, seen=seen)
    assert not store.load("msp", "x", "key").done


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
    ],
)
def test_names_that_cannot_be_used(names, message):
    with pytest.raises(ValueError, match=message):
        check_names(names)


def test_names_that_can():
    check_names(["svhn", "a/b", "a_b", r"$\frac{$", "<b>", "ä", "x.partial", "with space"])
    with pytest.raises(ValueError, match="detector 'msp' is given twice"):
        check_distinct(["msp", "knn", "msp"], "detector")


def part(indices, left_out=()):
    index = np.array(indices, np.int64)
    rows = {"score": index.astype(np.float32), "index": index, "label": index % 3}
    return Progress(rows if len(indices) else {}, np.array(left_out, np.int64), False)


def test_parts_make_a_whole(tmp_path):
    """Whoever wrote them, in whatever order, some rows twice, some parts of something else."""
    store = Store(tmp_path)
    for found in (part([8, 9]), part([0, 1, 3], [2]), part([3, 4, 5]), part([], [7])):
        store.save_part("msp", "x", "key", found)
    store.save_part("msp", "x", "another", part([6]))
    store.path("msp", "x", part=11).write_bytes(b"no archive")
    progress = store.load("msp", "x", "key")
    assert not progress.done and progress.seen == 9
    assert progress.left_out.tolist() == [2, 7]
    assert progress.arrays["index"].tolist() == [0, 1, 3, 4, 5, 8, 9]
    np.testing.assert_array_equal(progress.arrays["score"], progress.arrays["index"])

    store.save_part("msp", "x", "key", part([2]))  # which can be read by now
    progress = store.load("msp", "x", "key")
    assert progress.left_out.tolist() == [7] and 2 in progress.arrays["index"]

    store.save("msp", "x", "key", part(range(12)).arrays)
    assert [path.name for path in (tmp_path / "msp").iterdir()] == ["x.npz"]
    assert store.load("msp", "x", "key").seen == 12


@pytest.mark.parametrize(
    "change",
    [
        {"score": np.array(["a", "b"])},
        {"score": np.zeros(2, int)},
        {"index": np.array([-1, 3])},
        {"index": np.arange(3)},
        {"index": np.zeros((2, 1), int)},
        {"label": np.zeros(2)},
        {"left_out": np.zeros(2)},
        {"left_out": None},
        {"label": None},
    ],
)
def test_a_part_of_another_form_counts_for_nothing(tmp_path, change):
    store = Store(tmp_path)
    store.save_part("msp", "x", "key", part([4, 5]))
    content = {**part([0, 1]).arrays, "left_out": np.zeros(0, int)} | change
    arrays = {name: array for name, array in content.items() if array is not None}
    write_keyed(store.path("msp", "x", part=0), "key", arrays)
    assert store.load("msp", "x", "key").arrays["index"].tolist() == [4, 5]
