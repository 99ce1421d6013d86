"""The pictures of a report, drawn with matplotlib without touching its global state.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy.special import logit

from si_jax.evaluation import metrics
from si_jax.evaluation.metrics import IdScores, OodScores
from si_jax.reporting.runs import Run

ID_COLOUR, OOD_COLOUR = "#0072B2", "#D55E00"  # blue, vermilion
LINES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":", "-.")
WIDTH = 11.0  # inches
TAPS_NAMED = 30  # more taps than these are not all named
BINS = 60  # of a histogram
POINTS = 400  # of a ROC curve
LONGEST = 40  # letters of a detector's name


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities; those that float32 cannot tell from 0 or 1 are its nearest."""
    return logit(np.clip(probability.astype(np.float64), 2.0**-24, 1 - 2.0**-24))


TAP_ARRAYS = {
    "tap_density": "share of non-zeros",
    "tap_average": "mean of (v / outer)²",
    "tap_pvalue": "share that is less abnormal",
}
"""Array in a score file -> what its columns, one for each tap, are."""


AXES = {"msp": ("log-odds of the largest softmax probability", log_odds)}
"""Detector -> name of the axis of its scores, and what is shown in place of a score."""


def overview(run: Run) -> Figure:
    """AUROC of every detector on every set, with its interval where there is one."""
    rows, intervals = run.results.results, run.results.intervals
    order = sorted(rows, key=lambda d: np.mean([row["auroc"] for row in rows[d].values()]))
    longest = max(len(short(name, LONGEST)) for name in order)
    count, left = len(run.ood_sets), 0.3 + 0.075 * longest  # inches
    columns = 3 if count % 4 or longest > 20 else 4
    size = {"columns": columns, "height": 0.85 + 0.2 * len(order), "left": left}
    figure, panels = _panels(run, "AUROC, %", "", longest=34 - 3 * columns, **size)
    lowest = 45.0
    places = np.arange(len(order))
    for name, axes in panels.items():
        auroc = {d: rows[d][name]["auroc"] for d in order}
        ends = [intervals.get(d, {}).get(name, {}).get("auroc", (x, x)) for d, x in auroc.items()]
        low, high = 100 * np.transpose(ends)
        axes.hlines(places, low, high, color=ID_COLOUR, linewidth=2.2, alpha=0.45)
        shown = [100 * x for x in auroc.values()]
        axes.plot(shown, places, "o", color=ID_COLOUR, markersize=5, clip_on=False)
        axes.axvline(50, color="#999999", linewidth=0.8, linestyle=":")
        lowest = min(lowest, np.min(low) - 2)
        axes.set_ylim(-0.6, len(order) - 0.4)
        first = axes.get_subplotspec().is_first_col()
        axes.set_yticks(places, [short(d, LONGEST) if first else "" for d in order])
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
    for axes in panels.values():
        axes.set_xlim(lowest, 100)
    return figure


def coincidences(run: Run) -> list[str]:
    """A sentence for each group of detectors whose ROC curves are the same on every set."""
    groups: dict[bytes, list[str]] = {}
    for d in run.detectors:
        curves = [_roc(run.scores(run.id_set, d), run.scores(name, d)) for name in run.ood_sets]
        rates = np.concatenate([rate for curve in curves for rate in curve])
        groups.setdefault(rates.round(9).tobytes(), []).append(d)
    return [
        f"The curves of {', '.join(same[:-1])} and {same[-1]} coincide: one hides the other."
        for same in groups.values()
        if len(same) > 1
    ]


def histograms(run: Run, detector: str) -> Figure:
    """A detector's scores, in-distribution against each out-of-distribution set."""
    label_of_axis, shown = AXES.get(detector, ("score", lambda scores: scores.astype(np.float64)))
    figure, panels = _panels(run, label_of_axis, "share of images", height=2.3)
    id_scores = shown(run.scores(run.id_set, detector))
    (threshold,) = shown(np.array([run.threshold(detector)]))
    for name, axes in panels.items():
        ood_scores = shown(run.scores(name, detector))
        edges = _edges(id_scores, ood_scores)
        both = ((id_scores, ID_COLOUR, run.id_set), (ood_scores, OOD_COLOUR, name))
        for scores, colour, label in both:
            share = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0] / len(scores)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(share, edges, color=colour, linewidth=1.2, label=short(label))
        axes.axvline(threshold, color="#444444", linestyle="--", linewidth=0.9)
        auroc = 100 * run.results.results[detector][name]["auroc"]
        axes.set_title(f"{axes.get_title()}   AUROC {auroc:.2f}", fontsize=9)
        axes.legend(fontsize=7.5, frameon=False)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def roc_curves(run: Run) -> Figure:
    """ROC curves, one panel for each out-of-distribution set and one line for each detector."""
    head = 0.13 + 0.22 * math.ceil(len(run.detectors) / 6)
    across, up = "share of OOD images taken for in-distribution", "share of ID images kept"
    figure, panels = _panels(run, across, up, height=3.75, head=head)
    for name, axes in panels.items():
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        for number, detector in enumerate(run.detectors):
            fpr, tpr = _roc(run.scores(run.id_set, detector), run.scores(name, detector))
            axes.plot(fpr, tpr, linewidth=1.5, label=detector, **style(number))
        axes.axhline(0.95, color="#999999", linestyle=":", linewidth=0.9)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    handles = panels[run.ood_sets[0]].get_legend_handles_labels()
    figure.legend(*handles, loc="upper left", ncols=6, fontsize=9, frameon=False)
    return figure


