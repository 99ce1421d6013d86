"""Reports as one HTML page each, with the pictures inside and nothing loaded from elsewhere."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from si_jax.data.files import write_atomically, write_text
from si_jax.evaluation.store import PREDICTION
from si_jax.reporting import comparison, figures, report
from si_jax.reporting.report import PAGES, Cell, Table
from si_jax.reporting.runs import Run, extremes

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
class Section:
    """A part of a page: notes, then tables, then figures under their names."""

    anchor: str
    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[tuple[str, Cell]] = ()


def write(run: Run, directory: Path) -> Path:
    """Write `report.html`, all of a run whose scores are loaded, and `overview.png` beside it."""
    results, overview = run.results, None
    what = f"{results.benchmark} ({results.protocol}), {results.model['name']}"
    if run.ood_sets:
        chart = figures.encode(figures.overview(run))
        write_atomically(directory / "overview.png", lambda file: file.write(chart))
        text = f"AUROC of {', '.join(run.detectors)} on {', '.join(run.ood_sets)}"
        overview = Cell(text, CAPTIONS["overview"], picture=_data(chart))
    return _write(
        directory,
        "run.html",
        title=f"Out-of-distribution detection: {what}",
        warnings=report.warnings(results),
        headline=report.headline(results),
        overview=overview,
        sections=[
            Section("results", "Results", report.notes(results), report.metric_tables(results)),
            *_pictures(run),
            Section("settings", "Settings", tables=[_facts(report.settings(results))]),
            Section("metadata", "Metadata", tables=[_facts(report.metadata(results))]),
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


def _facts(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values, as a table without a header."""
    return Table("", (), tuple((Cell(name), Cell(value or "–")) for name, value in rows), text=True)


def _pictures(run: Run) -> Iterator[Section]:
    def of_each(title: str, note: str, draw: Callable, detectors: Sequence[str]) -> Section:
        drawn = {d: _data(figures.encode(draw(run, d))) for d in detectors}
        shown = [(d, Cell(f"{title} of {d}: {names}", picture=x)) for d, x in drawn.items()]
        return Section(title.lower(), title, [CAPTIONS[note]], figures=shown)

    names = ", ".join(run.ood_sets)
    if run.ood_sets:
        curves = _data(figures.encode(figures.roc_curves(run)))
        caption = " ".join([CAPTIONS["roc"], *figures.coincidences(run)])
        shown = Cell(f"ROC curves: {names}", caption, picture=curves)
        yield Section("roc", "ROC curves", figures=[("", shown)])
        yield of_each("Scores", "histograms", figures.histograms, run.detectors)
        if tapped := [d for d in run.detectors if figures.tap_kind(run, d)]:
            yield of_each("Layers", "taps", figures.tap_densities, tapped)
    galleries = [_gallery(run, x) for x in (run.id_set, *run.ood_sets) if x in run.thumbnails]
    note = CAPTIONS["gallery"] if galleries else "No images were kept with this run."
    yield Section("images", "Images", [note], galleries)


def _gallery(run: Run, image_set: str) -> Table:
    """The images of a set that look most and least in-distribution, a row for each detector."""
    rows = []
    for detector in run.detectors:
        picked, threshold = extremes(run.arrays[image_set][detector]), run.threshold(detector)
        cells = [_image(run, image_set, *one, bool(one[1] >= threshold)) for one in picked]
        rows.append((Cell(detector), *cells))
    numbers = range(1, len(picked) // 2 + 1)
    header = ("detector", *(f"{end} {number}" for end in ("most", "least") for number in numbers))
    title = f"Most and least in-distribution-looking images of {image_set}"
    return Table(title, header, tuple(rows))


def _image(run: Run, image_set: str, index: int, score: float, accepted: bool) -> Cell:
    """An image with its score, the decision, its predicted class and, where known, its true one."""
    said = ["accepted" if accepted else "rejected"]
    if predicted := run.arrays[image_set].get(PREDICTION):
        row = int(np.searchsorted(predicted["index"], index))
        said.append(f"class {int(predicted['score'][row])}")
        if image_set == run.id_set and (label := int(predicted["label"][row])) >= 0:
            said.append(f"true {label}")
    image, file = run.thumbnails[image_set][index], io.BytesIO()
    # a PNG of a small image is the smaller file, of a large one a JPEG
    form = "jpeg" if image.shape[0] > 48 else "png"
    Image.fromarray(image).save(file, form, quality=90, subsampling=0)
    return Cell(f"{score:.4g}", "\n".join(said), picture=_data(file.getvalue(), form))


def _data(content: bytes, form: str = "png") -> str:
    """A picture's file as an address that holds it."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def _write(directory: Path, template: str, **content: Any) -> Path:
    write_text(directory / "report.html", PAGES.get_template(template).render(content))
    return directory / "report.html"
