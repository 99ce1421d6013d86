"""The converter: where weights land, what is read off the shapes, what does not fit.

PyTorch is asked for only where its own files are written.
"""

import hashlib
import sys
import tarfile

import jax
import numpy as np
import pytest
import recipe
from checkpoint_states import (
    NO_SAFETENSORS,
    NO_TORCH,
    TINY_BIT,
    assert_same,
    draw,
    google,
    names_of,
    resnet8,
    run,
    tiny_bit,
)

import si_jax
from si_jax.models import ARCHITECTURES, NORMALISATIONS


@pytest.fixture(autouse=True)
def tiny_bit_in_the_table(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "bit_tiny", TINY_BIT)


# --- formats --------------------------------------------------------------------------------------


def test_a_mapping_lands_where_the_names_say():
    state = resnet8()
    model = si_jax.convert_torch("resnet8", state)
    params, stats = model.variables["params"], model.variables["batch_stats"]
    block = params["layer2_0"]
    np.testing.assert_array_equal(
        block["conv2"]["kernel"], state["layer2.0.conv2.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        block["shortcut_bn"]["scale"], state["layer2.0.shortcut.1.weight"]
    )
    np.testing.assert_array_equal(params["linear"]["kernel"], state["linear.weight"].T)
    np.testing.assert_array_equal(stats["bn1"]["mean"], state["bn1.running_mean"])
    np.testing.assert_array_equal(
        stats["layer3_0"]["shortcut_bn"]["var"], state["layer3.0.shortcut.1.running_var"]
    )
    assert model.card["source"] == "a mapping of arrays"
    counters = {k for k in state if k.endswith("num_batches_tracked")}
    names = names_of(model, "resnet8")
    assert set(names.values()) == set(state) - counters
    assert len(names) == len(state) - len(counters)


@pytest.mark.parametrize(
    ("nested", "prefix", "name"),
    [
        (None, "", "network.pth"),
        ("state_dict", "module.", "network.tar"),
        ("model", "", "network.pt"),
        ("model_state_dict", "module.", "network.PTH"),
        (None, "", "network.th"),
    ],
)
def test_pytorch_files(tmp_path, nested, prefix, name):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    state = {prefix + k: torch.from_numpy(np.asarray(v)) for k, v in resnet8().items()}
    content = {nested: state, "epoch": 3, "best": torch.tensor(0.9)} if nested else state
    path = tmp_path / name
    # what ends in .tar is mostly old, and so in the older of the two formats
    torch.save(content, path, _use_new_zipfile_serialization=path.suffix != ".tar")
    model = si_jax.convert_torch("resnet8", str(path))
    assert_same(model, si_jax.convert_torch("resnet8", resnet8()))
    assert model.card["source"] == name
    assert model.card["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_and_npz_need_no_pytorch(tmp_path, monkeypatch):
    save_file = pytest.importorskip("safetensors.numpy", reason=NO_SAFETENSORS).save_file
    monkeypatch.setitem(sys.modules, "torch", None)
    save_file(resnet8(), tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **resnet8())
    expected = si_jax.convert_torch("resnet8", {"model": resnet8()})
    assert_same(expected, si_jax.convert_torch("resnet8", resnet8()))
    for name in ("a.safetensors", "a.npz"):
        model = si_jax.convert_torch("resnet8", tmp_path / name)
        assert_same(model, expected)
        assert model.card["source"] == name


def test_narrow_types_become_float32(tmp_path):
    half = {k: v.astype(np.float16) if v.ndim else v for k, v in resnet8().items()}
    model = si_jax.convert_torch("resnet8", half)
    assert {x.dtype for x in jax.tree.leaves(dict(model.variables))} == {np.dtype("float32")}
    bfloat16 = {k: jax.numpy.asarray(v, "bfloat16") for k, v in resnet8().items() if v.ndim}
    expected = {k: np.asarray(v, np.float32) for k, v in bfloat16.items()}
    assert_same(
        si_jax.convert_torch("resnet8", bfloat16), si_jax.convert_torch("resnet8", expected)
    )
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    tensors = {k: torch.from_numpy(v).bfloat16() for k, v in expected.items()}
    torch.save(tensors, tmp_path / "a.pth")
    assert_same(
        si_jax.convert_torch("resnet8", tmp_path / "a.pth"),
        si_jax.convert_torch("resnet8", expected),
    )


def test_both_names_of_bits_last_norm_and_googles_file(tmp_path):
    state = tiny_bit()
    expected = si_jax.convert_torch("bit_tiny", state)
    assert (expected.num_classes, expected.module.units) == (7, (1, 2, 1, 1))
    published = {"module." + k.replace("before_head.gn", "head.gn"): v for k, v in state.items()}
    assert "module.head.gn.weight" in published
    assert_same(si_jax.convert_torch("bit_tiny", published), expected)
    np.savez(tmp_path / "BiT.npz", **google(state))
    model = si_jax.convert_torch("bit_tiny", tmp_path / "BiT.npz")
    assert_same(model, expected)
    assert set(names_of(model, "bit_tiny", layout=1).values()) == set(google(state))
    np.testing.assert_array_equal(
        model.variables["params"]["head"]["kernel"], state["head.conv.weight"][:, :, 0, 0].T
    )


# --- what is read off the shapes ------------------------------------------------------------------


def test_classes_shortcut_and_normalisation_are_inferred():
    model = si_jax.convert_torch("resnet8", resnet8(10))
    assert (model.num_classes, model.module.shortcut) == (10, "conv")
    assert (model.mean, model.std) == NORMALISATIONS["cifar10"]
    model = si_jax.convert_torch("resnet8", resnet8(23, shortcut=False))
    assert (model.num_classes, model.module.shortcut) == (23, "pad")
    assert model.card["normalisation"] == "cifar100"
    model = si_jax.convert_torch(
        "resnet8", resnet8(), normalisation="imagenet", input_size=(24, 16)
    )
    assert (model.mean, model.std) == NORMALISATIONS["imagenet"]
    assert (model.input_size, model.card["input_size"]) == ((24, 16), [24, 16])
    model = si_jax.convert_torch("wrn_16_4", draw(recipe.wrn_shapes(5, 16, 4)))
    assert (model.num_classes, model.module.depth, model.module.widen) == (5, 16, 4)


def test_other_spellings_of_the_same_names():
    expected = si_jax.convert_torch("resnet8", resnet8())
    spelled = {
        k.replace("linear.", "fc.").replace(".shortcut.", ".downsample."): v
        for k, v in resnet8().items()
    }
    assert spelled.keys() != resnet8().keys()
    assert_same(si_jax.convert_torch("resnet8", spelled), expected)
    for more in ("fc.weight", "module.linear.weight"):
        twice = {**resnet8(), more: resnet8()["linear.weight"]}
        with pytest.raises(ValueError, match=rf"linear.weight twice.*'{more}'"):
            si_jax.convert_torch("resnet8", twice)


# --- a checkpoint that does not fit ---------------------------------------------------------------


def test_all_faults_are_listed_by_both_names():
    state = {"module." + k: v for k, v in resnet8().items()}
    del state["module.layer1.0.bn1.running_var"], state["module.conv1.weight"]
    state["module.layer3.0.conv1.weight"] = state["module.layer3.0.conv1.weight"][:, :, :1]
    state["module.fc.bias"] = state.pop("module.linear.bias")[:3]
    state["module.surplus"] = np.zeros((2, 4), np.float32)
    state["epoch"] = 3
    with pytest.raises(ValueError, match="6 faults, where the network has 47") as info:
        si_jax.convert_torch("resnet8", state)
    assert sorted(map(str.strip, str(info.value).splitlines()[1:])) == [
        "left over: epoch ()",
        "left over: module.surplus (2, 4)",
        "missing: conv1.weight (for params/conv1/kernel (3, 3, 3, 16))",
        "missing: layer1.0.bn1.running_var (for batch_stats/layer1_0/bn1/var (16,))",
        "wrong shape: module.fc.bias (3,), for params/linear/bias (10,)",
        "wrong shape: module.layer3.0.conv1.weight (64, 32, 1, 3),"
        " for params/layer3_0/conv1/kernel (3, 3, 32, 64)",
    ]


@pytest.mark.parametrize(
    ("name", "state", "message"),
    [
        ("resnet34", resnet8, r"not a resnet34.*blocks \(1, 1, 1\).*convert it as 'resnet8'"),
        ("resnet18", lambda: draw(recipe.resnet34_shapes(10, (1,), (4,))), r"no architecture here"),
        ("wrn_16_4", resnet8, r"not a wrn_16_4: its names are a ResNet's.*Wide ResNet$"),
        ("wrn_40_2", lambda: draw(recipe.wrn_shapes(9, 16, 4)), "convert it as 'wrn_16_4'"),
        ("resnet8", lambda: draw(recipe.wrn_shapes(9, 16, 4)), "its names are a Wide ResNet's"),
        ("bit_r50x1", tiny_bit, r"not a bit_r50x1.*convert it as 'bit_tiny'"),
        ("bit_r50x1", lambda: google(tiny_bit()), "convert it as 'bit_tiny'"),
        ("resnet8", lambda: google(tiny_bit()), "its names are a BiT ResNetV2's"),
        ("bit_tiny", resnet8, "its names are a ResNet's"),
        ("resnet8", lambda: {"encoder.weight": np.ones(3)}, r"such as 'encoder.weight'"),
    ],
)
def test_another_architecture_is_one_sentence(name, state, message):
    with pytest.raises(ValueError, match=message) as info:
        si_jax.convert_torch(name, state())
    assert len(str(info.value).splitlines()) == 1


class Object:
    """Something that is no array."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full((16, 3, 3, 3), np.nan, np.float32), r"NaN or infinite values \(432 of 432\)"),
        (np.full((16, 3, 3, 3), 1e300), "NaN or infinite"),
        (np.zeros((16, 3, 3, 3), np.int32), "int32; weights must be floating-point"),
        (np.zeros((16, 3, 3, 3), np.complex64), "complex64; weights must be floating-point"),
        (np.zeros((16, 3, 3, 3), bool), "bool; weights must be floating-point"),
        (np.full((16, 3, 3, 3), None), "object; weights must be floating-point"),
        ([[1.0], [2.0, 3.0]], "of type list; weights must be arrays"),
        ("text", "of type str; weights must be arrays"),
        (None, "of type NoneType; weights must be arrays"),
        (Object(), "of type Object; weights must be arrays"),
    ],
)
def test_weights_that_are_no_finite_numbers(value, message):
    with pytest.raises(ValueError, match=rf"^module\.conv1\.weight .*{message}"):
        si_jax.convert_torch(
            "resnet8", {"module." + k: v for k, v in {**resnet8(), "conv1.weight": value}.items()}
        )


def test_tensors_of_an_unexpected_kind():
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    weight = torch.from_numpy(resnet8()["conv1.weight"])
    kinds = (weight.long(), weight.to(torch.complex64), weight.to_sparse(), weight.to("meta"))
    messages = ("torch.int64", "torch.complex64", "torch.sparse_coo", "device meta")
    for message, value in zip(messages, kinds, strict=True):
        with pytest.raises(ValueError, match=rf"^conv1\.weight .*{message}.*weights must be"):
            si_jax.convert_torch("resnet8", {**resnet8(), "conv1.weight": value})


def test_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match=r"unknown model 'resnet9'.*resnet8"):
        si_jax.convert_torch("resnet9", {})
    with pytest.raises(ValueError, match=r"normalisation \(='mnist'\).*imagenet"):
        si_jax.convert_torch("resnet8", resnet8(), normalisation="mnist")
    for size in ((0, 8), (8, -1)):
        with pytest.raises(ValueError, match="height and a width of at least 1 pixel"):
            si_jax.convert_torch("resnet8", resnet8(), input_size=size)
    for mapping in ({}, {"model": {}}, {"model": {"a": 1}}):
        with pytest.raises(ValueError, match="the mapping holds no state dict"):
            si_jax.convert_torch("resnet8", mapping)


# --- as others save them: prefixes, averages, counters, further heads -----------------------------


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
    for part in ("storages", "tensors", "pickle"):
        (tmp_path / part).write_bytes(b"\x80\x02K\x00.")
    with tarfile.open(tmp_path / "old.pth.tar", "w") as archive:
        for part in ("storages", "tensors", "pickle"):
            archive.add(tmp_path / part, part)
    with pytest.raises(ValueError, match=r"old tar format.*save it again with a newer PyTorch"):
        si_jax.convert_torch("resnet8", tmp_path / "old.pth.tar")
