"""Import PyTorch checkpoints (and Google's BiT files) into the Flax networks.

The layouts of an architecture's family give every Flax weight its one name in the other framework.
"""

import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from si_jax.checks import check_choice
from si_jax.data.files import check_new, read_arrays
from si_jax.model import Model, checked_size
from si_jax.models import ARCHITECTURES, NORMALISATIONS, architecture
from si_jax.models.family import Layout
from si_jax.networks.framework import Named
from si_jax.weights import checkpoint
from si_jax.weights.convert_names import canonical, flax_name, source_name
from si_jax.weights.saved import check_finite, file_hash

NESTED = ("state_dict", "model", "model_state_dict", "net")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")


@dataclass(frozen=True)
class Converted:
    """A finished conversion: the model as saved, its directory, and the logits of random input."""

    model: Model
    path: Path
    logits: tuple[float, float]
    difference: float

    def __str__(self) -> str:
        model, card = self.model, self.model.card
        low, high = self.logits
        lines = [
            f"model         {model.name}, {model.num_classes} classes",
            f"parameters    {model.num_parameters:,}",
            f"input         {model.input_size[0]}x{model.input_size[1]}",
            f"normalisation {card['normalisation']}: mean {model.mean}, deviation {model.std}",
            f"weights       {len(jax.tree.leaves(model.variables))} arrays, equal after reloading",
            f"logits        of random input from {low:.3g} to {high:.3g},",
            f"              after reloading within {self.difference:.1g}",
        ]
        lines += [f"note          {note}" for note in card["notes"]]
        return "\n".join([*lines, f"saved         {self.path}"])


def convert_checkpoint(
    name: str, source: str | os.PathLike, out: str | os.PathLike, **options: Any
) -> Converted:
    """Convert a published checkpoint into a directory that `si_jax.load_model` reads.

    The directory is read again: its weights must equal the converted ones, and the logits of random
    images must agree but for rounding, as the network is compiled anew. If they do not, nothing is
    left behind.

    Args:
        name: an architecture such as `"resnet34"`; the file must hold that very network.
        source: the file, see `convert_torch`.
        out: checkpoint directory to write; it must not exist.
        options: those of `convert_torch`.

    Raises:
        ValueError: if `out` exists, as `convert_torch`, or if what is read again differs.
        OSError: if a file cannot be written.
    """
    check_new(out)
    model = convert_torch(name, Path(source), **options)
    expected = checkpoint.probe_logits(model)
    path = checkpoint.save_checkpoint(out, model)
    try:
        saved = checkpoint.load_model(path)
        same = jax.tree.map(np.array_equal, dict(saved.variables), dict(model.variables))
        difference = float(np.abs(checkpoint.probe_logits(saved) - expected).max())
        if not all(jax.tree.leaves(same)) or not difference <= 1e-4 * np.abs(expected).max():
            raise ValueError(f"{path} was not the network once read again, and has been removed")
    except BaseException:
        shutil.rmtree(path)
        raise
    return Converted(model, path, (float(expected.min()), float(expected.max())), difference)


def convert_torch(
    name: str,
    source: str | Path | Mapping[str, Any],
    *,
    input_size: tuple[int, int] | None = None,
    normalisation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    part: str | None = None,
) -> Model:
    """Build a model from a published checkpoint.

    The number of classes, block counts, widths and the kinds of stem, block and shortcut are read
    off the names and shapes. A prefix that all names share, such as `module.` or `model.`, is taken
    off, whatever its depth. Counters, and sub-modules of the file that lie outside the network,
    such as a second head, are left out, and a head without bias gets zeros; the card's `"notes"`
    say so, and also what a file does not say and is assumed.

    Args:
        name: an architecture such as `"resnet34"`; the file must hold that very network.
        source: a `.pth`, `.pt`, `.th`, `.tar`, `.safetensors` or (Google's BiT) `.npz` file, or a
            mapping of names to arrays.
        input_size: height and width of the images; None for the architecture's default.
        normalisation: a key of `si_jax.models.NORMALISATIONS`; None for that of CIFAR-10 for a
            CIFAR network with ten classes, else for the architecture's default.
        mean: mean of each channel in [0, 1] units, in place of the normalisation's.
        std: standard deviation of each channel, in place of the normalisation's.
        part: which of several networks in the file: a key such as `"state_dict_ema"`, or a prefix
            of names such as `"encoder_q"`; None for the usual or only one.

    Returns:
        The model, with a card that says the source's name and hash.

    Raises:
        ValueError: if the file cannot be read, or holds another network, with all names that are
            missing, left over or of another shape.
    """
    arch = architecture(name)
    if normalisation is not None:
        check_choice(NORMALISATIONS, normalisation=normalisation)
    if (mean is None) != (std is None):
        raise ValueError("mean and std: give both or neither")
    input_size = checked_size(input_size or arch.input_size)
    notes: list[str] = []
    state, card = load_state(source, part, notes)
    layout, names = _layout(name, state, part, notes)
    shapes = {key: shape_of(state[original]) for key, original in names.items()}
    options = {**arch.options, **layout.infer(shapes)}
    _check_options(name, options)
    head = shapes.get(layout.head)
    num_classes = head[0 if layout.oihw else -1] if head else arch.num_classes
    module = checkpoint.make_module(name, num_classes, options)
    abstract = checkpoint.abstract_variables(module, input_size)
    variables = _fill(abstract, layout, state, names, notes)
    notes += [f"assumed: {text}" for text in layout.assumed(options)]
    if mean is None or std is None:
        if normalisation is None:
            is_cifar10 = num_classes == 10 and arch.normalisation == "cifar100"
            normalisation = "cifar10" if is_cifar10 else arch.normalisation
            notes.append(f"assumed: trained with the mean and deviation of {normalisation}")
        mean, std = NORMALISATIONS[normalisation]
    return checkpoint.build_model(
        name,
        num_classes,
        input_size=input_size,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        variables=variables,
        card={**card, "normalisation": normalisation or "as given", "notes": notes},
        **options,
    )


