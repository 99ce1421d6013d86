"""Runs side by side; those that differ only in their seed are joined."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from si_jax.evaluation.results import Results
from si_jax.reporting import report
from si_jax.reporting.report import Cell, Table, percent
from si_jax.reporting.runs import Run

SEED = re.compile(r"(seed[ _=-]?)(\d+)", re.IGNORECASE)
NOTE = (
    "Values in per cent, the best of each column in bold. Runs that differ only in their seed are"
    " joined: mean ± standard deviation over the seeds (of the sample, n - 1)."
)
DIFFERENCES = "Settings that differ"


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a run, or several that differ only in their seed."""

    name: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Results:
        """Results of the first run, which stand for what all have in common."""
        return self.runs[0].results


def join(runs: Sequence[Run]) -> list[Entry]:
    """Join the runs that differ only in seeds, `results.seed` and any in a checkpoint's name."""
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        kinds.setdefault(_kind(run.results), []).append(run)
    entries = []
    for members in kinds.values():
        seeds = {(run.results.seed, *SEED.findall(run.results.checkpoint)) for run in members}
        if len(members) > 1 and len(seeds) == len(members):
            name = _common([run.name for run in members])
            entries.append(Entry(f"{name} ({len(members)} seeds)", tuple(members)))
        else:
            entries += [Entry(run.name, (run,)) for run in members]
    return entries


def sections(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Title -> the entries that can be compared: those of one benchmark, protocol and ID set."""
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        run = entry.first
        title = f"{run.benchmark} ({run.protocol}), in-distribution set {run.in_distribution}"
        alike.setdefault(title, []).append(entry)
    return alike


def metric_tables(entries: Sequence[Entry]) -> list[Table]:
    """One table per metric: detectors and runs by sets and averages, in per cent."""
    columns = list(dict.fromkeys(c for entry in entries for c in report.columns(entry.first)))
    detectors = dict.fromkeys(d for entry in entries for d in entry.first.results)
    lines = [(d, e) for d in detectors for e in entries if d in e.first.results]
    header = ("detector", "run", *(column.title for column in columns))
    shown = []
    for m in report.titles():
        rows = [(Cell(d), Cell(e.name), *(_joined(d, e, c, m) for c in columns)) for d, e in lines]
        shown.append(report.metric_table(m, header, rows, stubs=2))
    return shown


def overview(entries: Sequence[Entry]) -> Table:
    """What the runs are, a line for each entry."""
    header = ("run", "seeds", "model", "checkpoint", "accuracy", "images per set", "directories")
    rows = []
    for entry in entries:
        counts = sorted(entry.first.counts.values())
        mean, spread = _mean([run.results.accuracy for run in entry.runs])
        accuracy = "unknown" if mean is None else f"{mean:.2%}" + f" ± {spread}%" * bool(spread)
        cells = (
            entry.name,
            ", ".join(str(run.results.seed) for run in entry.runs),
            entry.first.model["name"],
            ", ".join(dict.fromkeys(run.results.checkpoint for run in entry.runs)),
            accuracy,
            " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1]))),
            ", ".join(run.name for run in entry.runs),
        )
        rows.append(tuple(map(Cell, cells)))
    return Table("Runs", header, tuple(rows), text=True)


def differences(entries: Sequence[Entry]) -> Table | None:
    """The settings that entries share and differ in, a line each; None where there are none."""
    every = [_flat(entry.first) for entry in entries]
    keys = list(dict.fromkeys(key for flat in every for key in flat))
    rows = [
        tuple(map(Cell, (key, *(flat.get(key, "–") for flat in every))))
        for key in keys
        if len({flat[key] for flat in every if key in flat}) > 1
    ]
    header = ("setting", *(entry.name for entry in entries))
    return Table("", header, tuple(rows), text=True) if rows else None


def _common(names: Sequence[str]) -> str:
    """What the names begin with, less a word for the seed; the first name if that is nothing."""
    alike = [len(set(letters)) == 1 for letters in zip(*names, strict=False)]
    prefix = names[0][: (*alike, False).index(False)]
    return re.sub(r"[-_. ]*(seed)?[-_. =]*$", "", prefix) or names[0]


def _kind(run: Results) -> str:
    """What two runs that differ only in their seed have in common."""
    named = SEED.search(run.checkpoint)
    model = {k: v for k, v in run.model.items() if not named or k != "weights_sha256"}
    names = ("benchmark", "protocol", "preprocessing", "in_distribution", "groups", "limit")
    facts = {name: getattr(run, name) for name in (*names, "counts", "absent")}
    checkpoint = SEED.sub(r"\1*", run.checkpoint)
    settings = re.sub(r'"seed": \d+', "", json.dumps(run.settings, sort_keys=True))
    return json.dumps([facts, model, checkpoint, settings, sorted(run.results)], sort_keys=True)


def _joined(detector: str, entry: Entry, column: report.Column, m: str) -> Cell:
    """The mean over an entry's runs and their standard deviation; nothing if one has no value."""
    if column not in report.columns(entry.first):
        return Cell(percent(None))
    cells = [report.cell(run.results, detector, column, m) for run in entry.runs]
    mean, spread = _mean([cell.value for cell in cells])
    return Cell(percent(mean), f"± {spread}" if spread else "", value=mean)


def _mean(values: Sequence[float | None]) -> tuple[float | None, str]:
    """The mean, None if a value is; and the standard deviation in per cent, '' of one value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, ""
    spread = percent(float(np.std(known, ddof=1))) if len(known) > 1 else ""
    return float(np.mean(known)), spread


def _flat(run: Results) -> dict[str, str]:
    """Name -> value of everything that a run was given."""
    names = ("benchmark", "protocol", "preprocessing", "limit")
    facts = {name: getattr(run, name) for name in names}
    facts |= {f"model: {k}": v for k, v in run.model.items() if k != "weights_sha256"}
    facts["model: weights"] = str(run.model.get("weights_sha256", ""))[:12]
    facts |= {f"{d}: {k}": v for d in run.results for k, v in run.settings.get(d, {}).items()}
    facts |= {f"version of {k}": v for k, v in run.versions.items()}
    return {name: report.listed(value) for name, value in facts.items()}
