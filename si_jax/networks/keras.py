"""Keras 3 on the JAX backend: `stateless_call`, with the calls of layers intercepted."""

from contextvars import ContextVar
from functools import partial
from typing import Any

import keras

from si_jax.networks import framework
from si_jax.networks.framework import Framework, Named, Visit, holding, is_a

NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)

PREACTIVATION = "preactivation"
"""Under a layer that applies its activation itself: the tap of what enters that."""

_inside: ContextVar[str] = ContextVar("inside", default="")  # path of the layer that is called


def prepare(network: keras.Model, variables: Any) -> tuple[keras.Model, Named]:
    """The model as it is, and its variables by their paths."""
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Keras runs on the backend {keras.backend.backend()!r}, but si_jax needs 'jax': set"
            " the environment variable KERAS_BACKEND=jax before Keras is imported"
        )
    if not network.built or not network.variables:
        raise ValueError(
            "the Keras model has no weights yet: call it once on an image, or load its weights"
        )
    if variables is None:
        variables = {
            kind: {path: variable.value for path, variable in owned.items()}
            for kind, owned in _owned(network).items()
        }
    framework.check_left_out(variables, "Keras model")
    return network, variables


def run(network: keras.Model, variables: Named, images: Any, kwargs: Named, visit: Visit) -> Any:
    """Call the model with `variables` and with `visit` around each layer's call."""
    twins: list[keras.Layer] = []  # layers that show what enters their activation

    def seam(layer, call, args, kwargs):
        if layer is network or any(layer is twin for twin in twins):
            return call(*args, **kwargs)
        path = f"{_inside.get()}{layer.name}"
        activation = vars(layer).get("activation")  # of other Keras operations too
        is_alone = isinstance(layer, keras.layers.Activation)
        if callable(activation) and activation is not keras.activations.linear and not is_alone:
            shown = partial(visit, f"{path}/{PREACTIVATION}", activation)
            call = _with_activation(layer, shown)
            twins.append(call)
        call, args = framework.first_positional(call, args, kwargs)
        return visit(path, layer, holding(_inside, f"{path}/")(call), args)

    owned = _owned(network)
    params, state = ([variables[kind][path] for path in owned[kind]] for kind in owned)
    with framework.intercepted([keras.layers.Layer], seam), holding(_inside, ""):
        out, after = network.stateless_call(params, state, images, **{"training": False, **kwargs})
    seeds = [path.rpartition("/")[2].startswith("seed_generator_state") for path in owned["state"]]
    if any(a is not b for seed, a, b in zip(seeds, state, after, strict=True) if seed):
        raise framework.StochasticNetworkError
    return out


def _owned(network: keras.Model) -> dict[str, dict[str, Any]]:
    """Trained variables and the others, by their paths, numbered where one comes again."""
    kinds = {"params": network.trainable_variables, "state": network.non_trainable_variables}
    owned = {}
    for kind, variables in kinds.items():
        numbered = framework.numbering()
        owned[kind] = {numbered(variable.path): variable for variable in variables}
    return owned


def _with_activation(layer: keras.Layer, shown: Any) -> keras.Layer:
    """A layer of the same variables that shows what enters its activation."""
    twin = object.__new__(type(layer))
    activation = layer.activation
    entering = {"activation": lambda x: activation(shown(lambda x: x, (x,)))}
    vars(twin).update({**vars(layer), **entering})
    return twin


FRAMEWORK = Framework(name="Keras", prepare=prepare, run=run, is_norm=is_a(NORMS))
