"""The study of S&I-C as tables and JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from si_jax.data.files import write_text
from si_jax.evaluation.results import Results
from si_jax.reporting import report
from si_jax.reporting.report import Cell, Table, mark_best, percent, plain, text_table
from study.comparison import MEASURED, REFERENCE

ABLATIONS = {
    "components": "Ablation: components and forms (E energy, A channel-average, M zero-deflation)",
    "images": "Ablation: number of calibration images",
    "seeds": "Ablation: draws of the calibration images",
    "shrinkage": "Ablation: shrinkage of the covariance",
    "channels": "Ablation: channels whose densities are read",
}
"""Ablation -> title of its table."""

NAMES = {"auroc": "AUROC", "fpr95": "FPR95", "fpr95_ood_positive": "FPR95, OpenOOD's"}
NOTES = """\
Values in per cent; FPR95 by the published convention (in-distribution positive), the share of OOD
among what is accepted when 95 % of in-distribution images are; OpenOOD's is the share of
in-distribution images refused when 95 % of OOD are. Far and near are means over the sets of the
group. The best values have a star. In brackets: 95 % intervals by bootstrap over the test images;
differences are paired, over the same draws. They say nothing of other networks, nor of other
calibration images, for which see the ablation of draws. The forms of S&I-C were chosen on CIFAR
networks; see its documentation."""


def text(cases: Sequence[Mapping[str, Any]]) -> str:
    """All tables: of each case, and the summary."""
    parts = [NOTES]
    for case in cases:
        results = case["results"]
        title = f"== {case['network']}, protocol {results.protocol} =="
        rows = [*report.summary(results), ("calibration", calibrated(case))]
        parts.append("\n".join([title, *(f"{name}: {value}" for name, value in rows)]))
        if results.warning:
            parts.append(f"WARNING: {results.warning}")
        for table in report.metric_tables(results, MEASURED):
            parts.append(f"{table.title}\n{plain(table)}")
        parts.append(f"Difference from {REFERENCE}, points\n{over_reference(case)}")
        if case["failures"]:
            failed = text_table(("detector", "reason"), list(case["failures"].items()))
            parts.append(f"Detectors that could not be evaluated\n{failed}")
        parts += [f"{title}, %\n{ablation(case, name)}" for name, title in ABLATIONS.items()]
    return "\n\n".join([*parts, f"Summary: AUROC / FPR95, %\n{summary(cases)}"])


def summary(cases: Sequence[Mapping[str, Any]]) -> str:
    """AUROC / FPR95 of far and near for each detector and case."""
    columns = [(c, group) for c in cases for group, _ in _shown(c)[:: len(MEASURED)]]
    detectors = dict.fromkeys(d for c in cases for d in (*c["results"].results, *c["failures"]))
    rows = []
    for name in detectors:
        means = [case["results"].averages.get(name, {}).get(group) for case, group in columns]
        cells = [_both(mean) if mean else Cell("failed") for mean in means]
        rows.append([Cell(name), *cells])
    titles = (f"{case['network']}, {case['results'].protocol}: {group}" for case, group in columns)
    return plain(Table("", ("detector", *titles), tuple(mark_best(rows, "auroc"))))


def _both(mean: Mapping[str, float]) -> Cell:
    return Cell(f"{percent(mean['auroc'])} / {percent(mean['fpr95'])}", value=mean["auroc"])


def over_reference(case: Mapping[str, Any]) -> str:
    """Differences from MSP, with paired intervals."""
    rows = []
    for name, row in case["over_msp"].items():
        cells = []
        for group, metric in _shown(case):
            difference, low, high = (100 * value for value in row[group][metric])
            cells.append(f"{difference:+.2f} ({low:+.1f} – {high:+.1f})")
        rows.append([name, *cells])
    return text_table(("detector", *_titles(case)), rows)


def ablation(case: Mapping[str, Any], name: str) -> str:
    """One ablation, with MSP's near AUROC beside it."""
    reference = case["results"].averages[REFERENCE].get("near")
    header = ["S&I-C", "form", "images", "channels", "shrinkage", *_titles(case)]
    header += [f"{REFERENCE}'s near AUROC", "note"]
    rows = []
    for row in (row for row in case["ablations"] if row["table"] == name):
        cells = [row["label"], row["form"]]
        if row["failure"]:
            rows.append([*cells, *["–"] * (len(header) - 3), row["failure"]])
            continue
        cells += [str(row.get(key, "–")) for key in ("images", "channels")]
        cells.append(f"{row['shrinkage']:.3g}" if "shrinkage" in row else "–")
        for group, metric in _shown(case):
            spread = f" ± {percent(row['sd'][group][metric])}" if "sd" in row else ""
            cells.append(percent(row["mean"][group][metric]) + spread)
        rows.append([*cells, "–" if reference is None else percent(reference["auroc"]), ""])
    return text_table(header, rows)


def calibrated(case: Mapping[str, Any]) -> str:
    """What was calibrated on, in a line."""
    calibration = case["calibration"]
    draws, own = calibration["draws"], calibration["disjoint_draws"]
    drawn = f"{draws} draws that share no image"
    if own < draws:
        drawn = (
            f"{draws} draws, {own} of them on images of its own; the others split the first's anew"
        )
    parts = [f"{calibration['images']:,} images of {calibration['set']}", drawn]
    return "; ".join([*parts, *filter(None, [calibration["note"]])])


def write(study: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write `study.json` and `study.txt`; returns their paths."""
    options: dict[str, Any] = {"indent": 1, "allow_nan": False, "default": Results.to_json}
    files = {
        "study.json": json.dumps(study, **options) + "\n",
        "study.txt": text(study["cases"]) + "\n",
    }
    for name, written in files.items():
        write_text(directory / name, written)
    return [directory / name for name in files]


def _shown(case: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Group and metric of each column."""
    groups = case["results"].groups.values()
    return [(group, metric) for group in ("far", "near") if group in groups for metric in MEASURED]


def _titles(case: Mapping[str, Any]) -> list[str]:
    return [f"{group} {NAMES[metric]}" for group, metric in _shown(case)]
