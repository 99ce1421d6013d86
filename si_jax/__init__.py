"""Out-of-distribution detection in JAX: Splitting & Integrating, GAIA and their peers."""

from si_jax import metrics
from si_jax.checkpoint import build_model, load_model, save_checkpoint, with_new_head
from si_jax.convert import convert_torch
from si_jax.detectors import DETECTORS, Detector, make_detector
from si_jax.model import Model

__version__ = "0.1.0"
__all__ = [
    "DETECTORS",
    "Detector",
    "Model",
    "build_model",
    "convert_torch",
    "load_model",
    "make_detector",
    "metrics",
    "save_checkpoint",
    "with_new_head",
]
