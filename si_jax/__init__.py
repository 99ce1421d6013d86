"""Out-of-distribution detection in JAX: Splitting & Integrating, GAIA and their peers.

The public names are imported when they are first used, so that `import si_jax` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from si_jax import data as data
    from si_jax.benchmarking import evaluate as evaluate
    from si_jax.benchmarking import evaluate_benchmark as evaluate_benchmark
    from si_jax.benchmarking import find_sets as find_sets
    from si_jax.decision.drift import monitor as monitor
    from si_jax.decision.predictor import Predictor as Predictor
    from si_jax.detectors import DETECTORS as DETECTORS
    from si_jax.detectors import Detector as Detector
    from si_jax.detectors import make_detector as make_detector
    from si_jax.detectors import register_detector as register_detector
    from si_jax.detectors.loading import load_detector as load_detector
    from si_jax.evaluation import metrics as metrics
    from si_jax.evaluation.tuning import tune_on_benchmark as tune_on_benchmark
    from si_jax.model import Model as Model
    from si_jax.networks.framework import register_framework as register_framework
    from si_jax.networks.function import tap as tap
    from si_jax.networks.zero_shot import zero_shot as zero_shot
    from si_jax.training.train_checkpoint import train_checkpoint as train_checkpoint
    from si_jax.weights.checkpoint import build_model as build_model
    from si_jax.weights.checkpoint import load_model as load_model
    from si_jax.weights.checkpoint import save_checkpoint as save_checkpoint
    from si_jax.weights.checkpoint import with_new_head as with_new_head
    from si_jax.weights.convert import convert_checkpoint as convert_checkpoint
    from si_jax.weights.convert import convert_torch as convert_torch
    from si_jax.weights.torch_modules import torch_model as torch_model

__version__ = "0.1.0"
__docformat__ = "google"  # of the docstrings, for pdoc

_PUBLIC = {
    "DETECTORS": "si_jax.detectors",
    "Detector": "si_jax.detectors",
    "Model": "si_jax.model",
    "Predictor": "si_jax.decision.predictor",
    "build_model": "si_jax.weights.checkpoint",
    "convert_checkpoint": "si_jax.weights.convert",
    "convert_torch": "si_jax.weights.convert",
    "data": "si_jax.data",
    "evaluate": "si_jax.benchmarking",
    "evaluate_benchmark": "si_jax.benchmarking",
    "find_sets": "si_jax.benchmarking",
    "load_detector": "si_jax.detectors.loading",
    "load_model": "si_jax.weights.checkpoint",
    "make_detector": "si_jax.detectors",
    "metrics": "si_jax.evaluation.metrics",
    "monitor": "si_jax.decision.drift",
    "register_detector": "si_jax.detectors",
    "register_framework": "si_jax.networks.framework",
    "save_checkpoint": "si_jax.weights.checkpoint",
    "tap": "si_jax.networks.function",
    "torch_model": "si_jax.weights.torch_modules",
    "train_checkpoint": "si_jax.training.train_checkpoint",
    "tune_on_benchmark": "si_jax.evaluation.tuning",
    "with_new_head": "si_jax.weights.checkpoint",
    "zero_shot": "si_jax.networks.zero_shot",
}
"""Public name -> the module that holds it, or is it."""

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    value = getattr(module, name, module)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, "__version__"])
