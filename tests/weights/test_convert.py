"""The converter: every file format, what is read off the shapes, every mistake in one sentence.

PyTorch is asked for only where its own files are written.
"""

import argparse
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import recipe

import si_jax
from si_jax import cli
from si_jax.commands import convert as script
from si_jax.models import ARCHITECTURES, NORMALISATIONS, Architecture
from si_jax.models.bit import BiT
from si_jax.weights import convert, convert_files

ROOT = Path(__file__).parents[2]
NARROW = (16, 32, 64)
NO_TORCH = "PyTorch writes its own checkpoint files"
NO_SAFETENSORS = "safetensors is not installed"


def draw(shapes, seed=0):
    """A state dict of random arrays: name -> array."""
    return {key: recipe._draw(key, shape, seed) for key, shape in shapes.items()}


def resnet8(classes=10, shortcut=True):
    shapes = recipe.resnet34_shapes(classes, (1, 1, 1), NARROW)
    return draw({k: v for k, v in shapes.items() if shortcut or ".shortcut." not in k})


def tiny_bit(classes=7):
    return draw(recipe.bit_shapes(classes, (1, 2, 1, 1), prefix=""))


@pytest.fixture(autouse=True)
def small_bit(monkeypatch):
    """A BiT with five units, so that the tests of its names are quick."""
    options = {"units": (1, 2, 1, 1), "width_factor": 1}
    tiny = Architecture(BiT, 1000, (32, 32), "half", "head", options)
    monkeypatch.setitem(ARCHITECTURES, "bit_tiny", tiny)


