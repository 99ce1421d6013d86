"""Detectors in the first saved form: variables by number, and a hash for each part."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from si_jax.data.files import json_hash, read_json
from si_jax.model import Model
from si_jax.weights.checkpoint import abstract_variables, build_model
from si_jax.weights.saved import SUMS, read_arrays, weights_hash


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The card and the arrays of a detector in the first form, compared with their hashes."""
    path = directory / "detector.json"
    try:
        content = read_json(path)
        hashes = content.pop("sha256")
        noted = hashes.pop("json")
        if content["format"] != 1 or json_hash({**content, "sha256": hashes}) != noted:
            raise ValueError("it does not have its own hash")
        arrays = read_arrays(directory / "arrays")
        for part, expected in hashes.items():
            if weights_hash(arrays.get(part, {})) != expected:
                raise ValueError(f"its {part} do not have their hash")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{directory} is damaged or was edited: it has no file {SUMS}, and is no detector of an"
            f" older version ({type(error).__name__}: {error})"
        ) from None
    return content | {"precision": content["model"]["precision"]}, arrays


def network(facts: Mapping[str, Any], arrays: Mapping[str, Any], given: Model | None) -> Model:
    """The network with the saved weights; `given` is it, where its code is not this library's."""
    like = given
    if like is None:
        card = facts["card"]
        like = build_model(
            facts["architecture"], card["num_classes"], variables={}, card=card, **card["options"]
        )
    variables = like.variables or abstract_variables(like.module, tuple(facts["input_size"]))
    rows = [
        [jax.tree_util.keystr(path), list(np.shape(leaf)), str(leaf.dtype)]
        for path, leaf in jax.tree.leaves_with_path(variables)
    ]
    if rows != facts["variables"]:
        others = [
            f"{n} {shape} {kind}"
            for n, shape, kind in facts["variables"]
            if [n, shape, kind] not in rows
        ]
        raise ValueError(
            "the model is not the one that the detector was saved with, which has"
            f" {', '.join(others[:5]) or 'its variables in another order'}"
        )
    leaves = [arrays[key] for key in sorted(arrays)]
    saved: dict[str, Any] = {key: tuple(facts[key]) for key in ("input_size", "mean", "std")}
    saved["variables"] = jax.tree.unflatten(jax.tree.structure(variables), leaves)
    return dataclasses.replace(like, precision=facts["precision"], **saved)
