"""Names of score files, and names of sets that are refused."""

import numpy as np
import pytest

from si_jax.evaluation.store import Store, check_distinct, check_names, escaped


def test_different_names_have_different_files(tmp_path):
    store = Store(tmp_path)
    names = ["x", "x.partial", "x%2Epartial", "a/b", "a_b", "a%2Fb", ".x", "%2Ex", "ä", "$x$", ".."]
    paths = {
        store.path(detector, name, partial=partial)
        for detector in ("msp", "a/b", "a_b")
        for name in names
        for partial in (False, True)
    }
    assert len(paths) == 3 * 2 * len(names)
    assert all(path.parent.parent == tmp_path for path in paths)
    assert {len(escaped(name)) < 255 for name in names} == {True}


def test_a_set_called_as_partial_progress_keeps_its_scores(tmp_path):
    store = Store(tmp_path)
    rows = {"index": np.arange(2), "label": np.zeros(2, int)}
    for name, value in (("x.partial", 1.0), ("x", 2.0)):
        score = np.full(2, value, np.float32)
        store.save("msp", name, "key", {"score": score, **rows}, done=True)
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
    assert store.save("msp", "x", "key", whole, done=True)
    assert store.load("msp", "x", "key").seen == 2
    store.save("msp", "x", "key", whole | arrays, done=True, seen=seen)
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
