"""Read checkpoint files of other frameworks without executing anything in them."""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.files import read_arrays
from si_jax.weights.saved import check_finite, file_hash

NESTED = ("state_dict", "model", "model_state_dict", "net")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")


def load_state(
    source: str | Path | Mapping[str, Any], part: str | None, notes: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Names and arrays of a checkpoint, and what a card says of it: the source's name and SHA-256.

    `part` chooses among several state dicts, by its key or by a prefix of names. `notes` gets a
    sentence if the weights are an average, or there is one beside them.
    """
    if isinstance(source, Mapping):
        if (state := _find_state(source, part, notes)) is None:
            raise ValueError("the mapping holds no state dict (names and their arrays)")
        return dict(state), {"source": "a mapping of arrays"}
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the path of a checkpoint file")
    if (read := READERS.get(path.suffix.lower())) is None:
        raise ValueError(
            f"{path}: a checkpoint's name must end in one of {', '.join(sorted(READERS))}"
        )
    if (state := _find_state(read(path), part, notes)) is None:
        raise ValueError(f"{path} holds no state dict (names and their tensors)")
    return dict(state), {"source": path.name, "source_sha256": file_hash(path)}


def _find_state(value: Any, part: str | None, notes: list[str]) -> Mapping[str, Any] | None:
    """The state dict that `value` is, or has under a usual name; None if there is none."""
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        return None
    if part is not None:
        if (inner := _find_state(value.get(part), None, notes)) is not None:
            return inner
        state = _find_state(value, None, notes)
        if state is not None and not any(f".{part}." in f".{name}" for name in state):
            raise ValueError(
                f"part (={part!r}) is no key in the file, which has {', '.join(list(value)[:8])},"
                " and no prefix of the names"
            )
        return state
    averaged = [key for key in AVERAGED if _find_state(value.get(key), None, []) is not None]
    for key in NESTED:
        if (inner := _find_state(value.get(key), None, notes)) is not None:
            notes += [f"the file holds averaged weights as well: part={k!r}" for k in averaged[:1]]
            return inner
    if averaged:
        notes.append(f"the averaged weights under {averaged[0]!r} are taken")
        return _find_state(value[averaged[0]], None, notes)
    return value if any(hasattr(v, "shape") for v in value.values()) else None


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of an array or tensor; () for anything else."""
    return tuple(getattr(value, "shape", ()))


def to_float32(key: str, value: Any) -> np.ndarray:
    """One weight, of NumPy or PyTorch, as a finite float32 array."""
    if not hasattr(value, "dtype"):
        raise ValueError(f"{key} is of type {type(value).__name__}; weights must be arrays")
    kind = value.dtype
    if hasattr(value, "detach") and kind.is_floating_point:
        try:
            value = value.detach().float().cpu().numpy()
        except (TypeError, RuntimeError):  # sparse, or without data
            raise ValueError(
                f"{key} is a {value.layout} tensor on device {value.device}; weights must be dense"
                " and hold their values"
            ) from None
    dtype = getattr(value, "dtype", None)
    if getattr(dtype, "kind", "") != "f" and getattr(dtype, "name", "") != "bfloat16":
        raise ValueError(f"{key} is of type {kind}; weights must be floating-point")
    with np.errstate(over="ignore"):
        array = np.asarray(value).astype(np.float32)
    check_finite(key, array, "the file is unusable")
    return array


# What a reader raises for a damaged file depends on the byte that is damaged: besides its own
# errors zlib.error, struct.error, KeyError, TypeError, NotImplementedError and others. All of them
# mean that the file is unusable.


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f'reading {path.name} needs PyTorch: pip install "si-jax[torch]", or save the weights'
            ' as .safetensors, which pip install "si-jax[safetensors]" reads'
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:
        text = str(error)
    # PyTorch's own words recommend weights_only=False, which would run what the file says.
    if match := re.search(r"(?i)unsupported (?:global|class)\S* (?:GLOBAL )?([\w.]+)", text):
        raise ValueError(
            f"{path} holds a Python object ({match[1]}), which is not read for safety: where the"
            " file was made, load it and save the state dict alone, as"
            " torch.save(network.state_dict(), NEW)"
        )
    if re.search(r"(?i)legacy \.tar format", text):
        raise ValueError(
            f"{path} is in PyTorch's old tar format, which is not read for safety: where the file"
            " was made, load it and save it again with a newer PyTorch"
        )
    if "TorchScript" in text:
        raise ValueError(f"{path} is a TorchScript program: save its state dict instead")
    raise ValueError(f"{path} is no PyTorch checkpoint, or is damaged or cut short")


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.numpy import load_file as load
    except ImportError:
        raise ValueError(
            f'reading {path.name} needs safetensors: pip install "si-jax[safetensors]"'
        ) from None
    try:
        return load(path)
    except PermissionError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is no safetensors file, is damaged or cut short, or has tensors of a type that"
            f" NumPy does not have ({type(error).__name__}: {error})"
        ) from None


READERS: dict[str, Callable[[Path], Any]] = {
    ".npz": read_arrays,
    ".safetensors": _read_safetensors,
    **dict.fromkeys((".pth", ".pt", ".th", ".tar", ".bin", ".ckpt"), _read_torch),
}
"""Ending of a file's name -> what reads it."""
