"""A classifier of any image encoder and the embeddings of class names."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from si_jax.networks.framework import Framework, Named, Visit, framework_of

HEAD = "class_names"
"""Path of the head: what it takes are the image features, divided by their norm."""


@dataclass(frozen=True)
class ZeroShot:
    """An encoder under the class names' embeddings, which are None once among the variables."""

    encoder: Any
    weights: Float[Array, "features classes"] | None


def zero_shot(image_features: Any, text_embeddings: Any, *, scale: float = 100.0) -> ZeroShot:
    """A classifier of an image encoder and the embeddings of class names, as CLIP and SigLIP are.

    Its logits are `scale` times the cosines of an image's features with the classes' embeddings
    (Radford et al., ICML 2021, section 3.1.2). It is a network as any other, to be given to
    `si_jax.Model`, so that every detector serves it; its features are the encoder's, divided by
    their norm.

    Args:
        image_features: a network of any framework, or a function (variables, images), that maps
            (batch, height, width, channels) images to (batch, features).
        text_embeddings: (classes, features) of one text for each class, or means of several texts'.
        scale: what the cosines are multiplied by; CLIP's learnt 100.

    Returns:
        The network; the encoder's variables are the `variables` of `si_jax.Model`.

    Raises:
        ValueError: if the embeddings are not one vector for each class, or the scale is not
            positive.
    """
    texts = jnp.asarray(text_embeddings, jnp.float32)
    if texts.ndim != 2 or not bool(jnp.all(jnp.linalg.norm(texts, axis=-1) > 0)):
        raise ValueError(
            f"text_embeddings (shape {texts.shape}) must be one vector for each class, (classes,"
            " features), none of them zero"
        )
    if not scale > 0:
        raise ValueError(f"scale (={scale}) must be above 0")
    return ZeroShot(image_features, scale * _unit(texts).T)


def prepare(network: ZeroShot, variables: Any) -> tuple[ZeroShot, Named]:
    """The encoder as its framework prepares it; its variables, and the head's."""
    weights = network.weights
    if weights is None:  # prepared before
        weights, variables = variables[HEAD], variables["encoder"]
    encoder, held = framework_of(network.encoder).prepare(network.encoder, variables)
    return ZeroShot(encoder, None), {"encoder": held, HEAD: weights}


def run(network: ZeroShot, variables: Named, images: Any, kwargs: Named, visit: Visit) -> Any:
    """Run the encoder with `visit` around its sub-modules' calls, and around the head's."""
    inner = framework_of(network.encoder)
    features = inner.run(network.encoder, variables["encoder"], images, kwargs, visit)
    weights = variables[HEAD]
    if getattr(features, "ndim", None) != 2 or features.shape[-1] != len(weights):
        raise ValueError(
            f"image_features gives an array of shape {getattr(features, 'shape', None)}, but the"
            f" text embeddings need (batch, {len(weights)})"
        )
    return visit(HEAD, network, lambda u: u @ weights, (_unit(features.astype(jnp.float32)),))


def _unit(x: Float[Array, "n features"]) -> Float[Array, "n features"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-10)


def _is_norm(module: Any) -> bool:
    return not isinstance(module, ZeroShot) and framework_of(module).is_norm(module)


def _unbound(module: Any) -> Any:
    return module if isinstance(module, ZeroShot) else framework_of(module).unbound(module)


def _title(network: ZeroShot) -> str:
    return f"zero-shot, {framework_of(network.encoder).title(network.encoder)}"


FRAMEWORK = Framework(
    name="zero-shot", prepare=prepare, run=run, is_norm=_is_norm, unbound=_unbound, title=_title
)
