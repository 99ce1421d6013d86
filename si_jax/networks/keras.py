"""Keras 3 on the JAX backend: `stateless_call`, with the calls of layers intercepted."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from si_jax.networks.framework import Framework, Head, Visit, first_positional
from si_jax.networks.interception import intercepted

NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
)


def prepare(network: keras.Model, variables: Any) -> tuple[keras.Model, Mapping[str, Any]]:
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
            "params": {k: v.value for k, v in _named(network.trainable_variables)},
            "state": {k: v.value for k, v in _named(network.non_trainable_variables)},
        }
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError("variables must be left out for a Keras model, which holds them itself")
    return network, variables


def run(
    network: keras.Model,
    variables: Mapping[str, Any],
    images: Any,
    kwargs: Mapping[str, Any],
    visit: Visit,
) -> Any:
    """Call the model with `variables` and with `visit` around each layer's call."""
    inside: list[str] = []

    def seam(layer, call, args, kwargs):
        if layer is network:
            return call(*args, **kwargs)
        path = "/".join([*inside, layer.name])
        call, args = first_positional(call, args, kwargs)

        def inner(*args):
            inside.append(layer.name)
            try:
                return call(*args)
            finally:
                inside.pop()

        return visit(path, layer, inner, args)

    def values(kind, owned):
        return [variables[kind][name] for name, _ in _named(owned)]

    with intercepted([keras.layers.Layer], seam):
        out, _ = network.stateless_call(
            values("params", network.trainable_variables),
            values("state", network.non_trainable_variables),
            images,
            **{"training": False, **kwargs},
        )
    return out


def head(network: keras.Model, variables: Mapping[str, Any], path: str) -> Head | None:
    """The weights of the `Dense` layer at a path.

    Raises:
        ValueError: if the layer applies an activation, such as softmax, to the logits.
    """
    layer = dict(_layers(network, "")).get(path)
    if not isinstance(layer, keras.layers.Dense):
        return None
    if layer.activation is not keras.activations.linear:
        name = getattr(layer.activation, "__name__", layer.activation)
        raise ValueError(
            f"head (={path!r}) applies {name} to its logits, which scores need as they are: build"
            " the model with classifier_activation=None, or set the layer's activation to"
            " keras.activations.linear"
        )
    arrays = {
        id(variable): variables[kind][key]
        for kind, owned in (
            ("params", network.trainable_variables),
            ("state", network.non_trainable_variables),
        )
        for key, variable in _named(owned)
    }
    return arrays[id(layer.kernel)], arrays[id(layer.bias)] if layer.use_bias else None


def _named(variables: list[Any]) -> list[tuple[str, Any]]:
    """Variables by their paths; a path that comes again is numbered."""
    counts: Counter[str] = Counter()
    named = []
    for variable in variables:
        count = counts[variable.path]
        counts[variable.path] += 1
        named.append((f"{variable.path}#{count}" if count else variable.path, variable))
    return named


def _layers(layer: Any, inside: str) -> Iterator[tuple[str, Any]]:
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        yield f"{inside}{inner.name}", inner
        yield from _layers(inner, f"{inside}{inner.name}/")


FRAMEWORK = Framework(
    name="Keras",
    prepare=prepare,
    run=run,
    is_norm=lambda layer: isinstance(layer, NORMS),
    is_linear=lambda layer: isinstance(layer, keras.layers.Dense),
    head=head,
    linear_layer="keras.layers.Dense",
)
