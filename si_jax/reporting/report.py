"""Results as text tables and Markdown."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from si_jax.evaluation.metrics import METRICS
from si_jax.reporting import facts
from si_jax.reporting.tables import (
    Cell,
    Table,
    arrow,
    escape,
    mark_best,
    markdown_facts,
    markdown_table,
    percent,
    text_table,
)

CONVENTIONS = {
    "published convention (in-distribution positive)": "fpr95",
    "OpenOOD convention (out-of-distribution positive)": "fpr95_ood_positive",
}
"""Title -> the metric that it reports beside AUROC."""

MAIN = {METRICS[name].report: name for name in ("auroc", "fpr95")}
"""Title -> metric of the tables that a notebook shows."""


def metric_titles() -> dict[str, str]:
    """Metric -> title of its table in the Markdown and HTML reports."""
    return {name: metric.report for name, metric in METRICS.items() if metric.report}


def columns(report: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(title, set or group, whether a group's average) of each column of a table.

    The average of a group that lacks sets of the benchmark says over how many sets it is; sets
    that the user added, in the group `extra`, are averaged nowhere.
    """
    groups = report["groups"]
    names = list(dict.fromkeys(groups.values()))
    headed = []
    for group in names:
        members = [name for name in groups if groups[name] == group]
        headed += [(name, name, False) for name in members]
        if group == "extra" or len(members) < 2:
            continue
        title = f"{group} average"
        if group in report.get("incomplete", ()):
            title = f"mean of these {len(members)}"
        headed.append((title, group, True))
    return headed


def cell(
    report: Mapping[str, Any], detector: str, key: str, is_group: bool, metric: str
) -> float | int | None:
    """One value of a table, a fraction; None where the run did not measure it."""
    return report["averages" if is_group else "results"][detector][key].get(metric)


def text(report: Mapping[str, Any]) -> str:
    """What a run prints: what was evaluated, a warning if there is one, and the tables."""
    lines = [facts.heading(report)]
    if warning := report.get("warning"):
        lines.append(f"WARNING: {warning}")
    lines += ["", tables(report)]
    if full := facts.full_spectrum(report):
        lines += ["", f"full spectrum: in-distribution {full['in_distribution']}", tables(full)]
    notes = "\n".join(facts.tie_notes(report))
    return "\n".join(lines) + (f"\n\n{notes}" if notes else "")


def tables(report: Mapping[str, Any]) -> str:
    """The tables that a run prints: AUROC / FPR95 in per cent, one table per convention."""
    shown = []
    for title, metric in CONVENTIONS.items():
        shown_columns = columns(report)
        rows = [
            [detector]
            + [
                f"{_number(cell(report, detector, key, group, 'auroc'))} /"
                f" {_number(cell(report, detector, key, group, metric)):>6}"
                for _, key, group in shown_columns
            ]
            for detector in report["results"]
        ]
        header = ["AUROC / FPR95, %", *(name for name, _, _ in shown_columns)]
        shown.append(f"{title}\n{text_table(header, rows)}")
    return "\n\n".join(shown)


def _number(fraction: float | int | None) -> str:
    return "–" if fraction is None else percent(fraction)


def metric_tables(
    report: Mapping[str, Any], titles: Mapping[str, str] | None = None
) -> list[Table]:
    """One table per metric, in per cent, detectors by sets and averages.

    Args:
        report: the results.
        titles: metric -> title of its table; None for those of reports.
    """
    shown_columns = columns(report)
    header = ("detector", *(column_title(report, *column) for column in shown_columns))
    shown = []
    for metric, title in (metric_titles() if titles is None else titles).items():
        rows = [
            [_value_cell(report, detector, key, group, metric) for _, key, group in shown_columns]
            for detector in report["results"]
        ]
        values = [
            [cell(report, detector, key, group, metric) for _, key, group in shown_columns]
            for detector in report["results"]
        ]
        if all(value is None for row in values for value in row):
            continue  # a run of before the metric was there
        marked = zip(report["results"], mark_best(rows, values, metric), strict=True)
        cells = tuple((Cell(name), *row) for name, row in marked)
        shown.append(Table(f"{title}, % ({arrow(metric)})", header, cells))
    if full := facts.full_spectrum(report):
        shown += [
            dataclasses.replace(table, title=f"Full spectrum: {table.title}")
            for table in metric_tables(full, titles)
        ]
    return shown


def column_title(report: Mapping[str, Any], title: str, key: str, is_group: bool) -> str:
    """A column's title with its group's name, in the Markdown and HTML reports."""
    if not is_group:
        return f"{title} ({report['groups'][key]})"
    return title if key in title else f"{title} ({key})"


def _value_cell(report, detector, key, is_group, metric) -> Cell:
    value = cell(report, detector, key, is_group, metric)
    text = _number(value)
    kept = report.get("average_intervals" if is_group else "intervals") or {}
    ends = kept.get(detector, {}).get(key, {}).get(metric)
    if value is None or not ends:
        return Cell(text)
    return Cell(text, f"({100 * ends[0]:.1f}–{100 * ends[1]:.1f})")


def markdown(report: Mapping[str, Any]) -> str:
    """A run's facts and tables as Markdown."""
    parts = [f"# {escape(facts.title(report))}"]
    parts += [f"**Warning:** {escape(warning)}" for warning in facts.warnings(report)]
    parts += [escape(facts.answer(report)), *map(escape, facts.notes(report))]
    parts += map(markdown_table, metric_tables(report))
    parts += ["## Settings", markdown_facts(facts.setting_rows(report))]
    parts += ["## Facts", markdown_facts(facts.fact_rows(report))]
    return "\n\n".join(parts) + "\n"
