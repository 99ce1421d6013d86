"""The study of S&I-C as tables, Markdown and JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from si_jax.data.files import write_text
from si_jax.reporting import facts, report
from si_jax.reporting.tables import (
    Cell,
    Table,
    escape,
    mark_best,
    markdown_facts,
    markdown_table,
    percent,
    plain,
)
from study.measures import MEASURED

TITLES = {name: report.metric_titles()[name] for name in MEASURED}
ABLATIONS = {
    "components": "Ablation: components and forms (E energy, A channel-average, M zero-deflation)",
    "images": "Ablation: number of calibration images",
    "seeds": "Ablation: draws of the calibration images",
    "shrinkage": "Ablation: shrinkage of the covariance",
    "channels": "Ablation: channels whose densities are read",
}
"""Ablation -> title of its table."""

VALUES = tuple((group, metric) for group in ("far", "near") for metric in MEASURED)
NAMES = {"auroc": "AUROC", "fpr95": "FPR95", "fpr95_ood_positive": "FPR95, OpenOOD's"}
NOTES = (
    "Values in per cent; FPR95 by the published convention (in-distribution positive), the share of"
    " OOD among what is accepted when 95 % of in-distribution images are; OpenOOD's is the share of"
    " in-distribution images refused when 95 % of OOD are. Far and near are means over the sets of"
    " the group. Best values in bold.",
    "In brackets: 95 % intervals by bootstrap over the test images; differences are paired, over"
    " the same draws. They say nothing of other networks, nor of other calibration images, for"
    " which see the ablation of draws.",
    "The forms of S&I-C were chosen on CIFAR networks; see its documentation.",
)


def case_tables(case: Mapping[str, Any]) -> list[Table]:
    """The tables of one network under one protocol.

    Args:
        case: one of the study's `cases`.
    """
    return [
        *report.metric_tables(case, TITLES),
        over_msp(case),
        *failure_tables(case),
        *(ablation_table(case, name) for name in ABLATIONS),
    ]


def summary(cases: Sequence[Mapping[str, Any]]) -> Table:
    """AUROC / FPR95 of far and near for each detector and case."""
    columns = [(c, g) for c in cases for g in ("far", "near") if g in c["groups"].values()]
    detectors = list(dict.fromkeys(d for c in cases for d in (*c["results"], *c["failures"])))
    values = [
        [case["averages"].get(name, {}).get(group, {}).get("auroc") for case, group in columns]
        for name in detectors
    ]
    rows = [
        [
            Cell("failed")
            if value is None
            else Cell(f"{percent(value)} / {percent(case['averages'][name][group]['fpr95'])}")
            for value, (case, group) in zip(row, columns, strict=True)
        ]
        for name, row in zip(detectors, values, strict=True)
    ]
    marked = zip(detectors, mark_best(rows, values, "auroc"), strict=True)
    header = ("detector", *(f"{case['network']}, {case['protocol']}: {g}" for case, g in columns))
    cells = tuple((Cell(name), *row) for name, row in marked)
    return Table("Summary: AUROC / FPR95, %", header, cells)


def over_msp(case: Mapping[str, Any]) -> Table:
    """Differences from MSP, with paired intervals."""
    shown = [pair for pair in VALUES if pair[0] in case["groups"].values()]
    rows = []
    for name, row in case["over_msp"].items():
        cells = []
        for group, metric in shown:
            difference, low, high = (100 * value for value in row[group][metric])
            cells.append(Cell(f"{difference:+.2f}", f"({low:+.1f} – {high:+.1f})"))
        rows.append((Cell(name), *cells))
    header = ("detector", *(f"{group} {NAMES[metric]}" for group, metric in shown))
    return Table("Difference from msp, points", header, tuple(rows))


def failure_tables(case: Mapping[str, Any]) -> list[Table]:
    """A table of the detectors that could not be evaluated, if there are some."""
    rows = tuple((Cell(name), Cell(why)) for name, why in case["failures"].items())
    title = "Detectors that could not be evaluated"
    return [Table(title, ("detector", "reason"), rows, text=True)] if rows else []


def ablation_table(case: Mapping[str, Any], name: str) -> Table:
    """One ablation, with MSP's near AUROC beside it.

    Args:
        case: one of the study's `cases`.
        name: a key of `ABLATIONS`.
    """
    shown = [pair for pair in VALUES if pair[0] in case["groups"].values()]
    yardstick = case["averages"]["msp"].get("near")
    header = ["S&I-C", "form", "images", "channels", "shrinkage"]
    header += [f"{group} {NAMES[metric]}" for group, metric in shown]
    header += ["msp's near AUROC", "note"]
    rows = []
    for row in case["ablations"]:
        if row["table"] != name:
            continue
        cells = [Cell(row["label"]), Cell(row["form"])]
        if row["failure"]:
            cells += [Cell("–")] * (len(header) - 3) + [Cell(row["failure"])]
        else:
            cells += [Cell(f"{row[key]:.3g}" if key == "shrinkage" else str(row[key]))
                      if key in row else Cell("–")
                      for key in ("images", "channels", "shrinkage")]  # fmt: skip
            for group, metric in shown:
                spread = row.get("sd", {}).get(group, {}).get(metric)
                detail = "" if spread is None else f"± {percent(spread)}"
                cells.append(Cell(percent(row["mean"][group][metric]), detail))
            cells.append(Cell("–" if yardstick is None else percent(yardstick["auroc"])))
            cells.append(Cell(""))
        rows.append(tuple(cells))
    return Table(f"{ABLATIONS[name]}, %", tuple(header), tuple(rows), stubs=2)


def case_facts(case: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a reader must know of a case."""
    shown = facts.fact_rows(case)
    shown = [(name, value) for name, value in shown if name not in ("command", "versions")]
    return [*shown, ("calibration", calibrated(case))]


