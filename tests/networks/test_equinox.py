"""Equinox: what its own transformations hide, or do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import same_network as same
from pictures import noise
from small_networks import CONSTANTS

import si_jax
from si_jax import activation, splitting
from si_jax.taps import select

eqx = pytest.importorskip("equinox")

pytestmark = pytest.mark.usefixtures("quick_to_compile")
IMAGES = noise(6, 4, 4, 3)
SIZE = {"input_size": 4, **CONSTANTS}


class Block(eqx.Module):
    lin: eqx.nn.Linear
    norm: eqx.nn.LayerNorm

    def __call__(self, x):
        return jax.nn.relu(self.norm(self.lin(x)))


def over_a_scan(block, x):
    arrays, rest = eqx.partition(block, eqx.is_array)
    stacked = jax.tree.map(lambda x: x[None], arrays)
    return jax.lax.scan(lambda x, p: (eqx.combine(p, rest)(x), None), x, stacked)[0]


LIFTS = {
    "plain": lambda block, x: block(x),
    "jit": lambda block, x: eqx.filter_jit(block)(x),
    "vmap": lambda block, x: jax.vmap(block)(jnp.stack([x, x])).mean(0),
    "filter_vmap": lambda block, x: eqx.filter_vmap(block)(jnp.stack([x, x])).mean(0),
    "checkpoint": lambda block, x: eqx.filter_checkpoint(block)(x),
    "scan": over_a_scan,
}


def linear(inputs, outputs, seed=0):
    return eqx.nn.Linear(inputs, outputs, key=jax.random.key(seed))


class Net(eqx.Module):
    blocks: list
    head: eqx.nn.Linear
    lift: str = eqx.field(static=True)

    def __init__(self, lift):
        self.blocks = [Block(linear(3, 3, seed), eqx.nn.LayerNorm(3)) for seed in (0, 1)]
        self.head, self.lift = linear(3, 4), lift

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

        def __call__(self, x, *, key):
            tokens = self.conv(x).reshape(5, -1).T
            return self.head(jax.nn.gelu(jax.vmap(self.up)(tokens)).mean(0))

    net = Both(eqx.nn.Conv2d(3, 5, 1, key=jax.random.key(0)), linear(5, 7), linear(7, 4))
    model = si_jax.Model(net, **SIZE, call_kwargs={"key": None})
    shapes = {call.path: call.shape for call in model.calls}
    assert shapes == {"conv": (4, 4, 5), "up": (16, 7), "head": (4,)}
    images = model.normalise(jnp.asarray(IMAGES))
    out = splitting.forward(model, model.variables, images, record=["conv", "up"]).outputs
    conv, up = net.conv, net.up
    expected = images @ conv.weight[:, :, 0, 0].T + conv.bias[:, 0, 0]
    np.testing.assert_allclose(out["conv"], expected, rtol=1e-5, atol=1e-5)
    expected = expected.reshape(6, 16, 5) @ up.weight.T + up.bias
    np.testing.assert_allclose(out["up"], expected, rtol=1e-5, atol=1e-5)
    assert activation.taps_with_activation(model, ("conv", "up")) == ("up",)


def test_the_users_module_stays_as_it_is_and_mistakes_are_told():
    net, state = same.made("equinox")
    model = si_jax.Model(net, state, **same.IMAGE)
    assert not net.dropout.inference and "Equinox Net," in repr(model)
    with pytest.raises(ValueError, match=r"variables must be the state .* eqx.nn.make_with_state"):
        si_jax.Model(net, {"params": {}}, **same.IMAGE)
    with pytest.raises(ValueError, match="missing 1 required positional argument: 'state'"):
        si_jax.Model(net, **same.IMAGE)
