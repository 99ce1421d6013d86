"""The images of a set that look most and least in-distribution, as a picture of a report."""

import numpy as np
from matplotlib.figure import Figure

from si_jax.evaluation.scorer import PREDICTION
from si_jax.reporting.extremes import COUNT, ENDS
from si_jax.reporting.panels import OOD_COLOUR, WIDTH
from si_jax.reporting.runs import Run


def gallery(run: Run, image_set: str) -> Figure:
    """The images of a set that look most and least in-distribution, one row for each detector.

    Args:
        run: with its picks loaded.
        image_set: a set of which `run.picks` has images.
    """
    detectors = [d for d in run.detectors if (image_set, d, "most") in run.picks]
    left, step, gap, head, line = 1.15, 0.8, 0.25, 0.3, 1.2
    height = head + line * len(detectors)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    threshold = {
        d: np.sort(run.scores(run.id_set, d))[round(0.05 * len(run.scores(run.id_set, d)))]
        for d in detectors
    }
    for end, name in enumerate(ENDS):
        start = left + end * (COUNT * step + gap)
        title = f"{name} in-distribution-looking"
        axes.text(start, 0.08, title, fontsize=9, va="top", weight="bold")
        for row, detector in enumerate(detectors):
            top = head + row * line
            if not end:
                axes.text(left - 0.1, top + 0.36, detector, fontsize=9, ha="right", va="center")
            for place, pick in enumerate(run.picks.get((image_set, detector, name), [])[:COUNT]):
                _thumbnail(axes, pick.image, start + place * step, top, step - 0.08)
                middle = start + place * step + (step - 0.08) / 2
                accepted = pick.score >= threshold[detector]
                lines = [f"{pick.score:.4g}", "accepted" if accepted else "rejected"]
                lines += _classes(run, image_set, pick.index)
                axes.text(
                    middle,
                    top + 0.75,
                    "\n".join(lines),
                    fontsize=6.2,
                    ha="center",
                    va="top",
                    color="#333333" if accepted else OOD_COLOUR,
                    parse_math=False,
                )
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    return figure


def _classes(run: Run, image_set: str, index: int) -> list[str]:
    """An image's predicted class and, where it is known, its true one."""
    arrays = run.arrays[image_set].get(PREDICTION)
    if arrays is None:
        return []
    row = int(np.searchsorted(arrays["index"], index))
    predicted, label = int(arrays["score"][row]), int(arrays["label"][row])
    shown = f"class {predicted}"
    return [shown if image_set != run.id_set or label < 0 else f"{shown}, true {label}"]


def _thumbnail(axes, image: np.ndarray, left: float, top: float, side: float) -> None:
    """An image fitted into a square, `top` measured downwards."""
    height, width = (side * n / max(image.shape[:2]) for n in image.shape[:2])
    left, top = left + (side - width) / 2, top + (side - height) / 2
    axes.imshow(
        image,
        extent=(left, left + width, top + height, top),
        interpolation="nearest",
        aspect="auto",
    )
