"""Import PyTorch checkpoints (and Google's BiT files) into the Flax networks.

The tables of `si_jax.weights.convert_names` give every Flax weight its one name in the other
framework.
What is missing, left over or of another shape is an error that lists everything.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from si_jax.model import Model, checked_size
from si_jax.models import ARCHITECTURES, NORMALISATIONS, architecture
from si_jax.models.bit import BiT
from si_jax.models.resnet import ResNet
from si_jax.models.wide_resnet import WideResNet
from si_jax.weights.checkpoint import abstract_variables, build_model, make_module
from si_jax.weights.convert_files import find_state, load_file, shape_of, to_float32
from si_jax.weights.convert_names import LAYOUTS, Layout, canonical, flax_name, source_name


def convert_torch(
    name: str,
    source: str | Path | Mapping[str, Any],
    *,
    input_size: tuple[int, int] | None = None,
    normalisation: str | None = None,
) -> Model:
    """Build a model from a published checkpoint.

    The number of classes, block counts, widths and the kind of shortcut are read off the shapes.

    Args:
        name: an architecture such as `"resnet34"`; the file must hold that very network.
        source: a `.pth`, `.pt`, `.th`, `.tar`, `.safetensors` or (Google's BiT) `.npz` file, or a
            mapping of names to arrays.
        input_size: height and width of the images; None for the architecture's default.
        normalisation: a key of `si_jax.models.NORMALISATIONS`; None for that of CIFAR-10 for a
            CIFAR network with ten classes, else for the architecture's default.

    Returns:
        The model, with a card that tells the source's name and hash.

    Raises:
        ValueError: if the file cannot be read, or holds another network, with all names that are
            missing, left over or of another shape.
    """
    arch = architecture(name)
    if normalisation is not None and normalisation not in NORMALISATIONS:
        raise ValueError(
            f"normalisation (={normalisation!r}) must be one of {', '.join(NORMALISATIONS)}"
        )
    input_size = checked_size(input_size or arch.input_size)
    if isinstance(source, Mapping):
        state, card = find_state(source), {"source": "a mapping of arrays"}
        if state is None:
            raise ValueError("the mapping holds no state dict (names and their arrays)")
    else:
        state, card = load_file(source)
    layout = _layout(name, state)
    originals = canonical(layout, state)
    state = {k: state[original] for k, original in originals.items()}

    _check_family(name, layout, state)
    options, num_classes = _infer(arch, layout, state)
    _check_options(name, {**arch.options, **options})
    options = {**arch.options, **options}
    if normalisation is None:
        is_cifar10 = num_classes == 10 and arch.normalisation == "cifar100"
        normalisation = "cifar10" if is_cifar10 else arch.normalisation
    abstract = abstract_variables(make_module(name, num_classes, options), input_size)
    variables = _fill(abstract, LAYOUTS[layout], state, originals)
    mean, std = NORMALISATIONS[normalisation]
    return build_model(
        name,
        num_classes,
        input_size=input_size,
        mean=mean,
        std=std,
        variables=variables,
        card={**card, "normalisation": normalisation},
        **options,
    )


def source_names(model: Model, layout: str) -> dict[str, str]:
    """Flax name -> name in a checkpoint of that layout, for every weight of `model`."""
    return {
        flax_name(path): source_name(path, LAYOUTS[layout])
        for path, _ in jax.tree.leaves_with_path(dict(model.variables))
    }


def _layout(name: str, state: Mapping[str, Any]) -> str:
    build = ARCHITECTURES[name].build
    if build is BiT:
        return "bit_npz" if any(k.startswith("resnet/") for k in state) else "bit"
    return {ResNet: "resnet", WideResNet: "wide_resnet"}[build]


def _check_family(name: str, layout: str, state: Mapping[str, Any]) -> None:
    """Refuse a checkpoint in which no name is that of a block of this family."""
    if any(re.match(LAYOUTS[layout].block, k) for k in state):
        return
    other = [x.network for x in LAYOUTS.values() if any(re.match(x.block, k) for k in state)]
    if other and other[0] != LAYOUTS[layout].network:
        found = f"its names are a {other[0]}'s"
    else:
        found = f"none of its names (such as {next(iter(state), None)!r}) is a block's"
    raise ValueError(
        f"the checkpoint is not a {name}: {found}, and {name} is a {LAYOUTS[layout].network}"
    )


def _infer(arch, layout: str, state: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Options that the names and shapes of a checkpoint tell, and the number of classes."""

    def shape(key):
        return shape_of(state.get(key))

    def last(pattern):
        return max((int(m[1]) for k in state if (m := re.match(pattern, k))), default=-1)

    options: dict[str, Any] = {}
    if layout == "resnet":
        head = "linear.weight"
        stages = last(r"layer(\d+)\.\d+\.conv1\.weight$")
        if stages > 0:
            convs = [f"layer{s}.0.conv1.weight" for s in range(1, stages + 1)]
            options["blocks"] = tuple(
                last(rf"layer{s}\.(\d+)\.conv1\.weight$") + 1 for s in range(1, stages + 1)
            )
            options["widths"] = tuple(shape(k)[0] if len(shape(k)) == 4 else 0 for k in convs)
            projected = any(".shortcut." in k for k in state)
            options["shortcut"] = "conv" if projected else "pad"
    elif layout == "wide_resnet":
        head = "fc.weight"
        blocks = last(r"block1\.layer\.(\d+)\.conv1\.weight$") + 1
        width = shape("block1.layer.0.conv1.weight")
        if blocks and len(width) == 4:
            options = {"depth": 6 * blocks + 4, "widen": max(1, width[0] // 16)}
    else:
        npz = layout == "bit_npz"
        head = "resnet/head/conv2d/kernel" if npz else "head.conv.weight"
        unit = r"resnet/block{}/unit(\d+)/" if npz else r"body\.block{}\.unit(\d+)\."
        units = tuple(last(unit.format(b)) for b in range(1, 5))
        root = "resnet/root_block/standardized_conv2d/kernel" if npz else "root.conv.weight"
        if min(units) > 0 and len(shape(root)) == 4:
            options = {"units": units, "width_factor": max(1, shape(root)[3 if npz else 0] // 64)}
    classes = shape(head)
    if not classes:
        return options, arch.num_classes
    return options, classes[-1] if layout == "bit_npz" else classes[0]


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose shape is another architecture's."""
    arch = ARCHITECTURES[name]
    if all(options[k] == v for k, v in arch.options.items()):
        return
    same = [
        other
        for other, a in ARCHITECTURES.items()
        if a.build is arch.build and all(options[k] == v for k, v in a.options.items())
    ]
    found = ", ".join(f"{k} {options[k]}" for k in arch.options)
    expected = ", ".join(f"{k} {v}" for k, v in arch.options.items())
    hint = f"convert it as {same[0]!r}" if same else "no architecture here has that shape"
    raise ValueError(f"the checkpoint is not a {name} ({expected}): it has {found}; {hint}")


def _fill(
    abstract: Any, layout: Layout, state: Mapping[str, Any], originals: Mapping[str, str]
) -> Any:
    """The tree of `abstract`'s shapes, filled from `state`; every fault is listed."""
    faults: list[str] = []
    arrays, used = [], set()
    paths = jax.tree.leaves_with_path(abstract)
    for path, leaf in paths:
        ours, key = flax_name(path), source_name(path, layout)
        used.add(key)
        if key not in state:
            faults.append(f"missing: {key} (for {ours} {leaf.shape})")
            continue
        value = to_float32(originals[key], state[key])
        if path[-1].key == "kernel":
            value = _to_kernel(value, leaf.ndim, layout.oihw)
        if value.shape != leaf.shape:
            shape = shape_of(state[key])
            faults.append(f"wrong shape: {originals[key]} {shape}, for {ours} {leaf.shape}")
        arrays.append(np.ascontiguousarray(value))
    faults += [f"left over: {originals[k]} {shape_of(state[k])}" for k in state if k not in used]
    if faults:
        raise ValueError(
            f"the checkpoint does not fit the network: {len(faults)} faults, where the network has"
            f" {len(paths)} weights:\n  " + "\n  ".join(faults)
        )
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def _to_kernel(value: np.ndarray, ndim: int, oihw: bool) -> np.ndarray:
    """A kernel in Flax's order: (height, width, in, out), or (in, out) for a linear layer."""
    if value.ndim == 4 and oihw:
        value = value.transpose(2, 3, 1, 0)
    elif value.ndim == 2 and oihw:
        value = value.T
    if ndim == 2 and value.ndim == 4 and value.shape[:2] == (1, 1):
        value = value[0, 0]  # a 1x1 convolution that serves as the linear head
    return value
