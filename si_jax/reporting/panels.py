"""What all figures share: colours, rows of panels, and a figure as the bytes of a file."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

ID_COLOUR, OOD_COLOUR = "#0072B2", "#D55E00"  # blue, vermilion
LINES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":", "-.")
WIDTH = 11.0  # inches
TAPS_NAMED = 30  # more taps than these are not all named


def encode(figure: Figure, form: str = "png", dpi: int = 160) -> bytes:
    """A figure as the bytes of a PNG or JPEG file; `$` in a name is shown as it is."""
    legends = [axes.get_legend() for axes in figure.axes] + figure.legends
    shown = [text for legend in legends if legend for text in legend.get_texts()]
    for axes in figure.axes:
        shown += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    for text in (*shown, *figure.texts):
        text.set_parse_math(False)
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    file = io.BytesIO()
    options = {"quality": 90, "subsampling": 0} if form == "jpeg" else {}
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(file, form, **options)
    return file.getvalue()


def grid(
    count: int,
    *,
    columns: int = 3,
    height: float,
    head: float = 0.0,
    foot: float = 0.0,
    left: float = 0.6,
) -> tuple[Figure, list]:
    """A figure with `count` panels in rows of `columns`, a `height` and margins in inches."""
    rows = math.ceil(count / columns)
    total = head + rows * height + foot
    figure = Figure(figsize=(WIDTH, max(total, 0.5)))
    if not count:
        return figure, []
    space = {"wspace": 0.2, "hspace": 0.75 / (height - 0.75)}
    inside = {"left": left / WIDTH, "right": 1 - 0.15 / WIDTH}
    inside |= {"bottom": (foot + 0.45) / total, "top": 1 - (head + 0.3) / total}
    panels = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=inside | space).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def labels(panels: list, horizontal: str, vertical: str) -> None:
    """Name the axes of a row of panels, the vertical one at the first of each row alone."""
    for axes in panels:
        axes.set_xlabel(horizontal, fontsize=8)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(vertical, fontsize=8)


def tidy(axes) -> None:
    """Small numbers, and no frame on the right and at the top."""
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)


def style(number: int) -> Mapping[str, Any]:
    """Colour and dashes of a line by its number; 28 of them differ."""
    rounds, colour = divmod(number, len(LINES))
    return {"color": LINES[colour], "linestyle": DASHES[rounds % len(DASHES)]}


def short(name: str, length: int = 28) -> str:
    """A name cut to a length."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def tap_map(
    figure: Figure,
    place: tuple[float, float, float, float],
    values: Float[np.ndarray, "sets taps"],
    sets: Sequence[str],
    taps: Sequence[str],
    *,
    title: str,
    colours: str,
) -> None:
    """A map of fractions, one row for each set and one column for each tap, in per cent."""
    axes = figure.add_axes(place)
    picture = axes.imshow(100 * values, cmap=colours, vmin=0, vmax=100, aspect="auto")
    every = math.ceil(len(taps) / TAPS_NAMED)
    places = range(0, len(taps), every)
    axes.set_xticks(places, [f"{i} {taps[i]}" for i in places], rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(sets)), [short(name, 20) for name in sets], fontsize=8)
    axes.set_title(title, fontsize=9)
    if len(taps) <= TAPS_NAMED:
        for (row, column), value in np.ndenumerate(100 * values):
            red, green, blue, _ = picture.cmap(value / 100)
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axes.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if dark else "black",
            )
    left, bottom, width, height = place
    bar = figure.colorbar(picture, figure.add_axes((left + width + 0.01, bottom, 0.012, height)))
    bar.ax.tick_params(labelsize=7.5)
