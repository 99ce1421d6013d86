"""Results as text tables, JSON and CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from si_jax.metrics import METRICS
from si_jax.store import write_atomically

CONVENTIONS = {
    "published convention (in-distribution positive)": "fpr95",
    "OpenOOD convention (out-of-distribution positive)": "fpr95_ood_positive",
}
"""Title -> the metric that it reports beside AUROC."""


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows)])


def columns(report: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(title, set or group, whether a group's average) of each column of a table.

    The average of a group that lacks sets of the benchmark says over how many sets it is; sets
    that the user added, in the group `extra`, are averaged nowhere.
    """
    groups = report["groups"]
    names = list(dict.fromkeys(groups.values()))
    found = []
    for group in names:
        members = [name for name in groups if groups[name] == group]
        found += [(name, name, False) for name in members]
        if group == "extra" or len(members) < 2:
            continue
        title = f"{group} average"
        if group in report.get("incomplete", ()):
            title = f"mean of these {len(members)}"
        found.append((title, group, True))
    return found


def cell(report: Mapping[str, Any], detector: str, key: str, is_group: bool, metric: str) -> float:
    """One value of a table, a fraction."""
    return report["averages" if is_group else "results"][detector][key][metric]


def tables(report: Mapping[str, Any]) -> str:
    """The tables that a run prints: AUROC / FPR95 in per cent, one table per convention."""
    shown = []
    for title, metric in CONVENTIONS.items():
        found = columns(report)
        rows = [
            [detector]
            + [
                f"{100 * cell(report, detector, key, group, 'auroc'):.2f} /"
                f" {100 * cell(report, detector, key, group, metric):6.2f}"
                for _, key, group in found
            ]
            for detector in report["results"]
        ]
        header = ["AUROC / FPR95, %", *(name for name, _, _ in found)]
        shown.append(f"{title}\n{text_table(header, rows)}")
    return "\n\n".join(shown)


def heading(report: Mapping[str, Any]) -> str:
    """What was evaluated, in a few lines."""
    model, counts = report["model"], report["counts"]
    known = report["in_distribution"]
    accuracy = report["accuracy"]
    lines = [
        f"benchmark {report['benchmark']}, protocol {report['protocol']}, seed {report['seed']}",
        f"model {model['name']} ({model['parameters']:,} parameters, checkpoint"
        f" {report['checkpoint']})",
        f"in-distribution {known}: {counts[known]} images, accuracy "
        + ("unknown (no labels)" if accuracy is None else f"{accuracy:.2%}"),
    ]
    for name, stand_in in report.get("absent", {}).items():
        lines.append(f"absent: {name}" + (f"; {stand_in} stands in" if stand_in else ""))
    if report.get("incomplete"):
        lines.append(f"so there is no average of the benchmark: {', '.join(report['incomplete'])}")
    return "\n".join(lines)


def write(report: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write `results.json` and `results.csv`; returns their paths."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["detector", "set", "group", "images", *METRICS])
    for detector, rows in report["results"].items():
        for name, values in rows.items():
            facts = [detector, name, report["groups"][name], report["counts"][name]]
            writer.writerow(facts + [f"{values[metric]:.6f}" for metric in METRICS])
    files = {
        "results.json": json.dumps(report, indent=2) + "\n",
        "results.csv": text.getvalue(),
    }
    for name, content in files.items():
        write_atomically(directory / name, lambda file, c=content: file.write(c.encode()))
    return [directory / name for name in files]
