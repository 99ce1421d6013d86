"""Checkpoints as others save them: prefixes, averages, counters, further heads."""

import numpy as np
import pytest
from checkpoint_states import NO_TORCH, assert_same, resnet8, run

import si_jax


@pytest.fixture(scope="module")
def expected():
    return si_jax.convert_torch("resnet8", resnet8())


@pytest.mark.parametrize(
    "prefix",
    ["module.module.", "_orig_mod.", "module._orig_mod.", "model.", "model._orig_mod.", "a.b.net."],
)
def test_a_prefix_is_taken_off_whatever_its_depth(prefix, expected):
    model = si_jax.convert_torch("resnet8", {prefix + k: v for k, v in resnet8().items()})
    assert_same(model, expected)
    told = any(repr(prefix) in note for note in model.card["notes"])
    assert told == (not prefix.startswith(("module", "_orig")))


def test_what_lies_beside_the_prefix_is_noted(expected):
    state = {"model." + k: v for k, v in resnet8().items()}
    state["criterion.weight"] = np.ones(10, np.float32)
    state["fc.weight"], state["fc.bias"] = (
        state.pop(f"model.linear.{x}") for x in ("weight", "bias")
    )
    model = si_jax.convert_torch("resnet8", state)
    assert_same(model, expected)
    assert any("criterion (1 weights) plays no part" in note for note in model.card["notes"])


def test_one_of_several_networks_in_a_file(expected):
    other = {k: v + 1 for k, v in resnet8().items()}
    both = {f"teacher.{k}": v for k, v in other.items()}
    both |= {f"student.{k}": v for k, v in resnet8().items()}
    with pytest.raises(ValueError, match=r"prefixes 'teacher', 'student': choose one by part"):
        si_jax.convert_torch("resnet8", both)
    assert_same(si_jax.convert_torch("resnet8", both, part="student"), expected)
    nested = {"state_dict": other, "state_dict_ema": resnet8(), "epoch": 3}
    assert_same(si_jax.convert_torch("resnet8", nested, part="state_dict_ema"), expected)
    model = si_jax.convert_torch("resnet8", nested)
    assert_same(model, si_jax.convert_torch("resnet8", other))
    assert any("part='state_dict_ema'" in note for note in model.card["notes"])
    for missing in ({"part": "ema"}, {"part": "nothing"}):
        with pytest.raises(ValueError, match=r"part \(='\w+'\) is"):
            si_jax.convert_torch("resnet8", nested, **missing)


def test_averaged_weights_and_their_counters(expected):
    averaged = {"module." + k: v for k, v in resnet8().items()} | {"n_averaged": np.array(7)}
    assert_same(si_jax.convert_torch("resnet8", averaged), expected)
    model = si_jax.convert_torch("resnet8", {"ema": averaged, "epoch": 3})
    assert_same(model, expected)
    assert "the averaged weights under 'ema' are taken" in model.card["notes"]


def test_a_head_without_bias_has_one_of_zeros():
    state = {k: v for k, v in resnet8().items() if k != "linear.bias"}
    model = si_jax.convert_torch("resnet8", state)
    assert not model.variables["params"]["linear"]["bias"].any()
    assert any("no bias (linear.bias): zeros" in note for note in model.card["notes"])
    with pytest.raises(ValueError, match=r"1 faults[\s\S]*missing: bn1.bias"):
        si_jax.convert_torch("resnet8", {k: v for k, v in state.items() if k != "bn1.bias"})


def test_a_module_of_its_own_is_left_out_and_one_inside_a_block_is_not(expected):
    extra = {"rotation.fc.weight": np.ones((4, 64)), "rotation.fc.bias": np.ones(4)}
    model = si_jax.convert_torch("resnet8", resnet8() | extra)
    assert_same(model, expected)
    assert any("rotation (2 weights) plays no part" in note for note in model.card["notes"])
    for name in ("layer2.0.gate.weight", "linear.scale", "scale"):
        with pytest.raises(ValueError, match=rf"1 faults[\s\S]*left over: {name} \(2,\)"):
            si_jax.convert_torch("resnet8", resnet8() | {name: np.ones(2)})


def test_mean_and_deviation_by_number(tmp_path, capsys):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    model = si_jax.convert_torch("resnet8", resnet8(), mean=mean, std=std)
    assert (model.mean, model.std, model.card["normalisation"]) == (mean, std, "as given")
    with pytest.raises(ValueError, match="give both or neither"):
        si_jax.convert_torch("resnet8", resnet8(), mean=mean)
    np.savez(tmp_path / "a.npz", **resnet8())
    status, out, _ = run(
        capsys, tmp_path / "a.npz", "--model", "resnet8", "--out", tmp_path / "b",
        "--mean", *mean, "--std", *std,
    )  # fmt: skip
    assert status == 0
    assert "mean (0.1, 0.2, 0.3), deviation (0.4, 0.5, 0.6)" in out
    assert "assumed: no max-pool" in out and "assumed: trained with" not in out
    assert si_jax.load_model(tmp_path / "b").std == std


def test_an_old_tar_is_told_from_a_damaged_file(tmp_path):
    pytest.importorskip("torch", reason=NO_TORCH)
    import tarfile

    for part in ("storages", "tensors", "pickle"):
        (tmp_path / part).write_bytes(b"\x80\x02K\x00.")
    with tarfile.open(tmp_path / "old.pth.tar", "w") as archive:
        for part in ("storages", "tensors", "pickle"):
            archive.add(tmp_path / part, part)
    with pytest.raises(ValueError, match=r"old tar format.*save it again with a newer PyTorch"):
        si_jax.convert_torch("resnet8", tmp_path / "old.pth.tar")
