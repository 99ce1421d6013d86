"""Every detector keeps what all detectors promise, on small networks of several kinds."""

import dataclasses
import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import si_jax
from si_jax import splitting, testing
from si_jax.detectors import DETECTORS, Detector, Method, Plan, default_options
from si_jax.detectors.base import NEEDS
from si_jax.detectors.fitting import Batches
from si_jax.evaluation.scoring import Scorer
from si_jax.testing import random_images

OPTIONS = {"knn": {"k": 5}, "lts": {"percentile": 60}, "gram": {"orders": 3}}
SEPARATE = ("gaia-z", "si-c", "gaia-a", "odin", "rankfeat")
"""Those that do not only need one forward pass, as far as the other kinds of networks go."""

NOT_LINEAR = r"head \(='head'\) is not linear: .* logits are not its input times weights"

pytestmark = pytest.mark.usefixtures("quick_to_compile")
FEW = ("energy", "gradnorm", "react", "ash-s", "knn", "mahalanobis", "vim", "kl-matching")


@pytest.fixture(scope="module")
def models():
    return {kind: testing.small_model(kind) for kind in testing.NETWORKS}


def build(name, model, **options):
    return si_jax.make_detector(name, model, **OPTIONS.get(name, {}), **options)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.usefixtures("unchecked", "debug_nans", "strict_promotion")
def test_battery(name, models, request):
    """Those that share a pass are put on two devices, and in other batches, all at once below."""
    alone = not build(name, models["plain"]).shared_forward
    if not alone:
        request.getfixturevalue("one_device")
    testing.check_detector(
        lambda model, **options: build(name, model, **options),
        models["plain"],
        invariance=alone,
        rtol=1e-5 if name.startswith(("si-", "gaia-")) else 1e-4,
    )


def fitted(model, names):
    images = random_images(model, 60, seed=2)
    labels = np.arange(60) % model.num_classes
    return {name: build(name, model).fit(images, labels) for name in names}


def forward_only(model):
    return [name for name in DETECTORS if build(name, model).shared_forward]


def test_forward_only_detectors_share_a_pass_and_are_alike_in_any_batches(models, monkeypatch):
    """In any order, on any devices, and with a fit in other batches."""
    passes, forward, devices = [], splitting.forward, jax.local_devices()
    monkeypatch.setattr(splitting, "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    model = models["plain"]
    detectors = fitted(model, forward_only(model))
    images, order = random_images(model, 13, seed=1), np.random.default_rng(0).permutation(13)
    scorer = Scorer(detectors)
    passes.clear()
    scores = scorer(images)
    assert len(passes) == 1 and len(devices) == 2
    permuted = scorer(images[order])
    monkeypatch.setattr(jax, "local_devices", lambda: devices[:1])
    for detector in detectors.values():
        detector.batch_size = 1
    alone = Scorer(detectors)(images)
    known, labels = random_images(model, 60, seed=2), np.arange(60) % model.num_classes
    pieces = [slice(*edges) for edges in itertools.pairwise([0, 3, 40, 60])]
    batches = Batches(lambda: ((known[p], labels[p]) for p in pieces), model, keep=True)
    for detector in detectors.values():
        detector.fit_batches(batches)
    again = Scorer(detectors)(images)
    for name in detectors:
        expected = scores[name]["score"]
        tolerance = 1e-4 * max(np.ptp(expected), np.abs(expected).max())
        np.testing.assert_allclose(permuted[name]["score"], expected[order], atol=tolerance)
        np.testing.assert_allclose(alone[name]["score"], expected, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(again[name]["score"], expected, atol=10 * tolerance)


@pytest.mark.parametrize("kind", ["bfloat16", "no ReLU", "no bias", "two classes"])
def test_scores_on_other_networks_are_finite_float32_and_vary(kind, models):
    model = models[kind]
    separate = {"bfloat16": SEPARATE, "no ReLU": ["si-c", "gaia-a"]}.get(kind, ["si-c"])
    names = forward_only(model) if kind == "bfloat16" else FEW
    detectors = fitted(model, [*names, *separate])
    results = Scorer(detectors)(random_images(model, 13, seed=1))
    for name, score in ((name, arrays["score"]) for name, arrays in results.items()):
        assert (score.dtype, score.shape) == (np.float32, (13,)), name
        assert np.isfinite(score).all() and np.ptp(score) > 0, name


def test_rematerialised_layers_give_the_same_scores(models):
    plain, remat = models["plain"], models["remat"]
    assert jax.tree.structure(plain.variables) == jax.tree.structure(remat.variables)
    images = random_images(plain, 5, seed=1)
    for name in ("si-z", "gaia-a", "si-c-forward"):
        scores = [fitted(model, [name])[name].score(images) for model in (plain, remat)]
        np.testing.assert_allclose(*scores, rtol=1e-4)


def test_half_precision_scores_those_of_the_networks_own_logits(models):
    model = models["bfloat16"]
    images = random_images(model, 40, seed=1)
    logits = model.logits(images)
    assert logits.dtype == model.features(images).dtype == np.float32
    probabilities = np.asarray(jax.nn.softmax(logits.astype(np.float64) / 1000))
    for name, expected in (
        ("max-logit", logits.max(axis=1)),
        ("energy", np.asarray(jax.nn.logsumexp(logits, axis=1))),
        ("odin", probabilities.max(axis=1)),
    ):
        options = {"step": 0.0} if name == "odin" else {}
        scores = si_jax.make_detector(name, model, **options).score(images)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        assert len(np.unique(scores)) >= 0.9 * len(np.unique(np.float32(expected)))


@pytest.mark.parametrize("name", DETECTORS)
def test_needs_are_what_the_table_says(name, models):
    """Told by networks in which the thing is missing."""
    method = DETECTORS[name]
    assert method.summary and method.reference  # of the docstring's first line
    needs = method.needs
    assert set(needs) <= set(NEEDS)
    detector = build(name, models["plain"])
    assert ("fit" in needs) == detector.needs_fit
    if "labels" in needs:
        with pytest.raises(ValueError, match="labels are needed"):
            detector.fit(random_images(detector.model, 60, seed=2))
    if "linear head" in ", ".join(needs):
        with pytest.raises(ValueError, match=NOT_LINEAR):
            build(name, headed())
    else:
        build(name, headed())


class Headed(nn.Module):
    """A `tanh` behind the head, so that the head is not the map from features to logits."""

    layer: str = "squashed"

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), strides=2, name="conv")(x)
        x = nn.relu(nn.GroupNorm(2, name="norm")(x))
        if self.layer == "positions":
            return nn.Dense(4, name="head")(x).mean(axis=(1, 2))
        features = x.mean(axis=(1, 2))
        if self.layer == "hidden":
            return nn.Dense(5, name="last")(nn.relu(nn.Dense(12, name="head")(features)))
        logits = nn.Dense(4, name="head")(features)
        return jnp.tanh(logits) if self.layer == "squashed" else logits.astype(jnp.float32)


