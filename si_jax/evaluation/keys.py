"""Keys of stored files: what determines a score, and nothing else, as one hash.

A stored score is used again if its key is the same. The key holds the network's weights and its
program, the detector's settings, its method's version and what it has learnt, preprocessing, the
set's content, and the versions of jax and flax. It holds no source file: a change of a comment
makes nothing stale, and a change of a method's scores is marked by the method's version.
"""

import hashlib
import importlib.metadata
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from si_jax import splitting
from si_jax.data.files import json_hash
from si_jax.detectors import Detector
from si_jax.model import Model
from si_jax.weights.saved import weights_hash

FORMAT = 3
"""Raised when the arrays of a score file, or what this module hashes, change their meaning."""


def key_of(facts: Mapping[str, Any]) -> str:
    """Hex hash of what determines a file's content; the versions of jax and flax are added."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax")}
    return json_hash({**facts, "versions": versions, "format": FORMAT})


def detector_facts(detector: Detector) -> dict[str, Any]:
    """What determines a detector's scores beside the network and what it has learnt.

    A method without a version has a key of its own each time, so that nothing stored under it is
    ever taken for current.
    """
    version = detector.version
    return {
        "detector": detector.name,
        "settings": detector.settings,
        "version": uuid.uuid4().hex if version is None else version,
    }


def fit_hash(detector: Detector) -> str:
    """Hex hash of what a detector has learnt; empty for one that learns nothing."""
    return weights_hash(detector.state) if detector.state else ""


def model_facts(model: Model) -> dict[str, Any]:
    """What determines a network's logits and features: its program, its weights, and its input."""
    return {
        "weights": weights_hash(model.variables),
        "program": _program_hash(model),
        "call_kwargs": repr(sorted(model.call_kwargs.items())),
        "head": str(model.head),
        "mean": list(map(float, model.mean)),
        "std": list(map(float, model.std)),
        "precision": model.precision,
        "input_size": list(map(int, model.input_size)),
    }


def _program_hash(model: Model) -> str:
    """Hex hash of what the network computes, as its compiler sees it; its weights aside."""

    def forward(variables, images):
        out = splitting.forward(model, variables, images)
        return out.logits, out.features

    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.variables)
    text = jax.jit(forward).lower(variables, image).as_text()
    return hashlib.sha256(text.encode()).hexdigest()
