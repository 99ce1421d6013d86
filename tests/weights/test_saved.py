"""The saved form: arrays of any network are read back equal, damage is one sentence."""

import asyncio
import errno
import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_states import assert_same

from si_jax.data import files
from si_jax.data.files import MARKER, written_whole
from si_jax.weights.saved import load_variables, save_variables, write_arrays

TREE = (
    {"dense.0": np.arange(6, dtype=np.float32).reshape(2, 3), "scale": np.float32(3)},
    [np.ones(2, np.int32), jnp.full((3,), 0.1, jnp.bfloat16)],
)


def test_a_tree_of_any_kind_comes_back_equal(tmp_path):
    digest = save_variables(tmp_path / "v", TREE)
    assert_same(load_variables(tmp_path / "v", TREE, sha256=digest), TREE)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), TREE)
    assert_same(load_variables(tmp_path / "v", shapes), TREE)
    assert_same(
        load_variables(tmp_path / "v" / "weights", TREE), TREE
    )  # as older versions wrote it

    async def notebook():  # an event loop runs already
        return load_variables(tmp_path / "v", TREE)

    assert_same(asyncio.run(notebook()), TREE)
    with pytest.raises(ValueError, match="exists already"):
        save_variables(tmp_path / "v", TREE)
    with pytest.raises(ValueError, match="do not have the hash"):
        load_variables(tmp_path / "v", TREE, sha256="0" * 64)
    with pytest.raises(ValueError, match="is not there"):
        load_variables(tmp_path / "w", TREE)


def test_names_and_shapes_are_compared_and_all_differences_are_listed(tmp_path):
    save_variables(tmp_path / "v", {"a": np.ones(3), "b": np.ones(2), "c": np.ones(1)})
    with pytest.raises(ValueError, match="3 differences") as info:
        load_variables(tmp_path / "v", {"a": np.ones(4), "c": np.ones(1), "d": np.ones((2, 2))})
    assert [line.strip() for line in str(info.value).splitlines()[1:]] == [
        "missing: d (2, 2)",
        "left over: b (2,)",
        "wrong shape: a (3,), where the network has (4,)",
    ]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "hold no arrays"),
        ({"a": 1.5}, "a is of type float, not an array"),
        ({"a": np.zeros((0, 3))}, r"a is empty \(shape \(0, 3\)\)"),
        ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, "two arrays are called a/b"),
        ({"a": np.full(2, np.nan)}, "a holds NaN or infinite values"),
        ({"a": np.full(2, -np.inf)}, "a holds NaN or infinite values"),
        ({"a": np.float32(70000)}, r"float16\) cannot hold a, .*70000.*bfloat16"),
    ],
)
def test_what_is_no_tree_of_finite_arrays(variables, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_variables(tmp_path / "v", variables, dtype=jnp.float16)
    assert not (tmp_path / "v").exists()
    write_arrays(tmp_path / "w", {"a": np.array([1, np.inf], np.float16)})
    with pytest.raises(ValueError, match=r"a holds NaN or infinite values \(1 of 2\)"):
        load_variables(tmp_path / "w", {"a": np.ones(2, np.float32)})


def test_damage_is_one_sentence_and_nothing_else_is_printed(tmp_path, capfd):
    variables = {f"layer{i}": np.full(2000, i, np.float32) for i in range(30)}
    save_variables(tmp_path / "v", variables)
    files = [path for path in (tmp_path / "v").rglob("*") if path.is_file()]
    assert len(files) > 5

    def refused(message):
        with pytest.raises(ValueError, match=rf"is damaged or was edited: {message}") as info:
            load_variables(tmp_path / "v", variables)
        assert len(str(info.value).splitlines()) == 1

    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"?")
        refused(r".*(was changed|is missing|no list)")
        path.unlink()
        if path.name != "SHA256SUMS":
            refused(r".* is missing")
        os.mkfifo(path)  # reading it would never end
        refused(r".*(cannot be read|no regular file|Invalid argument)")
        path.unlink()
        path.write_bytes(content)
    (tmp_path / "v" / "weights" / "more").write_bytes(b"")
    refused("weights/more is not listed")
    assert capfd.readouterr() == ("", "")


def test_directories_of_writers_that_were_killed_are_swept(tmp_path):
    dead = tmp_path / ".old.x"
    dead.mkdir()
    (dead / MARKER).touch()
    (tmp_path / ".mine").mkdir()
    with written_whole(tmp_path / "alive") as hidden:
        (hidden / "file").touch()
        with written_whole(tmp_path / "other") as second:
            (second / "file").touch()
        assert hidden.is_dir() and not dead.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine", "alive", "other"]
    assert [p.name for p in (tmp_path / "alive").iterdir()] == ["file"]
    with written_whole(tmp_path / "alive") as hidden:
        (hidden / "new").touch()
    with pytest.raises(RuntimeError), written_whole(tmp_path / "alive"):
        raise RuntimeError
    assert [p.name for p in (tmp_path / "alive").iterdir()] == ["new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine", "alive", "other"]


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_the_umask_holds_and_locks_are_not_needed(mask, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    before = os.umask(mask)
    try:
        save_variables(tmp_path / "v", TREE)
    finally:
        os.umask(before)
    for path in (tmp_path / "v", *(tmp_path / "v").rglob("*")):
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~mask, path
        assert not path.name.startswith(".")