@functools.cache
def headed(layer="squashed"):
    variables = Headed(layer).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return si_jax.Model(Headed(layer), variables, (8, 8), (0.5,) * 3, (0.25,) * 3, head="head")


@pytest.mark.parametrize(
    ("layer", "names", "message"),
    [
        ("hidden", ("react", "dice", "vim", "ash-s", "si-c"), NOT_LINEAR),
        ("positions", ("react", "si-c", "knn"), "takes 4x4x8 numbers an image, not a vector"),
    ],
)
def test_a_head_that_is_not_the_map_is_refused_where_it_is_needed(layer, names, message):
    model = headed(layer)
    for name in names:
        with pytest.raises(ValueError, match=message):
            build(name, model)
    images = random_images(model, 12, seed=1)
    expected = jax.nn.logsumexp(model.logits(images), axis=1)
    np.testing.assert_allclose(build("energy", model).score(images), expected, rtol=1e-5)


def test_a_head_behind_which_only_the_dtype_changes_is_the_map_without_a_run(monkeypatch):
    model = headed("cast")
    monkeypatch.setattr(type(model), "run", None)
    si_jax.make_detector("ash-s", model, percentile=50)


def test_vim_refuses_negative_logits(models):
    """Less on every logit changes no prediction, but turned ViM's scores round."""
    model = models["plain"]
    variables = jax.tree.map(np.copy, model.variables)
    variables["params"]["head"]["bias"] -= 60
    lowered = dataclasses.replace(model, variables=variables)
    with pytest.raises(ValueError, match="mean largest logit of the fitting images is -"):
        si_jax.make_detector("vim", lowered).fit(random_images(model, 60, seed=2))


@pytest.mark.parametrize("name", ["msp", "gaia-z", "si-c", "knn"])
def test_what_comes_of_a_broken_forward_pass_is_never_a_score(name, models):
    broken = testing.small_model()
    detector = fitted(models["plain"], [name])[name]
    broken.variables["params"]["block1"]["conv"]["kernel"][0, 0, 0, 0] = np.nan
    again = build(name, broken)
    again._set_state(detector.state)
    with pytest.raises(ValueError, match=rf"'{name}' gives 12 of 12 images.* NaN or infinite"):
        again.score(random_images(broken, 12, seed=1))
    if again.needs_fit:
        with pytest.raises(ValueError, match="NaN or infinite"):
            again.fit(random_images(broken, 60, seed=2))


@pytest.mark.parametrize("name", ["gaia-z", "si-z"])
def test_zero_deflation_without_relu_is_refused_at_once(name, models):
    model = models["no ReLU"]
    told = rf"{name} counts where .* no ReLU lies behind block1/norm, block2/norm: .* use si-c"
    with pytest.raises(ValueError, match=told):
        si_jax.make_detector(name, model)


