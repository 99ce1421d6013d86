"""Arrays of any network on disk: read back equal, compared by name, shape and hash."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import si_jax
from si_jax.data.directories import MARKER, written_whole
from si_jax.weights.variables import load_variables, save_variables, weights_hash

TREE = (
    {"dense.0": np.arange(6, dtype=np.float32).reshape(2, 3), "scale": np.float32(3)},
    [np.ones(2, np.int32), jnp.full((3,), 0.1, jnp.bfloat16)],
)


def same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_tree_of_any_kind_comes_back_equal(tmp_path):
    digest = save_variables(tmp_path / "v", TREE)
    same(load_variables(tmp_path / "v", TREE, sha256=digest), TREE)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), TREE)
    same(load_variables(tmp_path / "v", shapes), TREE)
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


def test_what_float16_cannot_hold_is_refused_at_writing_and_at_loading(tmp_path):
    variables = {"bn": {"var": np.array([1, 70000], np.float32)}}
    with pytest.raises(ValueError, match=r"float16\) cannot hold bn/var.*70000.*bfloat16"):
        save_variables(tmp_path / "v", variables, dtype=jnp.float16)
    assert not (tmp_path / "v").exists()
    save_variables(tmp_path / "v", variables, dtype=jnp.bfloat16)
    broken = {"bn": {"var": np.array([1, np.inf], np.float16).view(np.int16)}}
    save_variables(tmp_path / "w", broken)  # past the check, as an older writer would have
    with pytest.raises(ValueError, match=r"bn/var holds NaN or infinite values \(1 of 2\)"):
        load_variables(tmp_path / "w", _as_float16(tmp_path / "w", broken))
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="a holds NaN or infinite values"):
            save_variables(tmp_path / "x", {"a": np.full(2, value, np.float32)})


def _as_float16(directory, like):
    """Rewrite the stored int16 arrays as the float16 that their bytes are."""
    import orbax.checkpoint as ocp

    tree = jax.tree.map(lambda x: x.view(np.float16), load_variables(directory, like))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(directory, tree, force=True)
    return tree


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "hold no arrays"),
        ({"a": 1.5}, "a is of type float, not an array"),
        ({"a": np.zeros((0, 3))}, r"a is empty \(shape \(0, 3\)\)"),
        ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, "two arrays are called a/b"),
    ],
)
def test_what_is_no_tree_of_arrays(variables, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_variables(tmp_path / "v", variables)


def test_only_regular_files_are_opened(tmp_path):
    save_variables(tmp_path / "v", TREE)
    os.mkfifo(tmp_path / "v" / "d" / "pipe")
    with pytest.raises(ValueError, match="pipe is no regular file"):
        load_variables(tmp_path / "v", TREE)
    (tmp_path / "v" / "d" / "pipe").unlink()
    (tmp_path / "v" / "manifest.ocdbt").unlink()
    os.mkfifo(tmp_path / "v" / "manifest.ocdbt")
    with pytest.raises(ValueError, match=r"manifest\.ocdbt is no regular file"):
        load_variables(tmp_path / "v", TREE)


@pytest.mark.parametrize("part", ["manifest", "/d/", ""])
def test_damage_is_one_sentence_and_nothing_else_is_printed(part, tmp_path, capfd):
    variables = {f"layer{i}": np.full(2000, i, np.float32) for i in range(30)}
    save_variables(tmp_path / "v", variables)
    damaged = 0
    for path in (tmp_path / "v").rglob("*"):
        if path.is_file() and part in str(path):
            path.write_bytes(b"nonsense")
            damaged += 1
    assert damaged
    with pytest.raises(ValueError, match="cannot be read as orbax weights") as info:
        load_variables(tmp_path / "v", variables)
    assert len(str(info.value).splitlines()) == 1
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
    assert [p.name for p in (tmp_path / "alive").iterdir()] == ["new"]
    with pytest.raises(RuntimeError), written_whole(tmp_path / "alive"):
        raise RuntimeError
    assert [p.name for p in (tmp_path / "alive").iterdir()] == ["new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine", "alive", "other"]


class Own(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3, name="classify")(x.mean((1, 2)))


def own_model(seed, **options):
    network = Own()
    variables = network.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))
    return si_jax.Model(
        network, variables, input_size=(8, 8), mean=(0.4,), std=(0.3,), head="classify", **options
    )


def test_a_network_of_ones_own_is_saved_and_loaded_into_a_model_of_it(tmp_path):
    model, images = own_model(0), np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    path = si_jax.save_checkpoint(tmp_path / "own", model)
    loaded = si_jax.load_model(path, like=own_model(1))
    assert np.ptp(loaded.logits(images) - own_model(1).logits(images)) > 0.01
    np.testing.assert_array_equal(loaded.logits(images), model.logits(images))
    assert weights_hash(loaded.variables) == loaded.card["sha256"]
    with pytest.raises(ValueError, match="a network of your own: pass like="):
        si_jax.load_model(path)
    with pytest.raises(ValueError, match="weights of another network, with"):
        si_jax.load_model(path, like=si_jax.load_model("digits"))
