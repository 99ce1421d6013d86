"""Reports as one HTML page each, with the pictures inside and nothing loaded from elsewhere.

The pages' text lies in `templates/`, which escape what they are given.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from si_jax.data.files import write_atomically, write_text
from si_jax.reporting import comparison, figures, report
from si_jax.reporting.report import PAGES, Table
from si_jax.reporting.runs import Run

CAPTIONS = {
    "overview": "AUROC of each detector on each set: 50 is chance, 100 is perfect. The bars are"
    " 95 % confidence intervals by bootstrap over the images.",
    "roc": "How many in-distribution images are kept when so many out-of-distribution images pass."
    " The dotted line marks 95 % kept, where FPR95 is read; the diagonal is chance.",
    "histograms": "The score's share of images in 60 bins; the outermost bins also hold what lies"
    " beyond them. 95 % of the in-distribution images lie right of the dashed line.",
    "taps": "Above, what each layer contributes: the line is the mean over the images, the band"
    " holds the middle 80 % of them. Below, the AUROC that the layer's value alone would have:"
    " above 50 it is larger on out-of-distribution images, as the score expects, below 50 it is"
    " smaller and works against the score.",
    "gallery": "Under each image its score, and whether it would be accepted at the threshold that"
    " keeps 95 % of the in-distribution images; then the predicted class and, where it is known,"
    " the true one. Images are shown as the model gets them (after resizing and cropping, before"
    " normalisation), scaled down where they are large.",
}


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in a page."""

    data: str
    text: str
    caption: str = ""
    form: str = "png"


@dataclass(frozen=True)
class Section:
    """A part of a page: notes, then tables, then figures, then facts."""

    anchor: str
    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[tuple[str, Picture]] = ()
    facts: Sequence[tuple[str, str]] = ()


def write(run: Run, directory: Path) -> Path:
    """Write `report.html`, a run's answer, tables, pictures and facts; returns the path.

    The run's scores are loaded. The first chart is written beside it, as `overview.png`.
    """
    results, overview = run.results, None
    if run.ood_sets:
        chart = figures.encode(figures.overview(run))
        write_atomically(directory / "overview.png", lambda file: file.write(chart))
        text = f"AUROC of {', '.join(run.detectors)} on {', '.join(run.ood_sets)}"
        overview = _picture(chart, text, CAPTIONS["overview"])
    return _write(
        directory,
        "run.html",
        title=report.title(results),
        warnings=report.warnings(results),
        headline=report.headline(results),
        overview=overview,
        sections=[
            Section("results", "Results", report.notes(results), report.metric_tables(results)),
            *_pictures(run),
            Section("settings", "Settings", facts=report.settings(results)),
            Section("metadata", "Metadata", facts=report.metadata(results)),
        ],
    )


def write_comparison(entries: Sequence[comparison.Entry], directory: Path) -> Path:
    """Write `report.html`, several runs side by side; returns the path."""
    sections = [
        Section(f"part{number}", title, tables=comparison.metric_tables(members))
        for number, (title, members) in enumerate(comparison.sections(entries).items())
    ]
    if differing := comparison.differences(entries):
        sections.append(Section("settings", comparison.DIFFERENCES, tables=[differing]))
    return _write(
        directory,
        "comparison.html",
        title="Comparison of out-of-distribution detection runs",
        warnings=(),
        overview=comparison.overview(entries),
        note=comparison.NOTE,
        sections=sections,
    )


def _pictures(run: Run) -> Iterator[Section]:
    names = ", ".join(run.ood_sets)
    if run.ood_sets:
        caption = " ".join([CAPTIONS["roc"], *figures.coincidences(run)])
        curves = _picture(figures.roc_curves(run), f"ROC curves: {names}", caption)
        yield Section("roc", "ROC curves", figures=[("", curves)])
        pictures = [
            (d, _picture(figures.histograms(run, d), f"Scores of {d}: {names}"))
            for d in run.detectors
        ]
        yield Section("scores", "Scores", [CAPTIONS["histograms"]], figures=pictures)
    tapped = [d for d in run.detectors if run.ood_sets and figures.tap_kind(run, d)]
    if tapped:
        pictures = [
            (d, _picture(figures.tap_densities(run, d), f"Layers of {d}: {names}")) for d in tapped
        ]
        yield Section("layers", "Layers", [CAPTIONS["taps"]], figures=pictures)
    sets = list(dict.fromkeys(name for name, _, _ in run.picks))
    pictures = []
    for name in sets:
        picks = [pick for key, several in run.picks.items() if key[0] == name for pick in several]
        # a PNG of small images is the smaller file, of large ones a JPEG
        form = "jpeg" if max(pick.image.shape[0] for pick in picks) > 48 else "png"
        text = f"Most and least in-distribution-looking images of {name}"
        pictures.append((name, _picture(figures.gallery(run, name), text, form=form)))
    note = CAPTIONS["gallery"] if sets else "No images were kept with this run."
    yield Section("images", "Images", [note], figures=pictures)


def _picture(figure: Figure | bytes, text: str, caption: str = "", form: str = "png") -> Picture:
    data = figure if isinstance(figure, bytes) else figures.encode(figure, form)
    return Picture(base64.b64encode(data).decode(), text, caption, form)


def _write(directory: Path, template: str, **content: Any) -> Path:
    write_text(directory / "report.html", PAGES.get_template(template).render(content))
    return directory / "report.html"
