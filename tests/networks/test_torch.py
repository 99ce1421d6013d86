"""PyTorch networks give PyTorch's numbers, on whole arrays, in many styles."""

import copy
import dataclasses
import sys
import warnings
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import same_network
import torch_styles as styles
from pictures import noise
from torch_networks import last, passed

import si_jax
from si_jax import splitting
from si_jax.decision.export import LOADER, ONNX_LOADER, export_jax, export_onnx
from si_jax.detectors.si import selected_features
from si_jax.integration import max_logit
from si_jax.taps import default_taps, select

torch = pytest.importorskip("torch")
pytest.importorskip("torchax")
pytestmark = pytest.mark.usefixtures("one_device")

IMAGE = {"input_size": styles.SIZE, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
IMAGES = noise(5, styles.SIZE, styles.SIZE, 3)


NO_ZEROS = ("convnext", "vit", "swin")
"""Styles in which no activation switches gradients off."""


@cache
def network_and_model(style):
    network = styles.make(style)
    return network, si_jax.Model(network, **IMAGE)


@cache
def normalised():
    _, model = network_and_model("vgg")
    return np.asarray(model.normalise(jnp.asarray(IMAGES)))


def first():
    """The images with their channels first."""
    return normalised().transpose(0, 3, 1, 2).copy()


def close(found, expected, tolerance=1e-5):
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("style", styles.STYLES)
def test_logits_features_and_gradients_at_the_default_taps_are_pytorchs(style):
    network, model = network_and_model(style)
    taps = select(model)
    network = styles.copied(network)
    logits, features, _, added = passed(network, first(), model.head, taps)
    gradients = torch.autograd.grad(logits.max(1).values.sum(), [added[tap] for tap in taps])
    logits, features = logits.detach().numpy(), features.detach().numpy()

    @jax.jit
    def computed(variables, images):
        linear = splitting.linearise(model, variables, images, taps)
        return linear.out, linear.gradient(max_logit)

    out, found = computed(model.variables, normalised())
    close(out.logits, logits)
    close(out.features, features)
    weights, bias = model.head_weights(model.variables), model.head_bias(model.variables)
    close(out.features @ weights + bias, logits)
    for tap, expected in zip(taps, gradients, strict=True):
        expected = last(network, tap, expected).numpy()
        assert out.outputs[tap].shape == found[tap].shape
        close(found[tap], expected)


@pytest.mark.slow
@pytest.mark.parametrize("style", styles.STYLES)
def test_scores_are_those_of_gradients_that_pytorch_takes(style):
    """S&I's at two taps, whichever engine serves, against hooks in PyTorch."""
    network, model = network_and_model(style)
    given = (styles.copied(network), first(), model.head)
    chosen = np.asarray(selected_features(model.head_weights(model.variables), 0.9))
    taps, (outer,) = select(model)[:: len(select(model)) - 1], default_taps(model, "outer")
    found = si_jax.make_detector("si-a", model, taps=taps).score(IMAGES)
    expected = styles.channel_average(*given, taps, outer, chosen)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    if style in NO_ZEROS:
        with pytest.raises(ValueError, match="counts where gradients vanish"):
            si_jax.make_detector("si-z", model, taps=taps)
        return
    found = si_jax.make_detector("si-z", model, taps=taps).score(IMAGES)
    np.testing.assert_allclose(found, styles.zero_deflation(*given, taps), rtol=1e-6)


def model_of(network, **options):
    return si_jax.Model(network, **{**IMAGE, **options})


def same_logits(network, model, tolerance=1e-5):
    x = torch.from_numpy(first())
    out = copy.deepcopy(network).eval()(x.to(next(network.parameters()).dtype))
    close(model.logits(IMAGES), out.detach().float().numpy(), tolerance)


class Small(torch.nn.Module):
    """What is done to the pooled image before the head, as a test has it."""

    def __init__(self, between=lambda self, x: x, **modules):
        super().__init__()
        self.between, self.head = between, torch.nn.Linear(3, 4)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.head(self.between(self, x.mean((2, 3))))


def test_the_users_module_stays_as_it_is():
    network = styles.make("vgg")
    before = copy.deepcopy(network.state_dict())
    model = model_of(network)
    kept = model.logits(IMAGES)
    assert network.training and all(module.training for module in network.modules())
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    assert not network._forward_hooks and torch.get_default_device() == torch.device("cpu")
    with torch.no_grad():
        for x in network.parameters():
            x.zero_()
    np.testing.assert_array_equal(dataclasses.replace(model).logits(IMAGES), kept)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(model.variables))
    assert "PyTorch Sequential, 1,577 parameters" in repr(model)


def test_taps_are_named_by_paths_and_seen_channels_last():
    _, model = network_and_model("resnet")
    shapes = {call.path: call.shape for call in model.calls}
    assert shapes["layer2/0/downsample/1"] == (2, 2, 12) and shapes["maxpool"] == (4, 4, 6)
    assert select(model, "layer1/0/bn?") == ("layer1/0/bn1", "layer1/0/bn2")
    assert model.head == "fc"
    _, model = network_and_model("odd")
    assert [c.path for c in model.calls if "shared" in c.path] == ["shared", "shared#1"]
    assert network_and_model("bit")[1].head == "head/conv"
    _, model = network_and_model("swin")
    assert {c.path: c.shape for c in model.calls}["2/norm"] == (8, 8, 6)


