"""The converter: where weights land, what is read off the shapes, what does not fit."""

import hashlib
import json
import sys

import checkpoint_states as made
import jax
import numpy as np
import pytest
import recipe
from checkpoint_states import assert_same, resnet8
from pictures import npz

import si_jax
from si_jax.models import ARCHITECTURES, NORMALISATIONS
from si_jax.weights import convert


@pytest.fixture(autouse=True)
def tiny_bit_in_the_table():
    ARCHITECTURES["bit_tiny"] = made.TINY_BIT


@pytest.fixture(scope="module")
def expected():
    return si_jax.convert_torch("resnet8", resnet8())


# --- where weights land, and what is read off the shapes ------------------------------------------


def test_a_mapping_lands_where_the_names_say(expected):
    state, card = resnet8(), expected.card
    params, stats = expected.variables["params"], expected.variables["batch_stats"]
    for found, name in (
        (params["linear"]["kernel"].T, "linear.weight"),
        (params["layer2_0"]["conv2"]["kernel"].transpose(3, 2, 0, 1), "layer2.0.conv2.weight"),
        (params["layer2_0"]["shortcut_bn"]["scale"], "layer2.0.shortcut.1.weight"),
        (stats["layer3_0"]["shortcut_bn"]["var"], "layer3.0.shortcut.1.running_var"),
        (stats["bn1"]["mean"], "bn1.running_mean"),
    ):
        np.testing.assert_array_equal(found, state[name])
    assert (card["source"], card["normalisation"]) == ("a mapping of arrays", "cifar10")
    assert (expected.num_classes, expected.module.shortcut) == (10, "conv")
    assert (expected.mean, expected.std) == NORMALISATIONS["cifar10"]


