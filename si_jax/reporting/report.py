"""Results as text tables and Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from si_jax.evaluation.metrics import METRICS
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
    lines = [heading(report)]
    if warning := report.get("warning"):
        lines.append(f"WARNING: {warning}")
    lines += ["", tables(report)]
    if full := full_spectrum(report):
        lines += ["", f"full spectrum: in-distribution {full['in_distribution']}", tables(full)]
    notes = "\n".join(tie_notes(report))
    return "\n".join(lines) + (f"\n\n{notes}" if notes else "")


def full_spectrum(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same run with shifted sets counted as in-distribution; None where there are none."""
    if not report.get("full_spectrum"):
        return None
    id_sets = [report["in_distribution"], *report["shifted"]]
    changed = {"in_distribution": ", ".join(id_sets), "intervals": {}, "average_intervals": {}}
    return {**report, **changed, **report["full_spectrum"], "full_spectrum": {}}


def tie_notes(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each detector whose scores tie at the threshold of FPR95, where it matters."""
    shown = []
    for detector, sets in report.get("ties", {}).items():
        if _constant(report, detector, sets):
            shown.append(
                f"{detector} gives every image of every set the same score: it tells nothing on"
                " this network, and its FPR95 means nothing. Use another detector."
            )
            continue
        shares = ", ".join(f"{100 * n / report['counts'][s]:.0f} % of {s}" for s, n in sets.items())
        shown.append(
            f"{detector}: {shares} have the very score of the threshold at which 95 % of the"
            " in-distribution images are kept. FPR95 in the published convention counts them as"
            " rejected; if they were kept, it would be higher by as much."
        )
    return shown


def _constant(report: Mapping[str, Any], detector: str, tied: Mapping[str, int]) -> bool:
    """Whether all scores are the same: all tie, with those in distribution too."""
    return all(
        tied.get(name) == report["counts"][name] and row["auroc"] == 0.5
        for name, row in report["results"][detector].items()
    )


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


def heading(report: Mapping[str, Any]) -> str:
    """What was evaluated, in a few lines."""
    model, counts = report["model"], report["counts"]
    id_set = report["in_distribution"]
    accuracy = report["accuracy"]
    lines = [
        f"benchmark {report['benchmark']}, protocol {report['protocol']}, seed {report['seed']}",
        f"model {model['name']} ({model['parameters']:,} parameters, checkpoint"
        f" {report['checkpoint']})",
        f"in-distribution {id_set}: {counts[id_set]} images, accuracy "
        + ("unknown (no labels)" if accuracy is None else f"{accuracy:.2%}"),
    ]
    for name, share in report.get("shifted", {}).items():
        told = "unknown (no labels)" if share is None else f"{share:.2%}"
        lines.append(f"shifted {name}: {counts[name]} images, accuracy {told}")
    if errors := report.get("calibration_error"):
        told = ", ".join(f"{name} {error:.2%}" for name, error in errors.items())
        lines.append(f"expected calibration error: {told}")
    for name, images in report.get("unreadable", {}).items():
        lines.append(f"left out of {name}: {_left_out(images)}")
    for name, stand_in in report.get("absent", {}).items():
        lines.append(f"absent: {name}" + (f"; {stand_in} stands in" if stand_in else ""))
    lines += [f"note: {note}" for note in report.get("notes", ())]
    if report.get("incomplete"):
        lines.append(f"so there is no average of the benchmark: {', '.join(report['incomplete'])}")
    return "\n".join(lines)


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
    if full := full_spectrum(report):
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


def fact_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a reader must know of a run, in order."""
    model, counts, accuracy = report["model"], report["counts"], report["accuracy"]
    size = " x ".join(map(str, model.get("input_size", ())))
    names = (report["in_distribution"], *report["groups"], *report.get("shifted", ()))
    images = ", ".join(f"{name} {counts[name]:,}" for name in names)
    seconds = report.get("seconds", {}).get("total")
    versions = report.get("versions", {})
    facts = {
        "benchmark": f"{report['benchmark']}, protocol {report['protocol']}",
        "in-distribution set": report["in_distribution"],
        "accuracy there": "unknown (no labels)" if accuracy is None else f"{accuracy:.2%}",
        "accuracy on shifted images": ", ".join(
            f"{name} {'unknown' if share is None else format(share, '.2%')}"
            for name, share in report.get("shifted", {}).items()
        ),
        "expected calibration error": ", ".join(
            f"{name} {error:.2%}" for name, error in report.get("calibration_error", {}).items()
        ),
        "model": f"{model['name']}, {model['parameters']:,} parameters"
        + (f", {model['classes']} classes" if "classes" in model else ""),
        "checkpoint": report["checkpoint"],
        "weights (SHA-256)": model.get("weights_sha256", ""),
        "preprocessing": report["preprocessing"],
        "input": f"{size} pixels",
        "normalisation": f"mean {listed(model.get('mean'))}, std {listed(model.get('std'))}",
        "images": images,
        "at most per set": "" if report.get("limit") is None else f"{report['limit']:,} (subset)",
        "unreadable": "; ".join(
            f"{name}: {_left_out(idents)}" for name, idents in report.get("unreadable", {}).items()
        ),
        "absent sets": ", ".join(_absent(report)),
        "seed": str(report["seed"]),
        "device": report.get("device", ""),
        "matrix products": f"{model['precision']} precision" if "precision" in model else "",
        "seconds": "" if seconds is None else f"{seconds:.1f} (scores already stored take none)",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "command": report.get("command", ""),
    }
    return [(name, value) for name, value in facts.items() if value]


def notes(report: Mapping[str, Any]) -> list[str]:
    """Sentences that belong beside the tables."""
    sentences = [
        "A higher score means that an image looks more in-distribution. Best values in bold."
    ]
    if draws := report.get("bootstrap"):
        sentences.append(
            "In brackets: 95 % confidence intervals by bootstrap over images"
            f" ({draws['resamples']} resamples, seed {draws['seed']})."
        )
    if full := full_spectrum(report):
        sentences.append(
            f"Full spectrum: {full['in_distribution']} are all counted as in-distribution, so that"
            " a shift of style or quality alone is to be accepted."
        )
    sentences += tie_notes(report)
    sentences += report.get("notes", ())
    return sentences


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Sentences that a reader must see before the numbers."""
    shown = []
    if warning := report.get("warning"):
        shown.append(f"{warning}.")
    if missing := report.get("incomplete"):
        groups = " and ".join(missing)
        absent = ", ".join(_absent(report))
        shown.append(
            f"Sets of the benchmark are absent, so means over the {groups} sets are not the"
            f" benchmark's averages: {absent}."
            if absent
            else f"Means over the {groups} sets are not the benchmark's averages, since sets were"
            " taken otherwise than it lists them."
        )
    return shown


def answer(report: Mapping[str, Any]) -> str:
    """The result in a sentence or two: which detector is best on which group of sets."""
    best: dict[str, list[str]] = {}
    for group in dict.fromkeys(report["groups"].values()):
        members = [name for name, its in report["groups"].items() if its == group]
        first = max(report["averages"], key=lambda d: report["averages"][d][group]["auroc"])
        row = report["averages"][first][group]
        sets = f"the {len(members)} {group} sets" if len(members) > 1 else f"{members[0]} ({group})"
        values = f"AUROC {percent(row['auroc'])} %, FPR95 {percent(row['fpr95'])} %"
        best.setdefault(first, []).append(f"on {sets} ({values})")
    id_set, count = report["in_distribution"], len(report["results"])
    if not best:
        return f"{id_set} was scored; there is no out-of-distribution set to tell it from."
    told = "; ".join(
        f"{name} {'is best' if count > 1 else 'was evaluated'} {' and '.join(places)}"
        for name, places in best.items()
    )
    lead = f"Of {count} detectors, " if count > 1 else ""
    return f"{lead}{told}. In-distribution is {id_set}."


def setting_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(detector, its settings) of each detector."""
    return [
        (name, ", ".join(f"{k}={listed(v)}" for k, v in report["settings"].get(name, {}).items()))
        for name in report["results"]
    ]


def _left_out(images: Sequence[str]) -> str:
    shown = ", ".join(images[:3]) + (", ..." if len(images) > 3 else "")
    return f"{len(images)} unreadable images ({shown})"


def _absent(report: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} ({stand_in} stands in)" if stand_in else name
        for name, stand_in in report.get("absent", {}).items()
    ]


def listed(value: Any) -> str:
    """A setting's value as text."""
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)


def markdown(report: Mapping[str, Any]) -> str:
    """A run's facts and tables as Markdown."""
    parts = [f"# {escape(title(report))}"]
    parts += [f"**Warning:** {escape(warning)}" for warning in warnings(report)]
    parts += [escape(answer(report)), *map(escape, notes(report))]
    parts += map(markdown_table, metric_tables(report))
    parts += ["## Settings", markdown_facts(setting_rows(report))]
    parts += ["## Facts", markdown_facts(fact_rows(report))]
    return "\n\n".join(parts) + "\n"


def title(report: Mapping[str, Any]) -> str:
    """A run in a few words."""
    return (
        f"Out-of-distribution detection: {report['benchmark']} ({report['protocol']}),"
        f" {report['model']['name']}"
    )