def test_what_acts_in_place_is_replaced_where_it_acts():
    def between(self, x):
        x = self.bn(x)
        y = x[:, :2]  # a view
        self.relu(y)
        self.relu(x)
        return x + y.sum(1, keepdim=True)

    network = Small(between, bn=torch.nn.BatchNorm1d(3), relu=torch.nn.ReLU(inplace=True))
    model = model_of(network)
    same_logits(network, model)
    args = (model, model.variables, jnp.asarray(normalised()))
    plain = splitting.forward(*args, record=["bn", "relu", "relu#1"]).outputs
    np.testing.assert_array_equal(plain["relu#1"], np.maximum(plain["bn"], 0))
    edited = splitting.forward(*args, edit={"relu#1": lambda x: 0 * x + 2}, record=["bn"])
    np.testing.assert_array_equal(edited.outputs["bn"], plain["bn"])
    np.testing.assert_array_equal(edited.features, np.full((len(IMAGES), 3), 6.0))  # y sees it too


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple = ()


@pytest.mark.parametrize(
    ("wrap", "output"),
    [(lambda x: Output(x), "logits"), (lambda x: {"a": x, "b": None}, "a"), (lambda x: (1, x), 1)],
)
def test_outputs_with_several_entries(wrap, output):
    network = Small()
    network.register_forward_hook(lambda module, args, out: wrap(out))
    model = model_of(network, output=output)
    assert model.num_classes == 4 and model.head == "head"
    with pytest.raises(ValueError, match="give its key or index as output"):
        model_of(network)


def test_half_precision():
    network = styles.make("vit").to(torch.bfloat16)
    model = model_of(network)
    assert model.logits(IMAGES).dtype == np.float32
    same_logits(network, model, 0.1)


def test_what_runs_elsewhere_or_in_another_form_is_told_in_one_sentence():
    network = Small()
    lazy = Small(lambda self, x: self.lazy(x), lazy=torch.nn.LazyLinear(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(torch.nn.Linear(3, 4))
        quantised = torch.ao.quantization.quantize_dynamic(Small(), {torch.nn.Linear})
    cases = [
        ((lazy,), "lazy/weight has no values yet: call the network once on an image"),
        ((Small().to("meta"),), r"head/weight has no values \(device meta\): load the network's"),
        ((scripted,), "is scripted or traced by torch.jit: give the torch.nn.Module that"),
        ((quantised,), "the network is quantised: give the one that it was made of, in floats"),
        ((network, network.state_dict()), "variables must be left out .*load_state_dict"),
        ((Small(lambda self, x: torch.special.airy_ai(x)),), "airy_ai"),
        ((Small(lambda self, x: x * torch.rand_like(x)),), "draws random numbers"),
        ((Small(lambda self, x: x * float(torch.rand((), device="cpu"))),), "random"),
    ]
    for args, said in cases:
        with pytest.raises(ValueError, match=said) as told:
            si_jax.Model(*args, **IMAGE)
        assert "\n" not in told.value.args[0]


def test_missing_torchax_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchax", None)
    with pytest.raises(ValueError, match=r"by torchax.*: pip install \"si-jax\[torch\]\""):
        model_of(Small())


def test_from_fit_to_verdicts_saved_exported_and_explained(tmp_path):
    _, model = network_and_model("resnet")
    images = noise(40, styles.SIZE, styles.SIZE, 3, seed=1)
    detector = si_jax.make_detector("mahalanobis", model).fit(images, np.arange(40) % 5)
    detector.calibrate(images)
    verdicts = detector.predict(IMAGES)
    with pytest.raises(ValueError, match="of a network whose code is not saved with it"):
        si_jax.load_detector(detector.save(tmp_path / "saved"))
    fresh = model_of(styles.STYLES["resnet"]())  # the weights are the saved detector's
    loaded = si_jax.load_detector(tmp_path / "saved", model=fresh)
    np.testing.assert_array_equal(loaded.predict(IMAGES).score, verdicts.score)
    with pytest.raises(ValueError, match="missing: buffers/features/1/running_mean"):
        si_jax.load_detector(tmp_path / "saved", model=network_and_model("vgg")[1])
    assert detector.explain(IMAGES[0]).axes
    space = {}
    exec(LOADER, space)
    run = space["load"](export_jax(detector, tmp_path / "exported", platforms=["cpu"]))
    for count in (1, 5):
        found = run(IMAGES[:count])
        np.testing.assert_allclose(found["score"], verdicts.score[:count], rtol=1e-5)
        np.testing.assert_array_equal(found["is_ood"], verdicts.is_ood[:count])


def test_a_detector_in_onnx(tmp_path):
    pytest.importorskip("jax2onnx", reason="ONNX needs jax2onnx")
    if jax.__version_info__ >= (0, 11):
        pytest.skip("jax2onnx 0.17.1 does not know this JAX")
    detector = si_jax.make_detector("gaia-z", same_network.model("torch"))
    space = {}
    exec(ONNX_LOADER, space)
    run = space["load"](export_onnx(detector, tmp_path / "detector.onnx"))
    for count in (1, 5):
        images = IMAGES[:count, :8, :8]
        np.testing.assert_allclose(run(images)["score"], detector.score(images), rtol=1e-5)
    pooled = si_jax.make_detector("energy", network_and_model("vgg")[1])
    with pytest.raises(ValueError, match=r"'energy' cannot be run once written as ONNX.*max-pools"):
        export_onnx(pooled, tmp_path / "pooled.onnx")
    assert not (tmp_path / "pooled.onnx").exists()
