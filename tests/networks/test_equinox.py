"""Equinox: what its own transformations hide, or do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import si_jax
from si_jax import activation, splitting
from si_jax.taps import select

eqx = pytest.importorskip("equinox")

pytestmark = pytest.mark.usefixtures("quick_to_compile")
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
SIZE = {"input_size": 4, "mean": (0.5,) * 3, "std": (0.25,) * 3}


class Block(eqx.Module):
    lin: eqx.nn.Linear
    norm: eqx.nn.LayerNorm

    def __init__(self, key):
        self.lin, self.norm = eqx.nn.Linear(3, 3, key=key), eqx.nn.LayerNorm(3)

    def __call__(self, x):
        return jax.nn.relu(self.norm(self.lin(x)))


def over_tokens(block, x):
    return jax.vmap(block)(jnp.stack([x, x])).mean(0)


def over_a_scan(block, x):
    arrays, rest = eqx.partition(block, eqx.is_array)
    stacked = jax.tree.map(lambda x: x[None], arrays)
    return jax.lax.scan(lambda x, p: (eqx.combine(p, rest)(x), None), x, stacked)[0]


LIFTS = {
    "plain": lambda block, x: block(x),
    "jit": lambda block, x: eqx.filter_jit(block)(x),
    "vmap": over_tokens,
    "filter_vmap": lambda block, x: eqx.filter_vmap(block)(jnp.stack([x, x])).mean(0),
    "checkpoint": lambda block, x: eqx.filter_checkpoint(block)(x),
    "scan": over_a_scan,
}


class Net(eqx.Module):
    blocks: list
    head: eqx.nn.Linear
    lift: str = eqx.field(static=True)

    def __init__(self, lift):
        keys = jax.random.split(jax.random.key(0), 3)
        self.blocks = [Block(key) for key in keys[:2]]
        self.head = eqx.nn.Linear(3, 4, key=keys[2])
        self.lift = lift

    def __call__(self, x):
        x = x.mean((1, 2))
        for block in self.blocks:
            x = LIFTS[self.lift](block, x)
        return self.head(x)


@pytest.mark.parametrize("lift", LIFTS)
def test_blocks_are_reached_or_it_is_said_that_they_are_not(lift):
    model, plain = (si_jax.Model(Net(how), **SIZE) for how in (lift, "plain"))
    images = model.normalise(jnp.asarray(IMAGES))
    expected = splitting.forward(plain, plain.variables, images)
    out = splitting.forward(model, model.variables, images)
    np.testing.assert_allclose(out.logits, expected.logits, rtol=1e-5, atol=1e-6)
    if lift in ("checkpoint", "scan"):
        with pytest.raises(ValueError, match="inside a transformation of the network's own"):
            select(model)
        return
    taps = ("blocks/0/norm", "blocks/1/norm")
    assert select(model) == taps and not activation.without_activation(model, taps)
    edit = {taps[0]: lambda z: 0 * z - 1}
    edited = [splitting.forward(m, m.variables, images, edit=edit).logits for m in (model, plain)]
    np.testing.assert_allclose(*edited, rtol=1e-5, atol=1e-6)
    assert not np.allclose(edited[0], out.logits)


def test_tokens_and_feature_maps_have_their_channels_last():
    class Both(eqx.Module):
        conv: eqx.nn.Conv2d
        up: eqx.nn.Linear
        head: eqx.nn.Linear

        def __init__(self, key):
            self.conv = eqx.nn.Conv2d(3, 5, 1, key=key)
            self.up = eqx.nn.Linear(5, 7, key=key)
            self.head = eqx.nn.Linear(7, 4, key=key)

        def __call__(self, x, *, key):
            tokens = self.conv(x).reshape(5, -1).T
            return self.head(jax.nn.gelu(jax.vmap(self.up)(tokens)).mean(0))

    net = Both(jax.random.key(0))
    model = si_jax.Model(net, **SIZE, call_kwargs={"key": None})
    assert {c.path: c.shape for c in model.calls} == {
        "conv": (4, 4, 5),
        "up": (16, 7),
        "head": (4,),
    }
    images = model.normalise(jnp.asarray(IMAGES))
    out = splitting.forward(model, model.variables, images, record=["conv", "up"]).outputs
    conv, up = net.conv, net.up
    expected = images @ conv.weight[:, :, 0, 0].T + conv.bias[:, 0, 0]
    np.testing.assert_allclose(out["conv"], expected, rtol=1e-5, atol=1e-5)
    expected = expected.reshape(6, 16, 5) @ up.weight.T + up.bias
    np.testing.assert_allclose(out["up"], expected, rtol=1e-5, atol=1e-5)
    assert activation.taps_with_activation(model, ("conv", "up")) == ("up",)


def test_the_users_module_stays_as_it_is_and_mistakes_are_told(tmp_path):
    class Dropping(eqx.Module):
        drop: eqx.nn.Dropout
        head: eqx.nn.Linear

        def __call__(self, x, key=None):
            return self.head(self.drop(x.mean((1, 2)), key=key))

    net = Dropping(eqx.nn.Dropout(0.5), eqx.nn.Linear(3, 4, key=jax.random.key(0)))
    model = si_jax.Model(net, **SIZE)
    assert not net.drop.inference and "Equinox" in repr(model)
    assert "Equinox Dropping," in repr(model)
    detector = si_jax.make_detector("knn", model, k=2).fit(IMAGES)
    loaded = si_jax.load_detector(detector.save(tmp_path / "saved"), model=model)
    np.testing.assert_array_equal(loaded.score(IMAGES), detector.score(IMAGES))
    with pytest.raises(ValueError, match=r"variables must be the state .* eqx.nn.make_with_state"):
        si_jax.Model(net, {"params": {}}, **SIZE)
    with pytest.raises(ValueError, match=r"\(=Dropping\) is a class"):
        si_jax.Model(Dropping, **SIZE)

    class Stateful(Dropping):
        norm: eqx.nn.BatchNorm

        def __call__(self, x, state):
            x, state = self.norm(x, state)
            return self.head(x.mean((1, 2))), state

    net, _ = eqx.nn.make_with_state(Stateful)(
        net.drop, net.head, eqx.nn.BatchNorm(3, "b", mode="ema")
    )
    with pytest.raises(ValueError, match="missing 1 required positional argument: 'state'"):
        si_jax.Model(net, **SIZE)
