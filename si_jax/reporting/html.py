"""Reports as one HTML page each, with the pictures inside and nothing loaded from elsewhere."""

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from si_jax.data.files import write_text
from si_jax.reporting import comparison, report
from si_jax.reporting.runs import Run
from si_jax.reporting.tables import Cell, Table

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1a1a1a;
  background: #fff; margin: 0 auto; max-width: 1160px; padding: 1.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .6rem; border-top: 2px solid #ddd; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
nav { margin: .5rem 0 1rem; }
a { color: #0057a0; }
nav a { margin-right: 1.2rem; display: inline-block; }
p, figcaption { max-width: 75ch; }
.warning { border-left: 6px solid #d55e00; background: #fdf1e9; padding: .6rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .32rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
th.name, td.name { text-align: left; }
tbody th { font-weight: 500; white-space: nowrap; }
tbody tr:hover { background: #f3f7fb; }
td small { display: block; color: #595959; font-size: .78rem; font-weight: 400;
  white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
.facts th { white-space: nowrap; color: #444; }
figure { margin: 1rem 0 1.8rem; } figure img { width: 100%; height: auto; display: block; }
figcaption { color: #444; font-size: .9rem; margin-top: .3rem; }
@media print { body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
"""

CAPTIONS = {
    "roc": "How many in-distribution images are kept when so many out-of-distribution images pass."
    " The dotted line marks 95 % kept, where FPR95 is read; the diagonal is chance.",
    "histograms": "The score's share of images in 60 bins; the outermost bins also hold what lies"
    " beyond them. 95 % of the in-distribution images lie right of the dashed line.",
    "taps": "Above, what each layer contributes: the line is the mean over the images, the band"
    " holds the middle 80 % of them. Below, the AUROC that the layer's value alone would have:"
    " above 50 it is larger on out-of-distribution images, as the score expects, below 50 it is"
    " smaller and works against the score.",
    "gallery": "Under each image its score. Images are shown as the model gets them (after resizing"
    " and cropping, before normalisation), scaled down where they are large.",
}


def write(run: Run, directory: Path) -> Path:
    """Write `report.html` of a run with its scores loaded; returns the path."""
    return _write(Path(directory) / "report.html", run_page(run))


def write_comparison(entries: Sequence[comparison.Entry], directory: Path) -> Path:
    """Write `report.html` that compares runs; returns the path."""
    return _write(Path(directory) / "report.html", comparison_page(entries))


def run_page(run: Run) -> str:
    """A run's facts, tables and pictures as a page.

    Args:
        run: with its scores loaded.
    """
    results = run.results
    warning = results.get("warning")
    body = [
        f'<p class="warning"><strong>Warning:</strong> {escape(warning)}.</p>' if warning else "",
        _facts(report.fact_rows(results)),
        _heading("Results", "results"),
        *(f"<p>{escape(note)}</p>" for note in report.notes(results)),
        *map(table, report.metric_tables(results)),
        *_pictures(run),
        _heading("Settings", "settings"),
        _facts(report.setting_rows(results)),
    ]
    links = {"results": "Results", "roc": "ROC curves", "scores": "Scores"}
    links |= {"layers": "Layers", "images": "Images", "settings": "Settings"}
    return page(report.title(results), body, links)


def comparison_page(entries: Sequence[comparison.Entry]) -> str:
    """Several runs side by side as a page."""
    body = [table(comparison.overview(entries)), f"<p>{escape(comparison.NOTE)}</p>"]
    links = {}
    for number, (title, members) in enumerate(comparison.sections(entries).items()):
        links[f"part{number}"] = title
        body += [_heading(title, f"part{number}"), *map(table, comparison.metric_tables(members))]
    if differing := comparison.differences(entries):
        links["settings"] = comparison.DIFFERENCES
        body += [_heading(links["settings"], "settings"), table(differing)]
    return page("Comparison of out-of-distribution detection runs", body, links)


def page(title: str, body: Iterable[str], links: dict[str, str]) -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML, in which all text is escaped already.
        links: anchor -> plain text; those whose anchor the body lacks are left out.
    """
    content = "\n".join(part for part in body if part)
    anchors = "".join(
        f'<a href="#{anchor}">{escape(text)}</a>'
        for anchor, text in links.items()
        if f'id="{anchor}"' in content
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<nav>{anchors}</nav>\n{content}\n</body>\n</html>\n"
    )


def table(shown: Table) -> str:
    """A table under its title, if it has one."""

    def cells(row: Sequence[Cell]) -> Iterator[str]:
        for place, cell in enumerate(row):
            text = f"<strong>{escape(cell.text)}</strong>" if cell.best else escape(cell.text)
            text += f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
            if place < shown.stubs:
                yield f'<th scope="row" class="name">{text}</th>'
            else:
                yield f'<td class="name">{text}</td>' if shown.text else f"<td>{text}</td>"

    head = "".join(
        f'<th scope="col"{_name_class(shown, place)}>{escape(name)}</th>'
        for place, name in enumerate(shown.header)
    )
    rows = "\n".join(f"<tr>{''.join(cells(row))}</tr>" for row in shown.rows)
    title = f"<h3>{escape(shown.title)}</h3>\n" if shown.title else ""
    return (
        f'{title}<div class="wide"><table>\n<thead><tr>{head}</tr></thead>'
        f"\n<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _pictures(run: Run) -> Iterator[str]:
    from si_jax.reporting import figures, panels  # here, as matplotlib takes a while to import

    names = ", ".join(run.ood_sets)
    if run.ood_sets:
        yield _heading("ROC curves", "roc")
        yield _figure(panels.encode(figures.roc_curves(run)), f"ROC curves: {names}", "roc")
        yield _heading("Scores", "scores") + f"<p>{CAPTIONS['histograms']}</p>"
    for detector in run.detectors if run.ood_sets else ():
        picture = panels.encode(figures.histograms(run, detector))
        yield f"<h3>{escape(detector)}</h3>" + _figure(picture, f"Scores of {detector}: {names}")
    tapped = [d for d in run.detectors if run.ood_sets and figures.tap_kind(run, d)]
    if tapped:
        yield _heading("Layers", "layers") + f"<p>{CAPTIONS['taps']}</p>"
    for detector in tapped:
        picture = panels.encode(figures.tap_densities(run, detector))
        yield f"<h3>{escape(detector)}</h3>" + _figure(picture, f"Layers of {detector}: {names}")
    yield _heading("Images", "images")
    sets = list(dict.fromkeys(name for name, _, _ in run.picks))
    yield f"<p>{CAPTIONS['gallery']}</p>" if sets else "<p>No images were kept with this run.</p>"
    for name in sets:
        large = (
            max(p.image.shape[0] for k, ps in run.picks.items() if k[0] == name for p in ps) > 48
        )
        form = "jpeg" if large else "png"  # whichever is the smaller
        picture = panels.encode(figures.gallery(run, name), form)
        yield f"<h3>{escape(name)}</h3>" + _figure(
            picture, f"Most and least in-distribution-looking images of {name}", form=form
        )


def _figure(picture: bytes, text: str, caption: str = "", form: str = "png") -> str:
    data = base64.b64encode(picture).decode()
    below = f"<figcaption>{CAPTIONS[caption]}</figcaption>" if caption else ""
    return (
        f'<figure><img alt="{escape(text)}" src="data:image/{form};base64,{data}">{below}</figure>'
    )


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    lines = "\n".join(
        f'<tr><th scope="row" class="name">{escape(name)}</th>'
        f'<td class="name">{escape(value) or "–"}</td></tr>'
        for name, value in rows
    )
    return f'<div class="wide"><table class="facts"><tbody>\n{lines}\n</tbody></table></div>'


def _heading(text: str, anchor: str) -> str:
    return f'<h2 id="{anchor}">{escape(text)}</h2>'


def _name_class(shown: Table, place: int) -> str:
    return ' class="name"' if shown.text or place < shown.stubs else ""


def _write(path: Path, content: str) -> Path:
    write_text(path, content)
    return path