FILES = {
    "a.npz": lambda: npz(**resnet8()),
    "a.safetensors": lambda: made.safetensors_bytes(resnet8()),
    "a.pth": lambda: made.torch_bytes(made.tensors),
    "a.PT": lambda: made.torch_bytes(
        lambda torch: {"model": made.tensors(torch), "best": torch.ones(1)}
    ),
    # what ends in .tar is mostly old, and so in the older of PyTorch's two formats
    "a.tar": lambda: made.torch_bytes(
        lambda torch: {"state_dict": made.tensors(torch), "epoch": 3},
        _use_new_zipfile_serialization=False,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_format(name, expected, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(FILES[name]())
    if name in ("a.npz", "a.safetensors"):
        monkeypatch.setitem(sys.modules, "torch", None)
    model = si_jax.convert_torch("resnet8", str(tmp_path / name))
    assert_same(model, expected)
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert (model.card["source"], model.card["source_sha256"]) == (name, digest)


def test_narrow_types_become_float32(tmp_path):
    half = {k: v.astype(np.float16) for k, v in resnet8().items() if v.ndim}
    bfloat16 = {k: jax.numpy.asarray(v, "bfloat16") for k, v in resnet8().items() if v.ndim}
    states = [half, bfloat16]
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        tensor = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in bfloat16.items()}
        states.append({k: v.bfloat16() for k, v in tensor.items()})
    for state in states:
        variables = si_jax.convert_torch("resnet8", state).variables
        assert {x.dtype for x in jax.tree.leaves(dict(variables))} == {np.dtype("float32")}
        narrow = half if state is half else bfloat16
        kernel = np.asarray(narrow["linear.weight"], np.float32).T
        np.testing.assert_array_equal(variables["params"]["linear"]["kernel"], kernel)


def test_both_names_of_bits_last_norm_and_googles_file(tmp_path):
    state = made.tiny_bit()
    published = {"module." + k.replace("before_head.gn", "head.gn"): v for k, v in state.items()}
    model = si_jax.convert_torch("bit_tiny", published)
    assert (model.num_classes, model.module.units) == (7, (1, 2, 1, 1))
    params = model.variables["params"]
    np.testing.assert_array_equal(params["head"]["kernel"], state["head.conv.weight"][:, :, 0, 0].T)
    np.savez(tmp_path / "BiT.npz", **made.google(state))
    assert_same(si_jax.convert_torch("bit_tiny", tmp_path / "BiT.npz"), model)


def test_classes_shortcut_and_normalisation_are_inferred():
    padded = {k: v for k, v in resnet8(23).items() if ".shortcut." not in k}
    model = si_jax.convert_torch("resnet8", padded)
    assert (model.num_classes, model.module.shortcut) == (23, "pad")
    assert model.card["normalisation"] == "cifar100"
    options = {"normalisation": "imagenet", "input_size": (24, 16)}
    model = si_jax.convert_torch("wrn_16_4", made.draw(recipe.wrn_shapes(5, 16, 4)), **options)
    assert (model.num_classes, model.module.depth, model.module.widen) == (5, 16, 4)
    assert (model.mean, model.std) == NORMALISATIONS["imagenet"]
    assert (model.input_size, model.card["input_size"]) == ((24, 16), [24, 16])


# --- as others save them: prefixes, spellings, averages, counters, further heads ------------------


def other(prefix=""):
    return {k: v + 1 for k, v in resnet8(prefix=prefix).items()}


def beside_the_prefix():
    state = resnet8(prefix="model.") | {"criterion.weight": np.ones(10, np.float32)}
    return {k.replace("model.linear", "fc"): v for k, v in state.items()}


def spelled():
    return {
        k.replace("linear.", "fc.").replace(".shortcut.", ".downsample."): v
        for k, v in resnet8().items()
    }


AVERAGED = {"n_averaged": np.array(7)}
OTHERS = {  # the mapping, `part`, and what the card's further note says
    "module.module.": (lambda: resnet8(prefix="module.module."), None, ""),
    "module._orig_mod.": (lambda: resnet8(prefix="module._orig_mod."), None, ""),
    "model.": (lambda: resnet8(prefix="model."), None, "'model.' was taken off"),
    "a.b.net.": (lambda: resnet8(prefix="a.b.net."), None, "'a.b.net.' was taken off"),
    "spelled": (spelled, None, ""),
    "averaged": (lambda: resnet8(prefix="module.") | AVERAGED, None, ""),
    "ema": (lambda: {"ema": resnet8(), "epoch": 3}, None, "weights under 'ema' are taken"),
    "several": (lambda: resnet8(prefix="one.") | other("two."), "one", "'one.' was taken off"),
    "part": (lambda: {"state_dict": other(), "ema": resnet8()}, "ema", ""),
    "no part": (lambda: {"model": resnet8(), "ema": other()}, None, "as well: part='ema'"),
    "further head": (
        lambda: resnet8() | {"rotation.weight": np.ones((4, 64)), "rotation.bias": np.ones(4)},
        None,
        "rotation (2 weights) plays no part",
    ),
    "beside the prefix": (beside_the_prefix, None, "criterion (1 weights) plays no part"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_same_network_as_others_save_it(case, expected):
    state, part, note = OTHERS[case]
    model = si_jax.convert_torch("resnet8", state(), part=part)
    assert_same(model, expected)
    notes = [text for text in model.card["notes"] if text not in expected.card["notes"]]
    assert note in "".join(notes) and bool(notes) == bool(note)


def test_a_head_without_bias_is_noted():
    state = {k: v for k, v in resnet8().items() if k != "linear.bias"}
    model = si_jax.convert_torch("resnet8", state)
    assert not model.variables["params"]["linear"]["bias"].any()
    assert any("no bias (linear.bias): zeros" in note for note in model.card["notes"])


# --- a checkpoint that does not fit ---------------------------------------------------------------


def test_all_faults_are_listed_by_both_names():
    state = resnet8(prefix="module.")
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


def kernel(value):
    return lambda: resnet8() | {"conv1.weight": value}


SHAPE = (16, 3, 3, 3)
REFUSED = [
    ("resnet34", resnet8, r"not a resnet34.*blocks \(1, 1, 1\).*convert it as 'resnet8'"),
    ("resnet18", lambda: made.draw(recipe.resnet34_shapes(10, (1,), (4,))), "no architecture here"),
    ("wrn_16_4", resnet8, r"not a wrn_16_4: its names are a ResNet's.*Wide ResNet$"),
    ("wrn_40_2", lambda: made.draw(recipe.wrn_shapes(9, 16, 4)), "convert it as 'wrn_16_4'"),
    ("bit_r50x1", made.tiny_bit, r"not a bit_r50x1.*convert it as 'bit_tiny'"),
    ("bit_r50x1", lambda: made.google(made.tiny_bit()), "convert it as 'bit_tiny'"),
    ("resnet8", lambda: made.google(made.tiny_bit()), "its names are a BiT ResNetV2's"),
    ("resnet8", lambda: {"encoder.weight": np.ones(3)}, r"such as 'encoder.weight'"),
    ("resnet9", dict, r"unknown model 'resnet9'.*resnet8"),
    ("resnet8", dict, "the mapping holds no state dict"),
    ("resnet8", lambda: {"model": {"a": 1}}, "the mapping holds no state dict"),
    ("resnet8", lambda: other("a.") | other("b."), r"prefixes 'a', 'b': choose one by part"),
    *(
        ("resnet8", lambda x=x: resnet8() | {x: np.ones(2)}, rf"linear.weight twice.*'{x}'")
        for x in ("fc.weight", "module.linear.weight")
    ),
    ("resnet8", kernel(np.full(SHAPE, np.nan, np.float32)), r"NaN or infinite .*\(432 of 432\)"),
    ("resnet8", kernel(np.full(SHAPE, 1e300)), "NaN or infinite"),
    ("resnet8", kernel(np.zeros(SHAPE, np.int32)), "int32; weights must be floating-point"),
    ("resnet8", kernel(np.zeros(SHAPE, np.complex64)), "complex64; weights must be"),
    ("resnet8", kernel(np.full(SHAPE, None)), "object; weights must be floating-point"),
    ("resnet8", kernel([[1.0], [2.0, 3.0]]), "of type list; weights must be arrays"),
    ("resnet8", kernel(None), "of type NoneType; weights must be arrays"),
    ("resnet8", resnet8, r"normalisation \(='mnist'\).*imagenet", {"normalisation": "mnist"}),
    ("resnet8", resnet8, "give both or neither", {"mean": (0.1, 0.2, 0.3)}),
    ("resnet8", resnet8, "a height and a width of at least 1 pixel", {"input_size": (0, 8)}),
    (
        "resnet8",
        lambda: {"state_dict": other(), "state_dict_ema": resnet8()},
        r"part \(='nothing'\) is no key",
        {"part": "nothing"},
    ),
]


def test_a_checkpoint_that_does_not_fit_is_one_sentence():
    for name, state, message, *options in REFUSED:
        with pytest.raises(ValueError, match=message) as info:
            si_jax.convert_torch(name, state(), **(options[0] if options else {}))
        assert len(str(info.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["layer2.0.gate.weight", "linear.scale", "scale"])
def test_what_lies_in_the_network_is_not_left_out(name):
    with pytest.raises(ValueError, match=rf"1 faults[\s\S]*left over: {name} \(2,\)"):
        si_jax.convert_torch("resnet8", resnet8() | {name: np.ones(2)})


def test_tensors_of_an_unexpected_kind():
    torch = pytest.importorskip("torch")
    weight = torch.from_numpy(resnet8()["conv1.weight"])
    kinds = (weight.long(), weight.to(torch.complex64), weight.to_sparse(), weight.to("meta"))
    messages = ("torch.int64", "torch.complex64", "torch.sparse_coo", "device meta")
    for message, value in zip(messages, kinds, strict=True):
        with pytest.raises(ValueError, match=rf"^conv1\.weight .*{message}.*weights must be"):
            si_jax.convert_torch("resnet8", kernel(value)())


# --- the script -----------------------------------------------------------------------------------


def test_the_script_writes_a_checkpoint_with_a_card(tmp_path, capsys):
    source, out = tmp_path / "r8.npz", tmp_path / "below" / "r8"
    source.write_bytes(npz(**resnet8()))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    line = [source, "--model", "resnet8", "--out", out, "--input-size", 16, 24]
    status, printed, err = made.run(capsys, *line, "--mean", *mean, "--std", *std)
    assert (status, err) == (0, "")
    options = {"input_size": (16, 24), "mean": mean, "std": std}
    expected = si_jax.convert_torch("resnet8", resnet8(), **options)
    for part in (
        "resnet8, 10 classes", f"{expected.num_parameters:,}", "16x24", str(out),
        "as given: mean (0.1, 0.2, 0.3), deviation (0.4, 0.5, 0.6)",
        "47 arrays, equal after reloading", "logits", "assumed: no max-pool",
    ):  # fmt: skip
        assert part in printed
    assert "assumed: trained with" not in printed
    model = si_jax.load_model(out)
    assert_same(model, expected)
    card = json.loads((out / "card.json").read_text())
    assert card["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (card["model"], card["num_classes"], card["input_size"]) == ("resnet8", 10, [16, 24])
    assert (tuple(card["mean"]), tuple(card["std"])) == (model.mean, model.std) == (mean, std)
    assert card["options"]["shortcut"] == "conv"

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    status, _, err = made.run(capsys, *line)
    assert status == 2 and "exists already" in err
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_what_does_not_read_back_is_removed(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.npz").write_bytes(npz(**resnet8()))
    changed = si_jax.convert_torch("resnet8", other())
    monkeypatch.setattr(convert.checkpoint, "load_model", lambda path: changed)
    line = [tmp_path / "a.npz", "--model", "resnet8", "--out", tmp_path / "b"]
    status, out, err = made.run(capsys, *line)
    assert (status, out) == (2, "") and "has been removed" in err
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    ("package", "suffix"), [("torch", ".pth"), ("safetensors", ".safetensors")]
)
def test_without_the_package_that_reads_a_file(package, suffix, tmp_path, monkeypatch, capsys):
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / f"a{suffix}").write_bytes(made.TEXT)
    line = [tmp_path / f"a{suffix}", "--model", "resnet8", "--out", tmp_path / "b"]
    status, _, err = made.run(capsys, *line)
    assert status == 2
    assert f'pip install "si-jax[{package}]"' in err and err.count("\n") == 1
    assert not (tmp_path / "b").exists()
