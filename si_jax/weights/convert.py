"""Import PyTorch checkpoints (and Google's BiT files) into the Flax networks.

The layouts of an architecture's family give every Flax weight its one name in the other framework.
What is missing, left over or of another shape is an error that lists everything. What a file cannot
tell, and what in it is not needed, is noted in the model's card.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from si_jax.checks import check_choice
from si_jax.model import Model, checked_size
from si_jax.models import ARCHITECTURES, NORMALISATIONS, architecture
from si_jax.models.family import Layout
from si_jax.weights.checkpoint import abstract_variables, build_model, make_module
from si_jax.weights.convert_files import find_state, load_file, shape_of
from si_jax.weights.convert_fill import fill
from si_jax.weights.convert_names import Names, canonical


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
    say so, and also what a file cannot tell and is assumed.

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
        The model, with a card that tells the source's name and hash.

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
    if isinstance(source, Mapping):
        state, card = find_state(source, part, notes), {"source": "a mapping of arrays"}
        if state is None:
            raise ValueError("the mapping holds no state dict (names and their arrays)")
    else:
        state, card = load_file(source, part, notes)
    layout, names = _layout(name, state, part, notes)
    shapes = {k: shape_of(state[original]) for k, original in names.items()}
    options = layout.infer(shapes)
    _check_options(name, {**arch.options, **options})
    num_classes = _num_classes(shapes.get(layout.head, ()), layout) or arch.num_classes
    abstract = abstract_variables(make_module(name, num_classes, options), input_size)
    variables = fill(abstract, layout, state, names, notes)
    options = {**arch.options, **options}
    notes += [f"assumed: {text}" for text in layout.assumed(options)]
    if mean is None or std is None:
        if normalisation is None:
            is_cifar10 = num_classes == 10 and arch.normalisation == "cifar100"
            normalisation = "cifar10" if is_cifar10 else arch.normalisation
            notes.append(f"assumed: trained with the mean and deviation of {normalisation}")
        mean, std = NORMALISATIONS[normalisation]
    return build_model(
        name,
        num_classes,
        input_size=input_size,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        variables=variables,
        card={**card, "normalisation": normalisation or "as given", "notes": notes},
        **options,
    )


def _layout(
    name: str, state: Mapping[str, Any], part: str | None, notes: list[str]
) -> tuple[Layout, Names]:
    """The layout in which the checkpoint names this family's weights, and the names.

    Raises:
        ValueError: if no name is that of a block of this family.
    """
    family = ARCHITECTURES[name].family
    for layout in family.layouts:
        names = canonical(layout, state, part, notes)
        if names is not None:
            return layout, names
    others = {arch.family.title: arch.family for arch in ARCHITECTURES.values()}
    other = [
        title
        for title, family in others.items()
        if any(canonical(layout, state, part, []) is not None for layout in family.layouts)
    ]
    if other:
        is_what = f"its names are a {other[0]}'s"
    else:
        is_what = f"none of its names (such as {next(iter(state), None)!r}) is a block's"
    raise ValueError(f"the checkpoint is not a {name}: {is_what}, and {name} is a {family.title}")


def _num_classes(head: tuple[int, ...], layout: Layout) -> int:
    """Number of logits of a head of that shape; 0 where there is none."""
    return 0 if not head else head[0] if layout.oihw else head[-1]


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
    different = [k for k, v in arch.options.items() if options[k] != v]
    has = ", ".join(f"{k} {options[k]}" for k in different)
    expected = ", ".join(f"{k} {arch.options[k]}" for k in different)
    hint = f"convert it as {same[0]!r}" if same else "no architecture here has that shape"
    raise ValueError(f"the checkpoint is not a {name} ({expected}): it has {has}; {hint}")
