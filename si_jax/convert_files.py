"""Read checkpoint files of other frameworks without executing anything in them."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".tar", ".bin", ".ckpt")
NESTED = ("state_dict", "model", "model_state_dict", "net")


def load_file(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Names and arrays of a checkpoint file, and what a card says of it.

    Args:
        path: a `.pth`, `.pt`, `.th`, `.tar`, `.safetensors` or `.npz` file.

    Returns:
        The state dict, bare (taken out from under `state_dict`, `model` or `model_state_dict`), and
        the source file's name and SHA-256.

    Raises:
        ValueError: if there is no such file, it is no checkpoint, or what reads it is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the path of a checkpoint file")
    suffix = path.suffix.lower()
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    readers |= dict.fromkeys(TORCH_SUFFIXES, _read_torch)
    if suffix not in readers:
        raise ValueError(
            f"{path}: a checkpoint's name must end in one of {', '.join(sorted(readers))}"
        )
    state = readers[suffix](path)
    while isinstance(state, Mapping) and (inner := [k for k in NESTED if _is_state(state.get(k))]):
        state = state[inner[0]]
    if not _is_state(state):
        raise ValueError(f"{path} holds no state dict (a mapping of names to tensors)")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(state), {"source": path.name, "source_sha256": digest}


def to_float32(key: str, value: Any) -> np.ndarray:
    """One weight as a finite float32 array.

    Raises:
        ValueError: if it is no array of floating-point numbers, or some are not finite.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    array = np.asarray(value)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ValueError(f"{key} is of type {array.dtype}; weights must be floating-point")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise ValueError(
            f"{key} holds NaN or infinite values ({bad} of {array.size}): the file is unusable"
        )
    return array


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) for k in value)
        and (any(hasattr(v, "shape") for v in value.values()) or _is_nested(value))
    )


def _is_nested(value: Mapping[str, Any]) -> bool:
    return any(isinstance(value.get(k), Mapping) for k in NESTED)


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"reading {path.name} needs PyTorch: install it with pip install 'si-jax[torch]'"
        ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
        OSError,
        UnicodeDecodeError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else ""
        raise ValueError(
            f"{path} is no PyTorch checkpoint of plain tensors, or is damaged or cut short"
            f" ({type(error).__name__}: {reason})"
        ) from None


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file as load
    except ImportError:
        raise ValueError(
            f"reading {path.name} needs safetensors: install it with pip install 'si-jax[torch]'"
        ) from None
    try:
        return load(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no safetensors file, or is damaged ({error})") from None


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npz file of arrays, or is damaged ({error})") from None
