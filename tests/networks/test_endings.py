"""What is refused at once, since it is no logits, whatever the weights are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import si_jax
from si_jax.networks.head import output_activation as ending


def by_hand(x):
    return jnp.exp(x) / jnp.exp(x).sum(axis=-1, keepdims=True)


ENDS = {
    "softmax": (jax.nn.softmax, "softmax"),
    "log_softmax": (jax.nn.log_softmax, "log-softmax"),
    "log of softmax": (lambda x: jnp.log(jax.nn.softmax(x)), "log-softmax"),
    "under jit": (jax.jit(jax.nn.softmax), "softmax"),
    "by hand": (by_hand, "softmax"),
    "in half precision": (
        lambda x: jax.nn.softmax(x.astype(jnp.bfloat16)).astype(jnp.float32),
        "softmax",
    ),
    "sigmoid": (jax.nn.sigmoid, "sigmoid"),
    "logits": (lambda x: x, None),
    "scaled": (lambda x: 20 * x, None),
    "centred": (lambda x: x - x.mean(axis=-1, keepdims=True), None),
    "over a norm": (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), None),
}


@pytest.mark.parametrize("name", ENDS)
def test_endings_are_told(name):
    function, expected = ENDS[name]
    closed = jax.make_jaxpr(lambda x: function(x @ jnp.ones((3, 4))))(jnp.ones((2, 3)))
    assert ending(closed.jaxpr, closed.jaxpr.outvars[0]) == expected


class Ending(nn.Module):
    last: str
    classes: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.classes, name="head")(x.mean((1, 2)))
        return getattr(nn, self.last)(x) if self.last else x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Ending("softmax"), r"returns probabilities \(a softmax\).* what enters the softmax"),
        (Ending("log_softmax"), r"log-probabilities \(a log-softmax\)"),
        (Ending("sigmoid"), r"probabilities \(a sigmoid\), not logits"),
        (Ending("", classes=1), r"gives one logit.* returns \(0, logit\) instead"),
    ],
    ids=str,
)
def test_they_are_refused_with_the_model(module, message):
    variables = module.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match=message):
        si_jax.Model(module, variables, input_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