def google(state):
    """A BiT state dict as Google's `.npz` files have it: HWIO, slashes, gamma and beta."""
    found = {}
    for key, value in state.items():
        *module, leaf = key.split(".")
        if module[0] == "root":
            name = "root_block/standardized_conv2d/kernel"
        elif module[0] == "head":
            name = "head/conv2d/" + {"weight": "kernel", "bias": "bias"}[leaf]
        elif module[0] == "before_head":
            name = "group_norm/" + {"weight": "gamma", "bias": "beta"}[leaf]
        else:
            _, block, unit, layer = module
            where = "a/proj" if layer == "downsample" else " abc"[int(layer[-1])]
            kind = "group_norm" if layer.startswith("gn") else "standardized_conv2d"
            names = {"weight": "gamma", "bias": "beta"} if "gn" in layer else {"weight": "kernel"}
            name = f"{block}/{unit}/{where}/{kind}/{names[leaf]}"
        found[f"resnet/{name}"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return found


def assert_same(model, expected):
    assert jax.tree.structure(dict(model.variables)) == jax.tree.structure(dict(expected.variables))
    jax.tree.map(np.testing.assert_array_equal, dict(model.variables), dict(expected.variables))


def run(capsys, *arguments):
    """Exit status, standard output and standard error of the script."""
    status = 0
    try:
        cli.run(lambda: script.main([str(a) for a in arguments]))
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


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
    names = convert.source_names(model, "resnet")
    assert set(names.values()) == set(state) - counters
    assert len(names) == len(state) - len(counters)


@pytest.mark.parametrize("nested", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".tar"])
def test_pytorch_files(tmp_path, nested, prefix, suffix):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    state = {prefix + k: torch.from_numpy(np.asarray(v)) for k, v in resnet8().items()}
    content = {nested: state, "epoch": 3, "best": torch.tensor(0.9)} if nested else state
    path = tmp_path / f"network{suffix}"
    # what ends in .tar is mostly old, and so in the older of the two formats
    torch.save(content, path, _use_new_zipfile_serialization=suffix == ".pth")
    model = si_jax.convert_torch("resnet8", path)
    assert_same(model, si_jax.convert_torch("resnet8", resnet8()))
    assert model.card["source"] == path.name
    assert model.card["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".pt", ".th", ".PTH"])
def test_further_suffixes(tmp_path, suffix):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    path = tmp_path / f"network{suffix}"
    torch.save({k: torch.from_numpy(np.asarray(v)) for k, v in resnet8().items()}, path)
    assert_same(
        si_jax.convert_torch("resnet8", str(path)), si_jax.convert_torch("resnet8", resnet8())
    )


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
    assert set(convert.source_names(model, "bit_npz").values()) == set(google(state))
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
        ("wrn_16_4", resnet8, r"not a wrn_16_4: its names are a CIFAR ResNet's.*Wide ResNet$"),
        ("wrn_40_2", lambda: draw(recipe.wrn_shapes(9, 16, 4)), "convert it as 'wrn_16_4'"),
        ("resnet8", lambda: draw(recipe.wrn_shapes(9, 16, 4)), "its names are a Wide ResNet's"),
        ("bit_r50x1", tiny_bit, r"not a bit_r50x1.*convert it as 'bit_tiny'"),
        ("bit_r50x1", lambda: google(tiny_bit()), "convert it as 'bit_tiny'"),
        ("resnet8", lambda: google(tiny_bit()), "its names are a BiT ResNetV2's"),
        ("bit_tiny", resnet8, "its names are a CIFAR ResNet's"),
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
    values = {
        "torch.int64": weight.long(),
        "torch.complex64": weight.to(torch.complex64),
        "torch.sparse_coo": weight.to_sparse(),
        "device meta": weight.to("meta"),
    }
    for message, value in values.items():
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


# --- files that are no checkpoint -----------------------------------------------------------------


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def safetensors_bytes(state):
    return pytest.importorskip("safetensors.numpy", reason=NO_SAFETENSORS).save(state)


def torch_bytes(content, **options):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    buffer = io.BytesIO()
    torch.save(content(torch), buffer, **options)
    return buffer.getvalue()


def tensors(torch):
    return {k: torch.from_numpy(np.asarray(v)) for k, v in resnet8().items()}


def poisoned():
    return {**resnet8(), "bn1.weight": np.full(16, np.inf, np.float32)}


class Harmful:
    """Unpickling it would leave a file behind."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


TEXT = b"This is a text file.\nIt has two lines.\n"
MISTAKES = {  # file's name, its bytes, what the message must say
    "text npz": ("a.npz", lambda: TEXT, "is no .npz file"),
    "npy": ("a.npz", lambda: npy(np.zeros(3)), "is no .npz file"),
    "zip npz": ("a.npz", lambda: zipped(a="text"), "holds no state dict"),
    "bad npy in npz": ("a.npz", lambda: zipped(**{"a.npy": "text"}), "is damaged|no state dict"),
    "objects": ("a.npz", lambda: npz(a=np.array([{}], object)), "something else than arrays"),
    "cut npz": ("a.npz", lambda: npz(**resnet8())[:-100], "is cut short"),
    "empty npz": ("a.npz", lambda: npz(), "holds no state dict"),
    "nan npz": ("a.npz", lambda: npz(**poisoned()), r"bn1.weight holds NaN or infinite"),
    "integers": ("a.npz", lambda: npz(**resnet8() | {"bn1.bias": np.zeros(16, np.int8)}), "int8"),
    "other npz": ("a.npz", lambda: npz(**google(tiny_bit())), "not a resnet8"),
    "text suffix": ("a.txt", lambda: TEXT, r"must end in one of.*\.npz.*\.pth"),
    "text safetensors": ("a.safetensors", lambda: TEXT, "is no safetensors file"),
    "zip safetensors": ("a.safetensors", lambda: zipped(a="text"), "is no safetensors file"),
    "cut safetensors": ("a.safetensors", lambda: safetensors_bytes(resnet8())[:-9], "cut short"),
    "no tensors": ("a.safetensors", lambda: safetensors_bytes({}), "holds no state dict"),
    "nan safetensors": ("a.safetensors", lambda: safetensors_bytes(poisoned()), "NaN or infinite"),
    "text pth": ("a.pth", lambda: torch_bytes(tensors) and TEXT, "is no PyTorch checkpoint"),
    "empty pth": ("a.pth", lambda: torch_bytes(tensors) and b"", "is no PyTorch checkpoint"),
    "zip pth": ("a.pth", lambda: torch_bytes(tensors) and zipped(a="x"), "is no PyTorch check"),
    "npz as pth": ("a.pth", lambda: torch_bytes(tensors) and npz(a=np.ones(2)), "is no PyTorch"),
    "cut pth": ("a.pth", lambda: torch_bytes(tensors)[:-2000], "or is damaged or cut short"),
    "cut tar": (
        "a.tar",
        lambda: torch_bytes(tensors, _use_new_zipfile_serialization=False)[:-2000],
        "or is damaged or cut short",
    ),
    "tensor": ("a.pt", lambda: torch_bytes(lambda torch: torch.ones(3)), "holds no state dict"),
    "list": ("a.pt", lambda: torch_bytes(lambda torch: [tensors(torch)]), "holds no state dict"),
    "no weights": ("a.pt", lambda: torch_bytes(lambda torch: {"model": {"a": 1}}), "no state dict"),
    "module": (
        "a.pth",
        lambda: torch_bytes(lambda torch: torch.nn.Linear(2, 2)),
        r"Python object \(torch\.nn\..*Linear\).*save the state dict alone",
    ),
    "arguments": (
        "a.th",
        lambda: torch_bytes(lambda torch: {"model": tensors(torch), "a": argparse.Namespace()}),
        r"Python object \(argparse\.Namespace\)",
    ),
    "harmful": ("a.pth", lambda: torch_bytes(lambda torch: Harmful()), r"Python object \(.*mkdir"),
    "nan pth": (
        "a.pth",
        lambda: torch_bytes(lambda torch: tensors(torch) | {"bn1.bias": torch.ones(16) / 0}),
        r"bn1.bias holds NaN or infinite values \(16 of 16\)",
    ),
    "integer pth": (
        "a.pth",
        lambda: torch_bytes(lambda torch: tensors(torch) | {"bn1.bias": torch.ones(16).int()}),
        r"bn1.bias is of type torch\.int32",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(mistake, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, content, message = MISTAKES[mistake]
    Path(name).write_bytes(content())
    with pytest.raises(ValueError, match=message):
        si_jax.convert_torch("resnet8", name)
    status, out, err = run(capsys, name, "--model", "resnet8", "--out", "below/converted")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1 and err.endswith("\n")
    assert "weights_only" not in err and "allow_pickle" not in err
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_damaged_bytes_raise_nothing_else(tmp_path):
    """Whichever byte is damaged, a file is read or refused."""
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2)}
    compressed = io.BytesIO()
    np.savez_compressed(compressed, **arrays)
    files = {"a.npz": npz(**arrays), "b.npz": compressed.getvalue()}
    if importlib.util.find_spec("safetensors"):
        files["a.safetensors"] = safetensors_bytes(arrays)
    if importlib.util.find_spec("torch"):
        for name, zipped in (("a.pth", True), ("b.pth", False)):
            files[name] = torch_bytes(
                lambda torch: {k: torch.from_numpy(v) for k, v in arrays.items()},
                _use_new_zipfile_serialization=zipped,
            )
    rng = np.random.default_rng(0)
    refused = 0
    for name, content in files.items():
        path = tmp_path / name
        for _ in range(150):
            damaged = np.frombuffer(content, np.uint8).copy()
            where = rng.integers(0, len(damaged), rng.integers(1, 4))
            damaged[where] = rng.integers(0, 256, where.shape)
            path.write_bytes(damaged[: None if rng.random() < 0.8 else where[0]].tobytes())
            try:
                convert_files.load_file(path)
            except ValueError:
                refused += 1
    assert refused > 0


# --- the script -----------------------------------------------------------------------------------


def test_the_script_writes_a_checkpoint_with_a_card(tmp_path, capsys):
    source, out = tmp_path / "r8.npz", tmp_path / "below" / "r8"
    np.savez(source, **resnet8())
    status, printed, err = run(
        capsys, source, "--model", "resnet8", "--out", out, "--input-size", 16, 24
    )
    assert (status, err) == (0, "")
    expected = si_jax.convert_torch("resnet8", resnet8(), input_size=(16, 24))
    for part in (
        "resnet8, 10 classes",
        f"{expected.num_parameters:,}",
        "16x24",
        "cifar10",
        str(out),
    ):
        assert part in printed
    assert "47 arrays, equal after reloading" in printed
    assert "logits" in printed
    model = si_jax.load_model(out)
    assert_same(model, expected)
    card = json.loads((out / "card.json").read_text())
    assert card["source"] == "r8.npz"
    assert card["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (card["model"], card["num_classes"], card["input_size"]) == ("resnet8", 10, [16, 24])
    assert card["normalisation"] == "cifar10"
    assert (tuple(card["mean"]), tuple(card["std"])) == NORMALISATIONS["cifar10"]
    assert card["options"]["shortcut"] == "conv"
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 24, 3), np.uint8)
    np.testing.assert_allclose(model.logits(images), expected.logits(images), rtol=1e-5)

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    status, _, err = run(capsys, source, "--model", "resnet8", "--out", out)
    assert status == 2 and "exists already" in err
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.pth", "--model", "resnet8"), "nowhere.pth is not a file"),
        ((".", "--model", "resnet8"), "is not a file"),
        (("a.npz", "--model", "resnet9"), "unknown model 'resnet9'"),
        (("a.npz", "--model", "resnet20"), "convert it as 'resnet8'"),
        (("a.npz", "--model", "resnet8", "--input-size", "0", "3"), "at least 1 pixel"),
        (("a.npz", "--model", "resnet8", "--normalisation", "x"), "must be one of cifar10"),
    ],
)
def test_wrong_arguments_of_the_script(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **resnet8())
    status, out, err = run(capsys, *arguments, "--out", "converted")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_faults_are_all_printed_and_nothing_is_written(tmp_path, capsys):
    state = resnet8()
    del state["bn1.weight"], state["conv1.weight"]
    np.savez(tmp_path / "a.npz", **state)
    status, out, err = run(
        capsys, tmp_path / "a.npz", "--model", "resnet8", "--out", tmp_path / "b"
    )
    assert (status, out, err.count("missing: ")) == (2, "", 2)
    assert not (tmp_path / "b").exists()


def test_what_does_not_read_back_is_removed(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "a.npz", **resnet8())
    other = si_jax.convert_torch("resnet8", draw(recipe.resnet34_shapes(10, (1, 1, 1), NARROW), 1))
    monkeypatch.setattr(si_jax, "load_model", lambda path: other)
    status, out, err = run(
        capsys, tmp_path / "a.npz", "--model", "resnet8", "--out", tmp_path / "b"
    )
    assert (status, out) == (2, "")
    assert "has been removed" in err
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_logits_that_overflow_are_refused(tmp_path, capsys):
    huge = {k: v * 1e38 if k == "linear.weight" else v for k, v in resnet8().items()}
    np.savez(tmp_path / "a.npz", **huge | {"linear.bias": np.full(10, 3e38, np.float32)})
    status, _, err = run(capsys, tmp_path / "a.npz", "--model", "resnet8", "--out", tmp_path / "b")
    assert status == 2 and "logits are not finite" in err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("package", "suffix"), [("torch", ".pth"), ("safetensors", ".safetensors")]
)
def test_without_the_package_that_reads_a_file(package, suffix, tmp_path, monkeypatch, capsys):
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(TEXT)
    status, _, err = run(capsys, path, "--model", "resnet8", "--out", tmp_path / "b")
    assert status == 2
    assert "pip install -e '.[torch]'" in err and err.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_in_a_process_of_its_own_without_pytorch(tmp_path):
    """As a user runs it: exit status 2 and no traceback, and no PyTorch for other formats."""
    np.savez(tmp_path / "a.npz", **resnet8())
    shutil.copy(tmp_path / "a.npz", tmp_path / "a.pth")
    code = f"""
import runpy, sys
class NoTorch:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch)
for name, out in (("a.npz", "good"), ("a.pth", "bad")):
    sys.argv = ["convert.py", name, "--model", "resnet8", "--out", out]
    runpy.run_path({str(ROOT / "scripts" / "convert.py")!r}, run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("SI_JAX_TRACEBACK", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "parameters" in done.stdout
    assert "needs PyTorch" in done.stderr and "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "a.pth", "good"]