def text(study: Mapping[str, Any]) -> str:
    """What the command prints."""
    parts = []
    for case in study["cases"]:
        parts.append(f"== {title(case)} ==\n{facts.heading(case)}\ncalibration: {calibrated(case)}")
        parts += [f"{table.title}\n{plain(table)}" for table in case_tables(case)]
    table = summary(study["cases"])
    return "\n\n".join([*parts, f"{table.title}\n{plain(table)}"])


def markdown(study: Mapping[str, Any]) -> str:
    """The whole study as Markdown, its figures linked."""
    parts = ["# S&I-C, the calibrated detector: evidence", *map(escape, NOTES)]
    parts += [markdown_facts([
        ("command", study["command"]),
        ("seed", str(study["seed"])),
        ("versions", ", ".join(f"{k} {v}" for k, v in study["versions"].items())),
    ])]  # fmt: skip
    if study["unfinished"]:
        parts.append(f"**Unfinished:** {escape(', '.join(study['unfinished']))}.")
    parts.append(markdown_table(summary(study["cases"])))
    for case in study["cases"]:
        parts += [f"# {escape(title(case))}", markdown_facts(case_facts(case))]
        if case["warning"]:
            parts.append(f"**Warning:** {escape(case['warning'])}.")
        if case["incomplete"]:
            parts.append(escape(facts.notes(case)[-1]))
        parts += map(markdown_table, case_tables(case))
        parts += [f"![{escape(name)}]({path})" for name, path in case["figures"].items()]
    return "\n\n".join(parts) + "\n"


def title(case: Mapping[str, Any]) -> str:
    """Network and protocol."""
    return f"{case['network']}, protocol {case['protocol']}"


def calibrated(case: Mapping[str, Any]) -> str:
    """What was calibrated on, in a line."""
    calibration = case["calibration"]
    draws, own = calibration["draws"], calibration["disjoint_draws"]
    parts = [
        f"{calibration['images']:,} images of {calibration['set']}",
        f"{draws} draws that share no image",
    ]
    if own < draws:
        parts[1] = (
            f"{draws} draws, {own} of them on images of its own; the others split the first's anew"
        )
    return "; ".join([*parts, *filter(None, [calibration["note"]])])


def write(study: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write `study.json` and `study.md`; returns their paths."""
    files = {
        "study.json": json.dumps(study, indent=1, allow_nan=False) + "\n",
        "study.md": markdown(study),
    }
    for name, content in files.items():
        write_text(directory / name, content)
    return [directory / name for name in files]
