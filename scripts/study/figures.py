"""The figures of the study of S&I-C, from the values in its JSON alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from si_jax.reporting.figures import ID_COLOUR, OOD_COLOUR, WIDTH, grid, short, style, tap_map

ID_NAME = "in-distribution"
SHOWN = (("far", "auroc", "far AUROC, %"), ("far", "fpr95", "far FPR95, %"),
         ("near", "auroc", "near AUROC, %"))  # fmt: skip
"""Group, metric and title of each panel of `by_images`."""


def densities(layers: Mapping[str, Any], groups: Mapping[str, str]) -> Figure:
    """Mean density of each layer, in-distribution (and its middle 90 %) against each other set.

    `layers` is of `study.ablations.layers`, and `groups` set -> group.
    """
    across, up = "layer", "share of positions that are on"
    figure, panels = grid(len(groups), across, up, height=2.5)
    places = np.arange(len(layers["taps"]))
    thin = {"linewidth": 1.1, "markersize": 4}
    for axes, name in zip(panels, groups, strict=True):
        axes.fill_between(places, *layers["band"], color=ID_COLOUR, alpha=0.22, linewidth=0)
        for which, colour in ((ID_NAME, ID_COLOUR), (name, OOD_COLOUR)):
            axes.plot(
                places, layers["density"][which], ".-", color=colour, label=short(which), **thin
            )
        axes.set_title(f"{short(name)} ({groups[name]})", fontsize=9)
        axes.sharey(panels[0])
        axes.legend(fontsize=7.5, frameon=False)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


def abnormal_taps(layers: Mapping[str, Any], groups: Mapping[str, str]) -> Figure:
    """Share of images with p < 0.05 at each tap, a row for each set; 5 % would be by chance."""
    taps, sets = layers["taps"], [ID_NAME, *groups]
    names = 0.3 + 0.057 * max(len(tap) + 3 for tap in taps)  # inches
    height = 0.35 * len(sets)
    total = names + height + 0.4
    figure = Figure(figsize=(WIDTH, total))
    tap_map(
        figure,
        (1.5 / WIDTH, names / total, 1 - 2.1 / WIDTH, height / total),
        np.array([layers["rejected"][name] for name in sets]),
        sets,
        taps,
        title="share of images with p < 0.05 at each layer, % (5: as in-distribution images)",
        colours="Purples",
    )
    return figure


def by_images(rows: Sequence[Mapping[str, Any]], reference: Mapping[str, Any]) -> Figure:
    """Far and near values against the number of calibration images: mean and sd over the draws.

    `rows` are the ablations, and `reference` MSP's group -> metric -> fraction, a grey line.
    """
    lines: dict[tuple[str, str], list] = {}
    for row in rows:
        if row["table"] == "images" and not row["failure"]:
            lines.setdefault((row["components"], row["form"]), []).append(row)
    panels_of = [shown for shown in SHOWN if shown[0] in reference]
    count, across = len(panels_of), "calibration images"
    figure, panels = grid(count, across, height=3.1, head=0.3, foot=0.25)
    for axes, (group, metric, title) in zip(panels, panels_of, strict=True):
        for number, ((components, form), line) in enumerate(lines.items()):
            counts = np.array([row["images"] for row in line]) * 1.02 ** (number - 1.5)
            values, spread = (
                100 * np.array([row.get(k, {}).get(group, {}).get(metric, 0) for row in line])
                for k in ("mean", "sd")
            )
            axes.errorbar(
                counts,
                values,
                spread,
                label=f"{components}, {form}",
                marker=".",
                linewidth=1.3,
                capsize=2,
                elinewidth=0.8,
                **style(number),
            )
        axes.axhline(
            100 * reference[group][metric],
            color="#777777",
            linestyle="--",
            linewidth=1,
            label="msp",
        )
        axes.set_xscale("log")
        axes.set_xticks(sorted({row["images"] for line in lines.values() for row in line}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(title, fontsize=9)
        axes.tick_params(axis="x", labelrotation=45)
    if panels:
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="upper left", ncols=5, fontsize=9, frameon=False)
    return figure
