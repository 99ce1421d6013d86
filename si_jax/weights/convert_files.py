"""Read checkpoint files of other frameworks without executing anything in them."""

import hashlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.data.files import check_members

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".tar", ".bin", ".ckpt")
NESTED = ("state_dict", "model", "model_state_dict", "net")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")


def load_file(
    path: str | Path, part: str | None = None, notes: list[str] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Names and arrays of a checkpoint file, and what a card says of it.

    Args:
        path: a `.pth`, `.pt`, `.th`, `.tar`, `.safetensors` or `.npz` file.
        part: see `find_state`.
        notes: see `find_state`.

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
    state = find_state(readers[suffix](path), part, notes)
    if state is None:
        raise ValueError(f"{path} holds no state dict (names and their tensors)")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return dict(state), {"source": path.name, "source_sha256": digest}


def find_state(
    value: Any, part: str | None = None, notes: list[str] | None = None
) -> Mapping[str, Any] | None:
    """The state dict that `value` is, or has under a usual name; None if there is none.

    Args:
        value: what a file holds.
        part: a key under which the state dict lies, to choose among several.
        notes: gets a sentence if the weights are an average, or there is one beside them.

    Raises:
        ValueError: if `part` is neither a key nor a prefix of the names.
    """
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        return None
    notes = [] if notes is None else notes
    if part is not None:
        if (inner := find_state(value.get(part), None, notes)) is not None:
            return inner
        state = find_state(value, None, notes)
        if state is not None and not any(f".{part}." in f".{name}" for name in state):
            raise ValueError(
                f"part (={part!r}) is no key in the file, which has {', '.join(list(value)[:8])},"
                " and no prefix of the names"
            )
        return state
    averaged = [key for key in AVERAGED if find_state(value.get(key)) is not None]
    for key in NESTED:
        if (inner := find_state(value.get(key), None, notes)) is not None:
            notes += [f"the file holds averaged weights as well: part={k!r}" for k in averaged[:1]]
            return inner
    if averaged:
        notes.append(f"the averaged weights under {averaged[0]!r} are taken")
        return find_state(value[averaged[0]], None, notes)
    return value if any(hasattr(v, "shape") for v in value.values()) else None


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of an array or tensor; () for anything else."""
    return tuple(getattr(value, "shape", ()))


def to_float32(key: str, value: Any) -> np.ndarray:
    """One weight as a finite float32 array.

    Raises:
        ValueError: if it is no array of floating-point numbers, or some are not finite.
    """
    if not hasattr(value, "dtype"):
        raise ValueError(f"{key} is of type {type(value).__name__}; weights must be arrays")
    if hasattr(value, "detach"):
        value = _from_torch(key, value.detach())
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


def _from_torch(key: str, tensor: Any) -> np.ndarray:
    if not tensor.is_floating_point():
        raise ValueError(f"{key} is of type {tensor.dtype}; weights must be floating-point")
    try:
        return tensor.float().cpu().numpy()
    except (TypeError, RuntimeError):  # sparse, or without data
        raise ValueError(
            f"{key} is a {tensor.layout} tensor on device {tensor.device}; weights must be dense"
            " and hold their values"
        ) from None


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


def _read_npz(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file, or is cut short")
    try:
        with path.open("rb") as binary, zipfile.ZipFile(binary) as archive:
            check_members(binary, archive)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:
        raise ValueError(
            f"{path} is damaged, or holds something else than arrays of numbers"
            f" ({type(error).__name__})"
        ) from None
