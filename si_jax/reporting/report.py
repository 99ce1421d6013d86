"""What is said of a run: its metadata, its tables, and sentences about them."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2

from si_jax.evaluation.metrics import METRICS
from si_jax.evaluation.results import Results

PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("si_jax.reporting"),
    autoescape=lambda name: name is None or name.endswith(".html"),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)
"""The templates of pages, which escape what they are given."""

CONVENTIONS = {
    "published convention (in-distribution positive)": "fpr95",
    "OpenOOD convention (out-of-distribution positive)": "fpr95_ood_positive",
}
"""Title -> the metric that it reports beside AUROC."""


@dataclass(frozen=True)
class Cell:
    """One cell of a `Table`."""

    text: str
    detail: str = ""  # in small print
    best: bool = False  # of its column
    picture: str = ""  # the address of one above the text
    value: float | int | None = None  # the fraction that the text shows, of the table's metric


@dataclass(frozen=True)
class Table:
    """A table with a header, or with () for none."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    stubs: int = 1  # how many columns, from the first one on, name the rows
    text: bool = False  # whether the other columns are words, not numbers


class Column(NamedTuple):
    """A column of a table of metrics: a set, or the average of a group's `members`."""

    name: str
    key: str
    group: str
    members: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name with that of its group, as reports have it."""
        known = self.members and self.group in self.name
        return self.name if known else f"{self.name} ({self.group})"


def titles() -> dict[str, str]:
    """Metric -> title of its table."""
    return {name: metric.report for name, metric in METRICS.items() if metric.report}


def summary(run: Results) -> list[tuple[str, str]]:
    """(name, value) of what was evaluated."""
    model, counts = run.model, run.counts
    classes = f", {model['classes']} classes" if "classes" in model else ""
    ids = [("in-distribution", run.in_distribution, run.accuracy)]
    ids += [("shifted", name, share) for name, share in run.shifted.items()]
    rows = [
        ("benchmark", f"{run.benchmark}, protocol {run.protocol}, seed {run.seed}"),
        ("model", f"{model['name']}, {model['parameters']:,} parameters{classes}"),
        ("checkpoint", run.checkpoint),
    ]
    for kind, name, share in ids:
        accuracy = "unknown (no labels)" if share is None else f"{share:.2%}"
        rows.append((f"{kind} {name}", f"{counts[name]:,} images, accuracy {accuracy}"))
    errors = ", ".join(f"{name} {error:.2%}" for name, error in run.calibration_error.items())
    rows.append(("expected calibration error", errors))
    for name, images in run.unreadable.items():
        some = ", ".join(images[:3]) + (", ..." if len(images) > 3 else "")
        rows.append((f"left out of {name}", f"{len(images)} unreadable images ({some})"))
    rows.append(("absent sets", ", ".join(run.absent)))
    return [(name, value) for name, value in rows if value]


def metadata(run: Results) -> list[tuple[str, str]]:
    """(name, value) of all that a reader must know of a run, in order."""
    model, images = run.model, ", ".join(f"{name} {run.counts[name]:,}" for name in run.groups)
    took = f"{run.seconds.get('total', 0):.1f} (scores already stored take none)"
    rows = {
        "out-of-distribution images": images,
        "at most per set": "" if run.limit is None else f"{run.limit:,} (subset)",
        "weights (SHA-256)": model.get("weights_sha256", ""),
        "preprocessing": run.preprocessing,
        "input": " x ".join(map(str, model.get("input_size", ()))) + " pixels",
        "normalisation": f"mean {listed(model.get('mean'))}, std {listed(model.get('std'))}",
        "device": run.device,
        "matrix products": f"{model['precision']} precision" if "precision" in model else "",
        "seconds": took if "total" in run.seconds else "",
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "command": run.command,
    }
    return summary(run) + [(name, value) for name, value in rows.items() if value]


def settings(run: Results) -> list[tuple[str, str]]:
    """(detector, its settings) of each detector."""
    return [
        (name, ", ".join(f"{k}={listed(v)}" for k, v in run.settings.get(name, {}).items()))
        for name in run.results
    ]


def warnings(run: Results) -> list[str]:
    """Sentences that a reader must see before the numbers."""
    shown = [f"{run.warning}."] if run.warning else []
    if run.incomplete:
        groups, absent = " and ".join(run.incomplete), ", ".join(run.absent)
        shown.append(
            f"Sets of the benchmark are absent, so means over the {groups} sets are not the"
            f" benchmark's averages: {absent}."
            if absent
            else f"Means over the {groups} sets are not the benchmark's averages, since sets were"
            " taken differently than it lists them."
        )
    return shown


def headline(run: Results) -> str:
    """The result in a sentence or two: which detector is best on which group of sets."""
    best: dict[str, list[str]] = {}
    for group, members in members_of(run).items():
        first = max(run.averages, key=lambda d: run.averages[d][group]["auroc"])
        row = run.averages[first][group]
        sets = f"the {len(members)} {group} sets" if len(members) > 1 else f"{members[0]} ({group})"
        values = f"AUROC {percent(row['auroc'])} %, FPR95 {percent(row['fpr95'])} %"
        best.setdefault(first, []).append(f"on {sets} ({values})")
    id_set, count = run.in_distribution, len(run.results)
    if not best:
        return f"{id_set} was scored; there is no out-of-distribution set to separate it from."
    verb = "is best" if count > 1 else "was evaluated"
    said = "; ".join(f"{name} {verb} {' and '.join(places)}" for name, places in best.items())
    lead = f"Of {count} detectors, " if count > 1 else ""
    return f"{lead}{said}. In-distribution is {id_set}."


def notes(run: Results) -> list[str]:
    """Sentences that belong beside the tables of a page."""
    sentences = [
        "A higher score means that an image looks more in-distribution. Best values in bold."
    ]
    if draws := run.bootstrap:
        sentences.append(
            "In brackets: 95 % confidence intervals by bootstrap over images"
            f" ({draws['resamples']} resamples, seed {draws['seed']})."
        )
    if full := full_spectrum(run):
        sentences.append(
            f"Full spectrum: {full.in_distribution} are all counted as in-distribution, so that"
            " a shift of style or quality alone is to be accepted."
        )
    return [*sentences, *tie_notes(run), *run.notes]


def tie_notes(run: Results) -> list[str]:
    """A sentence for each detector whose scores tie at the threshold of FPR95, where it matters."""
    shown = []
    for detector, sets in run.ties.items():
        rows = run.results[detector].items()
        if all(sets.get(k) == run.counts[k] and row["auroc"] == 0.5 for k, row in rows):
            shown.append(
                f"{detector} gives every image of every set the same score: it is useless on"
                " this network, and its FPR95 means nothing. Use another detector."
            )
            continue
        shares = ", ".join(f"{100 * n / run.counts[s]:.0f} % of {s}" for s, n in sets.items())
        shown.append(
            f"{detector}: {shares} have the very score of the threshold at which 95 % of the"
            " in-distribution images are kept. FPR95 in the published convention counts them as"
            " rejected; if they were kept, it would be higher by as much."
        )
    return shown


def full_spectrum(run: Results) -> Results | None:
    """The same run with shifted sets counted as in-distribution; None where there are none."""
    if not run.full_spectrum:
        return None
    changed: dict[str, Any] = {"intervals": {}, "average_intervals": {}, "full_spectrum": {}}
    changed |= run.full_spectrum
    known = ", ".join([run.in_distribution, *run.shifted])
    return dataclasses.replace(run, **changed, in_distribution=known)


def text(run: Results) -> str:
    """What a run prints: what was evaluated, warnings if there are some, and the tables."""
    lines = [f"{name}: {value}" for name, value in summary(run)]
    lines += [f"note: {note}" for note in run.notes]
    lines += [f"WARNING: {warning}" for warning in warnings(run)]
    lines += ["", tables(run)]
    if full := full_spectrum(run):
        lines += ["", f"full spectrum: in-distribution {full.in_distribution}", tables(full)]
    return "\n\n".join(filter(None, ["\n".join(lines), "\n".join(tie_notes(run))]))


def tables(run: Results) -> str:
    """The tables that a run prints: AUROC / FPR95 in per cent, one table per convention."""
    shown = []
    for convention, metric in CONVENTIONS.items():
        rows = [[detector] for detector in run.results]
        for row, column in itertools.product(rows, columns(run)):
            auroc, fpr95 = (cell(run, row[0], column, m).text for m in ("auroc", metric))
            row.append(f"{auroc} / {fpr95:>6}")
        header = ["AUROC / FPR95, %", *(column.name for column in columns(run))]
        shown.append(f"{convention}\n{text_table(header, rows)}")
    return "\n\n".join(shown)


def metric_tables(run: Results, metrics: Sequence[str] = ()) -> list[Table]:
    """One table per metric, all by default, in per cent, detectors by sets and averages."""
    shown_columns = columns(run)
    header = ("detector", *(column.title for column in shown_columns))
    shown = []
    for metric in [name for name in titles() if not metrics or name in metrics]:
        rows = [(Cell(d), *(cell(run, d, c, metric) for c in shown_columns)) for d in run.results]
        if any(one.value is not None for row in rows for one in row):  # not of an older run
            shown.append(metric_table(metric, header, rows))
    if full := full_spectrum(run):
        for table in metric_tables(full, metrics):
            shown.append(dataclasses.replace(table, title=f"Full spectrum: {table.title}"))
    return shown


def csv_rows(run: Results) -> list[list[Any]]:
    """The header and a row for each detector and set, with fractions; None where there is none."""
    full = full_spectrum(run)
    header = ["detector", "set", "group", "images", *METRICS]
    rows: list[list[Any]] = [header + [f"full_spectrum_{metric}" for metric in METRICS if full]]
    for detector, sets in run.results.items():
        for name, values in sets.items():
            row = [detector, name, run.groups[name], run.counts[name]]
            row += [values.get(metric) for metric in METRICS]
            row += [full.results[detector][name].get(metric) for metric in METRICS] if full else []
            rows.append(row)
    return rows


def members_of(run: Results) -> dict[str, list[str]]:
    """Group -> its sets."""
    groups: dict[str, list[str]] = {}
    for name, group in run.groups.items():
        groups.setdefault(group, []).append(name)
    return groups


def columns(run: Results) -> list[Column]:
    """The columns of a table; the group `extra`, which the user added, is averaged nowhere."""
    headed: list[Column] = []
    for group, members in members_of(run).items():
        headed += [Column(name, name, group) for name in members]
        if group != "extra" and len(members) > 1:
            partial = group in run.incomplete
            name = f"mean of these {len(members)}" if partial else f"{group} average"
            headed.append(Column(name, group, group, tuple(members)))
    return headed


def cell(run: Results, detector: str, column: Column, metric: str) -> Cell:
    """A value with its interval, where there are these; a dash where it was not measured."""
    kept = run.average_intervals if column.members else run.intervals
    ends: Sequence[float] = kept.get(detector, {}).get(column.key, {}).get(metric, ())
    interval = f"({100 * ends[0]:.1f}–{100 * ends[1]:.1f})" if ends else ""
    value = (run.averages if column.members else run.results)[detector][column.key].get(metric)
    return Cell(percent(value), interval, value=value)


def listed(value: Any) -> str:
    """A setting's value as text."""
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        return "  ".join([row[0].ljust(len(first)), *others]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows)])


