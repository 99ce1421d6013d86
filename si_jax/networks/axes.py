"""Which axes of a traced network are the channels, and whether it mixes the images of a batch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from si_jax.networks.equations import inner, is_literal

Axes = tuple[int, int]
"""The first and the last but one of adjacent axes."""


def channel_axes(jaxpr: Any) -> dict[Any, int]:
    """Variable -> its channels' axis, for those of which it can be told.

    Convolutions and matrix products make channels, images have them last; what moves or reshapes
    their axis is followed. Operations of one place each leave them where they are.
    """
    images = jaxpr.invars[-1]
    found: dict[Any, Axes] = {images: (images.aval.ndim - 1, images.aval.ndim)}
    _follow(jaxpr, found, {images})
    return {v: first for v, (first, stop) in found.items() if stop - first == 1}


def _follow(jaxpr: Any, found: dict[Any, Axes], moved: set[Any]) -> None:
    for eqn in jaxpr.eqns:
        depends = [not is_literal(v) and v in moved for v in eqn.invars]
        if not any(depends):
            continue
        if called := inner(eqn):
            pairs = list(zip(called.jaxpr.invars, eqn.invars, strict=True))
            own = {a: found[v] for a, v in pairs if not is_literal(v) and v in found}
            rest = {a for (a, _), does in zip(pairs, depends, strict=True) if does}
            _follow(called.jaxpr, own, rest)
            for v, a in zip(eqn.outvars, called.jaxpr.outvars, strict=True):
                if not is_literal(a) and a in rest:
                    moved.add(v)
                    found.update({v: own[a]} if a in own else {})
            continue
        moved.update(eqn.outvars)
        for v in eqn.outvars:
            axes = _axes(eqn, v.aval, found, depends)
            if axes is not None:
                found[v] = axes


def _axes(eqn: Any, out: Any, found: Mapping[Any, Axes], depends: Sequence[bool]) -> Axes | None:
    """The channels' axes of what an equation makes."""
    name, params = eqn.primitive.name, eqn.params
    ndim = len(getattr(out, "shape", ()))
    if name == "conv_general_dilated":
        axis = params["dimension_numbers"].out_spec[1]
        return axis, axis + 1
    if name == "dot_general":
        (left, right), (batch, _) = params["dimension_numbers"]
        free = [
            v.aval.ndim - len(contracted) - len(batch)
            for v, contracted in zip(eqn.invars, (left, right), strict=True)
        ]
        if all(depends):
            return None
        return (ndim - free[1], ndim) if depends[0] else (len(batch), len(batch) + free[0])
    known = [v for v in eqn.invars if not is_literal(v) and v in found]
    if not known:
        return None
    same = [v for v in known if v.aval.shape == out.shape]
    x = (same or known)[0]
    axes, shape = range(*found[x]), x.aval.shape
    if name == "transpose":
        places = [params["permutation"].index(axis) for axis in axes]
    elif name == "broadcast_in_dim":
        places = [params["broadcast_dimensions"][axis] for axis in axes]
    elif name == "reshape":
        return _reshaped(axes, shape, out.shape)
    elif name == "squeeze" or "axes" in params:
        gone = params.get("axes", params.get("dimensions", ()))
        if any(axis in gone for axis in axes):
            return None
        places = [axis - sum(other < axis for other in gone) for axis in axes]
    else:
        return found[x] if x.aval.ndim == ndim else None
    places = sorted(map(int, places))
    return (places[0], places[-1] + 1) if places[-1] - places[0] == len(places) - 1 else None


def _reshaped(axes: range, old: Sequence[int], new: Sequence[int]) -> Axes | None:
    """Where adjacent axes are after a reshape; None if they were taken together with others."""
    before, behind = math.prod(old[: axes.start]), math.prod(old[: axes.stop])
    sizes = [math.prod(new[:axis]) for axis in range(len(new) + 1)]
    if before == behind or before not in sizes or behind not in sizes:
        return None
    first = len(sizes) - 1 - sizes[::-1].index(before)
    return first, sizes.index(behind)


def unused_size(jaxpr: Any) -> int:
    """A batch size of which no axis of a network is a multiple."""
    variables = [*jaxpr.invars, *(v for eqn in jaxpr.eqns for v in eqn.outvars)]
    sizes = {size for v in variables for size in getattr(v.aval, "shape", ()) if size}
    return next(n for n in range(61, 10**6) if all(size % n for size in sizes))


def may_mix(jaxpr: Any, size: int) -> bool:
    """Whether an operation may combine images of a batch of `size`, see `unused_size`.

    Some that do not are suspected as well, such as what sorts the images.
    """
    for eqn in jaxpr.eqns:
        for v, axis in _combined(eqn):
            if not is_literal(v) and v.aval.shape[axis] and v.aval.shape[axis] % size == 0:
                return True
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                called = getattr(part, "jaxpr", part)
                if hasattr(called, "eqns") and may_mix(called, size):
                    return True
    return False


def _combined(eqn: Any) -> Iterator[tuple[Any, int]]:
    """Operands of an equation and those of their axes along which it combines values."""
    name, params, x = eqn.primitive.name, eqn.params, (*eqn.invars, None)[0]
    if name == "dot_general":
        contracted, _ = params["dimension_numbers"]
        for v, axes in zip(eqn.invars, contracted, strict=True):
            yield from ((v, axis) for axis in axes)
    elif name == "conv_general_dilated":
        yield from ((x, axis) for axis in params["dimension_numbers"].lhs_spec[1:])
    elif name == "scan" and params["num_carry"]:
        rest = eqn.invars[params["num_consts"] + params["num_carry"] :]
        yield from ((v, 0) for v in rest if not is_literal(v))
    elif name == "concatenate":
        yield from ((v, params["dimension"]) for v in eqn.invars)
    elif "window_dimensions" in params:
        yield from ((x, axis) for axis, n in enumerate(params["window_dimensions"]) if n > 1)
    elif name in ("slice", "dynamic_slice", "gather"):
        sizes = params.get("slice_sizes")
        if sizes is None:
            limits = zip(params["start_indices"], params["limit_indices"], strict=True)
            sizes = [stop - start for start, stop in limits]
        shape = x.aval.shape if not is_literal(x) else ()
        yield from ((x, axis) for axis, n in enumerate(sizes[: len(shape)]) if n != shape[axis])
    elif name == "top_k":
        yield x, x.aval.ndim - 1
    elif name.startswith(("arg", "cum", "reduce_", "rev", "sort")):
        axes = params.get("axes", params.get("dimensions"))
        single = params.get("axis", params.get("dimension"))
        for v in eqn.invars:
            ndim = getattr(v.aval, "ndim", 0)
            given = axes if axes is not None else [] if single is None else [single]
            yield from ((v, axis) for axis in given if axis < ndim)