def tap_kind(run: Run, detector: str) -> str | None:
    """The array in a detector's score files with a column for each tap; None if there is none."""
    taps = run.results.settings.get(detector, {}).get("taps", [])
    for kind in TAP_ARRAYS:
        if kind in (arrays := run.arrays[run.id_set][detector]):
            return kind if arrays[kind].shape[1:] == (len(taps),) else None
    return None


def tap_densities(run: Run, detector: str) -> Figure:
    """What each layer contributes to each set, and the AUROC that each layer alone would have."""
    kind = tap_kind(run, detector)
    if kind is None:
        raise ValueError(f"{detector} keeps nothing of its layers one by one")
    taps = run.results.settings[detector]["taps"]
    sets = run.ood_sets
    names = 0.3 + 0.057 * max(len(tap) + 3 for tap in taps)  # inches
    foot = names + 0.35 * len(sets) + 0.3
    figure, panels = _panels(run, "layer", TAP_ARRAYS[kind], height=2.5, foot=foot)
    _, total = figure.get_size_inches()
    place = (1.5 / WIDTH, names / total, 1 - 2.1 / WIDTH, 0.35 * len(sets) / total)
    id_scores = _tap_values(run.arrays[run.id_set][detector], kind)
    places, thin = np.arange(len(taps)), {"linewidth": 1.1, "markersize": 4}
    auroc = np.zeros((len(sets), len(taps)))
    for number, (name, axes) in enumerate(panels.items()):
        ood_scores = _tap_values(run.arrays[name][detector], kind)
        pairs = zip(id_scores.T, ood_scores.T, strict=True)
        auroc[number] = [1 - metrics.auroc(*pair) for pair in pairs]  # of OOD above ID
        axes.sharey(panels[sets[0]])
        if kind == "tap_average":
            axes.set_yscale("log", nonpositive="clip")
        both = ((id_scores, ID_COLOUR, run.id_set), (ood_scores, OOD_COLOUR, name))
        for values, colour, label in both:
            low, high = np.percentile(values, (10, 90), axis=0)
            axes.fill_between(places, low, high, color=colour, alpha=0.22, linewidth=0)
            mean = values.mean(axis=0)
            axes.plot(places, mean, ".-", color=colour, label=short(label), **thin)
        axes.legend(fontsize=7.5, frameon=False)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    title = "AUROC of each layer alone, % (50: no separation)"
    tap_map(figure, place, auroc, sets, taps, title=title, colours="PuOr")
    return figure


def _panels(
    run: Run, horizontal: str, vertical: str, *, longest: int = 28, **size: Any
) -> tuple[Figure, dict[str, Any]]:
    """A figure with a panel for each out-of-distribution set, by its name."""
    figure, panels = grid(len(run.ood_sets), horizontal, vertical, **size)
    for name, axes in zip(run.ood_sets, panels, strict=True):
        axes.set_title(f"{short(name, longest)} ({run.results.groups[name]})", fontsize=9)
    return figure, dict(zip(run.ood_sets, panels, strict=True))


def _edges(id_scores: np.ndarray, ood_scores: np.ndarray) -> np.ndarray:
    """Edges of bins that show both; the outermost take what lies beyond."""
    ends = [np.percentile(scores, (0.5, 99.5)) for scores in (id_scores, ood_scores)]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    if not high - low > 1e-9 * max(abs(low), abs(high), 1e-30):
        margin = 0.5 * max(abs(low), 1e-6)
        low, high = low - margin, high + margin
    return np.linspace(low, high, BINS + 1)


def _roc(id_scores: IdScores, ood_scores: OodScores) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate at so few thresholds that the curve is quickly drawn."""
    counts = metrics.count(id_scores, ood_scores)
    fpr, tpr = (np.append(0, np.cumsum(x[::-1]) / x.sum()) for x in (counts.ood, counts.id))
    along = fpr + tpr  # how far one has come on the curve, up and across
    chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], POINTS)))
    return fpr[chosen], tpr[chosen]


def _tap_values(arrays: Mapping[str, np.ndarray], kind: str) -> Float[np.ndarray, "images taps"]:
    values = arrays[kind].astype(np.float64)
    if kind == "tap_average":
        return values / arrays["outer"].astype(np.float64)[:, None] ** 2
    return 1 - values if kind == "tap_pvalue" else values


def encode(figure: Figure, dpi: int = 160) -> bytes:
    """A figure as the bytes of a PNG file; `$` in a name is shown as it is."""
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
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(file, "png")
    return file.getvalue()


def grid(
    count: int,
    horizontal: str = "",
    vertical: str = "",
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
    for axes in panels[:count]:
        axes.set_xlabel(horizontal, fontsize=8)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(vertical, fontsize=8)
        axes.tick_params(labelsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels[:count]


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
            colour = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else "black"
            middle = {"ha": "center", "va": "center", "fontsize": 7.5, "color": colour}
            axes.text(column, row, f"{value:.0f}", middle)
    left, bottom, width, height = place
    bar = figure.colorbar(picture, figure.add_axes((left + width + 0.01, bottom, 0.012, height)))
    bar.ax.tick_params(labelsize=7.5)