def _layout(name: str, state: Named, part: str | None, notes: list[str]) -> tuple[Layout, Named]:
    """The layout in which a checkpoint names this family's weights, and the names."""
    family = ARCHITECTURES[name].family
    for layout in family.layouts:
        if (names := canonical(layout, state, part, notes)) is not None:
            return layout, names
    what = f"none of its names (such as {next(iter(state), None)!r}) is a block's"
    for other in {arch.family.title: arch.family for arch in ARCHITECTURES.values()}.values():
        if any(canonical(layout, state, part, []) is not None for layout in other.layouts):
            what = f"its names are a {other.title}'s"
            break
    raise ValueError(f"the checkpoint is not a {name}: {what}, and {name} is a {family.title}")


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose shape is another architecture's."""
    arch = ARCHITECTURES[name]
    different = [k for k, v in arch.options.items() if options[k] != v]
    if not different:
        return
    rows = {n: a for n, a in ARCHITECTURES.items() if a.family.build is arch.family.build}
    same = [n for n, a in rows.items() if a.options.items() <= options.items()]
    has = ", ".join(f"{k} {options[k]}" for k in different)
    expected = ", ".join(f"{k} {arch.options[k]}" for k in different)
    hint = f"convert it as {same[0]!r}" if same else "no architecture here has that shape"
    raise ValueError(f"the checkpoint is not a {name} ({expected}): it has {has}; {hint}")


def _fill(abstract: Any, layout: Layout, state: Named, names: Named, notes: list[str]) -> Any:
    """The tree of `abstract`'s shapes, filled from `state`, or an error that lists every fault."""
    faults: list[str] = []
    arrays, used = [], set()
    head = layout.head.rpartition(layout.separator)[0]
    leaves = jax.tree.leaves_with_path(abstract)
    for path, leaf in leaves:
        ours, key = flax_name(path), source_name(path, layout)
        used.add(key)
        if key in names:
            original = names[key]
            value = to_float32(original, state[original])
            if path[-1].key == "kernel":
                if layout.oihw and value.ndim in (2, 4):  # else in Flax's order already
                    value = value.transpose(*range(2, value.ndim), 1, 0)
                if leaf.ndim == 2 and value.shape[:-2] == (1, 1):  # a 1x1 convolution as the head
                    value = value[0, 0]
            if value.shape != leaf.shape:
                shape = shape_of(state[original])
                faults.append(f"wrong shape: {original} {shape}, for {ours} {leaf.shape}")
            arrays.append(np.ascontiguousarray(value))
        elif ours.endswith("/bias") and key.rpartition(layout.separator)[0] == head:
            notes.append(f"the head has no bias ({key}): zeros are taken")
            arrays.append(np.zeros(leaf.shape, np.float32))
        else:
            faults.append(f"missing: {key} (for {ours} {leaf.shape})")
    outermost = {key: key.partition(layout.separator)[0] for key in names}
    left_over = [key for key in names if key not in used]
    if not faults:  # sub-modules in which the network has no weight at all, are left out
        own = {key.partition(layout.separator)[0] for key in used}
        apart = [key for key in left_over if outermost[key] not in {*own, key}]
        left_over = [key for key in left_over if key not in apart]
        for module, count in Counter(outermost[key] for key in apart).items():
            notes.append(
                f"assumed: {module} ({count} weights) plays no part in the network's logits"
            )
    faults += [f"left over: {names[key]} {shape_of(state[names[key]])}" for key in left_over]
    if faults:
        raise ValueError(
            f"the checkpoint does not fit the network: {len(faults)} faults, where the network has"
            f" {len(leaves)} weights:\n  " + "\n  ".join(faults)
        )
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


# --- files: nothing in them is executed -----------------------------------------------------------


def load_state(source: str | Path | Named, part: str | None, notes: list[str]) -> tuple[dict, dict]:
    """Names and arrays of a checkpoint, and what a card says of it: its source and SHA-256."""
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


def _find_state(value: Any, part: str | None, notes: list[str]) -> Named | None:
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
