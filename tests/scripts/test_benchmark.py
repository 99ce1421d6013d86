import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import benchmark
from benchmarks import rounding, speed
from si_jax import splitting
from si_jax.detectors import Inputs, make_detector


def test_data(tmp_path, capsys):
    out = tmp_path / "figures.json"
    benchmark.main(["data", "--limit", "8", "--repeats", "1", "--workers", "2", "--out", str(out)])
    printed = capsys.readouterr().out
    sources = json.loads(out.read_text())["sources"]
    assert [row["images"] for row in sources] == [8] * 4
    assert all(r["source"] in printed and r["images_per_second"][0] > 0 for r in sources)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["data", "--size", "huge"], "published small"),
        (["data", "--data-dir", "{empty}"], "holds none of cifar10"),
        (["memory", "--images", "0"], r"images \(=0\) must be at least 1"),
        (["rounding", "--detectors", "si-y"], "no detector 'si-y': choose among si-c"),
        (["engines", "--rows", "si-y"], "there is no si-y: choose of si-z; si-z, activation"),
    ],
)
def test_mistakes(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        benchmark.main([word.format(empty=tmp_path) for word in given])


def test_engines(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.0)
    timed = {name: speed.TIMED[name] for name in ("energy", "si-c-forward")}
    monkeypatch.setattr(speed, "TIMED", timed)
    out = tmp_path / "figures.json"
    given = ["--model", "resnet8", "--batch-size", "2", "--repeats", "2", "--out", str(out)]
    benchmark.main(["engines", *given])
    figures = json.loads(out.read_text())
    (model,) = figures["models"]
    assert model["model"] == "resnet8" and figures["versions"]["jax"] and figures["hardware"]
    rows = model["rows"]
    assert [row["name"] for row in rows] == ["forward pass", *timed]
    assert rows[0]["ratio"] == rows[0]["flops_ratio"] == 1
    for row in rows:
        assert row["flops_ratio"] < 1.2  # one forward pass is all that both need
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["seconds_per_image"] > 0
        assert row["memory_bytes"] > 100_000
    assert "a forward pass takes" in capsys.readouterr().out


def test_memory(tmp_path, capsys):
    out = tmp_path / "figures.json"
    given = ["--images", "300", "--detectors", "msp", "--out", str(out)]
    benchmark.main(["memory", *given])
    (row,) = json.loads(out.read_text())["sets"]
    assert row["images"] == 300
    assert 2**25 < row["start_bytes"] <= row["peak_bytes"] < row["start_bytes"] + 2**26
    assert "peak, MiB" in capsys.readouterr().out


def test_rounding():
    """Where two devices share a batch, and where batches are smaller."""
    ways = {"2 devices": (2, 16), "batches of 3": (1, 3)}
    (row,) = rounding.compare(["energy"], 9, ways)
    assert row["name"] == "energy" and list(row) == ["name", *ways, "spread"]
    assert all(0 <= row[way] <= 1e-5 for way in (*ways, "spread"))


def flops(model, function):
    shapes = jax.ShapeDtypeStruct((4, *model.image_shape), np.float32)
    return speed._flops(jax.jit(function).lower(model.variables, shapes).compile())


def test_what_the_engines_compute():
    """In floating-point operations: nothing is differentiated that is not needed."""
    model = speed.random_model("resnet8")
    plain = flops(model, lambda v, x: splitting.forward(model, v, x).logits)

    def cost(name, **options):
        compute = make_detector(name, model, **options).compute
        return flops(model, lambda v, x: compute(Inputs(model, v, x), {})) / plain

    assert cost("gaia-z", engine="activation") <= 1.15
    assert cost("si-z", engine="activation") <= 1.25  # and the bound that later steps need
    assert cost("si-z", engine="gradient") <= 2.2
    assert cost("gaia-a") <= 2.2
    assert cost("si-z", combine="multiply") <= 3.3  # the closed form: two backward passes
    shared = speed.fitted(model, ["knn", "vim", "msp", "react", "gen"], 50)
    assert all(detector.shared_forward for detector in shared.values())
    assert not make_detector("si-z", model).shared_forward
    states = jax.tree.map(jnp.asarray, {name: d.state for name, d in shared.items()})
    assert flops(model, lambda v, x: speed.scores(model, shared, v, x, states)) <= 1.2 * plain


def test_memory_is_bounded_by_the_number_of_taps_at_a_time():
    """One tap at a time needs far less of it than all at once, and gives the same scores."""
    model = speed.random_model("resnet8", (8, 8))
    images = np.random.default_rng(0).integers(0, 256, (16, *model.image_shape), np.uint8)
    memory, scores = {}, {}
    taps = make_detector("si-z", model).settings["taps"][:3]
    for chunk in (1, 3):
        options = {"combine": "multiply", "engine": "general", "taps": taps, "tap_chunk": chunk}
        compute = make_detector("si-z", model, **options).compute

        def run(variables, images, compute=compute):
            return compute(Inputs(model, variables, images), {})["score"]

        program = jax.jit(run).lower(model.variables, images).compile()
        memory[chunk] = program.memory_analysis().temp_size_in_bytes
        scores[chunk] = program(model.variables, images)
    assert memory[1] < 0.7 * memory[3]
    np.testing.assert_allclose(scores[1], scores[3], rtol=1e-6)


@pytest.mark.slow
def test_the_same_in_pytorch():
    """PyTorch's hooks and its loop over the taps run, and give a score to each image."""
    pytest.importorskip("torchax")
    from benchmarks import speed_torch

    runs = [*speed_torch.programs("resnet8", (8, 8), 2).values()]
    runs.append(speed_torch.programs("wrn_16_4", (8, 8), 2)["PyTorch: gaia-z by hooks"])
    for run in runs:
        result = run()
        assert len(result) == 2 and np.isfinite(result).all()
    with pytest.raises(ValueError, match="only CIFAR's ResNets and WRNs"):
        benchmark.main(["engines", "--model", "bit_r50x1", "--against", "torch"])