def test_the_same_score_for_all_images_is_told(models):
    model = models["no ReLU"]
    images = random_images(model, 12, seed=1)
    plan = Plan(lambda inputs, state: {"score": 0 * inputs.forward.logits[:, 0]})
    detector = si_jax.Detector("constant", model, plan, 64)
    with pytest.warns(UserWarning, match="'constant' gives all of 12 different images the same"):
        detector.score(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.score(images[:1].repeat(12, axis=0))  # which are the same image
        si_jax.make_detector("energy", model).score(images)


def test_states_of_other_options_or_networks_are_refused(models):
    plain = models["plain"]
    two = fitted(models["two classes"], ["mahalanobis"])["mahalanobis"]
    build("mahalanobis", plain).load_state(two.state)  # class means are of any number
    state = fitted(plain, ["vim"])["vim"].state
    for name, wrong, message in (
        ("knn", state, r"no state of detector 'knn' .* holds rest, origin"),
        ("vim", {"rest": np.zeros((9, 2), np.float32)}, "no state of detector 'vim'"),
        ("energy", state, "'energy' learns nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            build(name, plain).load_state(wrong)


def test_images_of_another_dtype_than_the_fit_had_need_a_scale(models):
    model = models["plain"]
    images = random_images(model, 12, seed=1)
    detector = fitted(model, ["mahalanobis"])["mahalanobis"]
    floats = ((images / 255 - model.mean) / model.std).astype(np.float32)
    with pytest.raises(ValueError, match=r"dtype float32\) are of another kind .*uint8.* scale="):
        detector.score(floats)
    found = detector.score(floats, scale="normalised")
    np.testing.assert_allclose(found, detector.score(images), rtol=1e-3)


def mean_feature(model, *, power: float = 1.0):
    def compute(inputs, state):
        return {"score": jnp.mean(inputs.forward.features, axis=-1) ** power}

    return Plan(compute)


def test_a_registered_detector_is_like_any_other(models):
    model = models["plain"]
    si_jax.register_detector("mean-feature", Method(mean_feature, "", "mine", version=3))
    testing.check_detector("mean-feature", model)
    detector = si_jax.make_detector("mean-feature", model, power=2)
    images = random_images(model, 5, seed=1)
    expected = model.features(images).mean(axis=1) ** 2
    np.testing.assert_allclose(detector.score(images), expected, rtol=1e-4)
    assert (detector.version, detector.settings) == (3, {"power": 2.0})
    with pytest.raises(ValueError, match="does not take the option size; it takes power"):
        si_jax.make_detector("mean-feature", model, size=2)
    si_jax.register_detector("unversioned", Method(mean_feature, "", "mine"))
    assert si_jax.make_detector("unversioned", model).version is None
    assert DETECTORS["unversioned"].needs == ()


def test_what_cannot_be_registered():
    def register(name="mean-feature", build=mean_feature):
        si_jax.register_detector(name, Method(build, "mean feature", "mine"))

    with pytest.raises(ValueError, match=r"name \(='msp'\) is taken"):
        register("msp")
    for name in ("", "Mine", "a b", "../x", "a--b", "-a"):
        with pytest.raises(ValueError, match="must be lower-case letters"):
            register(name)
    for wrong in (lambda model, size: None, lambda model, *, size: None):
        with pytest.raises(ValueError, match="'size' must be a keyword with a default"):
            register(build=wrong)
    assert "mean-feature" not in DETECTORS
    assert default_options("msp") == {}


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda logits: logits.max(axis=-1) * 0, "all images have the score 0"),
        (lambda logits: logits, "one score an image"),
        (lambda logits: logits[:, 0] - logits[:, 0].mean(), "must be the same"),
        (lambda logits: logits[:, 0] + jnp.arange(len(logits)), "must (be|have) the same"),
        (lambda logits: jnp.log(logits[:, 0] - 1e6), "NaN or infinite"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_the_battery_finds_what_is_wrong(compute, message, models):
    def make(model, batch_size=64):
        plan = Plan(lambda inputs, state: {"score": compute(inputs.forward.logits)})
        return Detector("wrong", model, plan, batch_size)

    with pytest.raises((AssertionError, ValueError), match=message):
        testing.check_detector(make, models["plain"])


def test_progress_is_told_on_stderr_and_can_be_turned_off(models, monkeypatch, capsys):
    monkeypatch.setattr("si_jax.batching.DELAY", 0)
    images = random_images(models["plain"], 20, seed=1)
    detector = build("knn", models["plain"], batch_size=8)
    detector.fit(images, progress=False).score(images, progress=False)
    assert capsys.readouterr().err == ""
    detector.fit(images).score(images)
    told = capsys.readouterr().err
    assert "knn: fitting" in told and "knn: scoring" in told and "20/20" in told
