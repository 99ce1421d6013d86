"""Out-of-distribution detection in JAX: Splitting & Integrating, GAIA and their peers."""

from si_jax.detectors import DETECTORS, Detector, make_detector
from si_jax.detectors.saving import load_detector
from si_jax.evaluation import metrics
from si_jax.model import Model
from si_jax.weights.checkpoint import build_model, load_model, save_checkpoint, with_new_head
from si_jax.weights.convert import convert_torch

__version__ = "0.1.0"
__all__ = [
    "DETECTORS",
    "Detector",
    "Model",
    "build_model",
    "convert_torch",
    "load_detector",
    "load_model",
    "make_detector",
    "metrics",
    "save_checkpoint",
    "with_new_head",
]
