"""What is said of a network that cannot be served, in each framework."""

import jax.numpy as jnp
import numpy as np
import pytest
import same_network as same
from pictures import noise

import si_jax

pytestmark = pytest.mark.usefixtures("quick_to_compile")
IMAGES = noise(6)


@pytest.fixture(params=same.NETWORKS)
def framework(request):
    return request.param


def refused(network, **options):
    """The one sentence that a network is refused with."""
    with pytest.raises(ValueError) as caught:
        si_jax.Model(*network, **{**same.IMAGE, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_network_without_a_linear_head(framework):
    network = same.made(framework, "none")
    model = si_jax.Model(*network, **same.IMAGE)
    assert model.head is None
    assert np.isfinite(si_jax.make_detector("energy", model).score(IMAGES)).all()
    for name in ("react", "knn", "gaia-a"):
        with pytest.raises(ValueError, match=r"the network has no head: .* give Model head="):
            si_jax.make_detector(name, model)
    with pytest.raises(ValueError, match=r"the network has no head: .*bn"):
        model.features(IMAGES)
    model = si_jax.Model(*network, **same.IMAGE, head="bn")
    with pytest.raises(ValueError, match=r"head \(='bn'\) is not linear: the network's logits"):
        si_jax.make_detector("react", model, threshold=1.0)


def test_a_wrong_head(framework):
    network = same.made(framework)
    told = refused(network, head="haed")
    assert told.startswith("head (='haed') is not called by the network; its sub-modules and taps")
    assert "bn" in told and told.endswith("head")
    told = refused(network, head="bn")
    assert told.startswith("head (='bn') does not give the logits; what does is the linear layer ")
    assert told.endswith("head")


def test_a_head_that_is_called_twice(framework):
    network = same.made(framework, "twice")
    head = "params/head" if framework == "function" else "head"
    for options in ({}, {"head": head}, {"head": f"{head}#1"}):
        told = refused(network, **options)
        assert "is called more than once, so its input is not one set of features: give" in told


RNG = r"^the network draws random numbers \(rng\) at inference, so that scores would depend"
CHANCE = {
    "linen": 'needs PRNG for "dropout".*it draws random .*: switch that off by call_kwargs',
    "nnx": RNG,
    "keras": RNG,
    "equinox": "it draws random numbers, as dropout does: switch that off by call_kwargs",
    "torch": RNG,
}


@pytest.mark.parametrize("framework", CHANCE)
def test_a_module_that_draws_random_numbers(framework):
    with pytest.raises(ValueError, match=CHANCE[framework]):
        si_jax.Model(*same.made(framework, "chance"), **same.IMAGE)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mean": None}, r"mean \(=None\) must be one number for each channel"),
        ({"std": None}, r"std \(=None\) must be one number for each channel"),
        ({"mean": "half"}, r"mean \(='half'\) must be one number for each channel"),
        ({"mean": 0.5}, r"must have one value per channel each"),
        ({"mean": 0.5, "std": 0.5}, "do input_size, the number of channels in mean"),
        ({"input_size": None}, r"input_size \(=None\) must be a height and a width"),
        ({"input_size": (8, 0)}, r"input_size \(=\(8, 0\)\) must be a height and a width"),
        ({"output": "nothing"}, r"output \(='nothing'\) is no entry of what the network returns"),
        ({"call_kwargs": {"train": True}}, "unexpected keyword argument 'train'"),
        ({"variables": [1]}, "variables must be left out for a Flax NNX module"),
    ],
)
def test_arguments_that_do_not_fit(unchecked, given, said):
    with pytest.raises(ValueError, match=said):
        si_jax.Model(*same.made("nnx"), **{**same.IMAGE, **given})


def test_what_is_no_network_or_lacks_its_weights(unchecked):
    module, variables = same.made("linen")
    for given, said in {
        (module, None): r"variables \(=None\) must be given for a Flax Linen module",
        (module, 3): r"variables \(a int\) must be a mapping",
        (type(module), None): "is a class: give an instance of it",
        ("resnet", None): r"network \(a builtins.str\) is of no framework that is served",
    }.items():
        with pytest.raises(ValueError, match=said):
            si_jax.Model(*given, **same.IMAGE)
    with pytest.raises(ValueError, match="where one entry is the logits, give its key or index"):
        si_jax.Model(lambda variables, x: {"logits": x.mean((1, 2))}, variables, **same.IMAGE)


def test_keras_without_weights_or_on_another_backend(monkeypatch):
    keras = pytest.importorskip("keras")
    with pytest.raises(ValueError, match="no weights yet: call it once on an image"):
        si_jax.Model(keras.Sequential([keras.layers.Dense(3)]), **same.IMAGE)
    net = same.made("keras")
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match=r"backend 'torch', .* KERAS_BACKEND=jax before"):
        si_jax.Model(*net, **same.IMAGE)


def test_weights_of_half_precision(framework):
    network = same.made(framework, dtype=jnp.bfloat16)
    if framework == "equinox":  # whose convolutions do not promote
        told = refused(network)
        assert "images enter as float32: convert each array of weights to it, by astype" in told
        return
    model = si_jax.Model(*network, **same.IMAGE)
    scores = si_jax.make_detector("energy", model).score(IMAGES)
    assert scores.dtype == np.float32 and np.isfinite(scores).all()
    assert model.head_weights(model.variables).dtype == np.float32
