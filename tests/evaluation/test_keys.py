"""The key of a stored score: another where a score could change, and the same where none could."""

import dataclasses
import importlib.metadata

import jax.numpy as jnp
import pytest
from flax import linen as nn

import si_jax
from si_jax.detectors import DETECTORS, Method, Plan, make_detector, register_detector
from si_jax.evaluation import store


class Net(nn.Module):
    power: int = 1

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(4)(x.reshape((len(x), -1))))
        return nn.Dense(3, name="head")(x**self.power)


class Documented(nn.Module):
    """The same network, with a docstring and a comment."""

    power: int = 1

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits."""
        flat = x.reshape((len(x), -1))  # the same under another name
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(4)(flat)) ** self.power)


class Dropping(Net):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(4)(x.reshape((len(x), -1))))
        return nn.Dense(3, name="head")(jnp.abs(x) + 1)


@pytest.fixture(scope="module")
def variables():
    import jax

    return jax.jit(Net().init)(jax.random.key(0), jnp.ones((1, 4, 4, 1)))


def facts(module, variables, **changes):
    model = si_jax.Model(
        module, variables, input_size=(4, 4), mean=(0.5,), std=(0.5,), head="head", **changes
    )
    return store.key_of(store.model_facts(model))


def test_what_changes_no_score_changes_no_key(variables):
    assert facts(Net(), variables) == facts(Net(), variables)
    assert facts(Net(), variables) == facts(Documented(), variables)


def test_what_changes_scores_changes_the_key(variables, monkeypatch):
    import jax

    usual = facts(Net(), variables)
    others = [
        facts(Net(power=2), variables),
        facts(Dropping(), variables),  # the same fields and weights, another program
        facts(Net(), jax.tree.map(lambda x: x + 1, variables)),
        facts(Net(), variables, precision="high"),
        facts(Net(), variables, call_kwargs={"train": False}),
        facts(dataclasses.replace(Net(), power=3), variables),
    ]
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0" if name == "jax" else version(name)
    )
    others.append(facts(Net(), variables))
    assert len({usual, *others}) == len(others) + 1


def test_a_methods_version_is_in_the_key(tiny, monkeypatch):
    def key(name, **options):
        return store.key_of(store.detector_facts(make_detector(name, tiny, **options)))

    assert key("energy") == key("energy")
    assert key("energy") == key("energy", temperature=1.0)  # resolved options
    assert key("energy") != key("energy", temperature=2.0)
    before = key("energy")
    raised = dataclasses.replace(DETECTORS["energy"], version=99)
    monkeypatch.setitem(DETECTORS, "energy", raised)
    assert key("energy") != before


def test_nothing_stored_of_a_method_without_a_version_is_used(tiny):
    def build(model):
        return Plan(lambda inputs, state: {"score": inputs.forward.logits.max(-1)})

    register_detector("own", Method(build, "largest logit", "a test"))
    try:
        made = [make_detector("own", tiny) for _ in range(2)]
        assert len({store.key_of(store.detector_facts(one)) for one in made}) == 2
    finally:
        del DETECTORS["own"]