def plain(table: Table) -> str:
    """A table as text, the best values marked by a star."""
    rows = [[f"{c.text} {c.detail}".strip() + " *" * c.best for c in row] for row in table.rows]
    return text_table(table.header, rows)


def mark_best(rows: Sequence[Sequence[Cell]], metric: str) -> list[tuple[Cell, ...]]:
    """The rows with each column's best value marked, and all that read so; none of one row."""
    if len(rows) < 2:
        return [tuple(row) for row in rows]
    choose = max if METRICS[metric].higher_is_better else min
    columns = []
    for column in zip(*rows, strict=True):
        known = [percent(cell.value) for cell in column if cell.value is not None]
        best = choose(known, key=float, default="")
        columns.append([dataclasses.replace(c, best=percent(c.value) == best) for c in column])
    return list(zip(*columns, strict=True))


def percent(fraction: float | int | None) -> str:
    """A fraction as it is printed, in per cent; a dash where there is none."""
    return "–" if fraction is None else f"{100 * fraction:.2f}"


def metric_table(
    metric: str, header: tuple[str, ...], rows: Sequence[Sequence[Cell]], stubs: int = 1
) -> Table:
    """A metric's table, in per cent."""
    better = "higher is better" if METRICS[metric].higher_is_better else "lower is better"
    title = f"{METRICS[metric].report}, % ({better})"
    return Table(title, header, tuple(mark_best(rows, metric)), stubs)
