"""Results as JSON, CSV and Markdown files."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from si_jax.data.files import write_text
from si_jax.evaluation.metrics import METRICS
from si_jax.evaluation.results import Results
from si_jax.reporting import report


def csv_rows(results: Mapping[str, Any]) -> list[list[Any]]:
    """The header and a row for each detector and set, with fractions; None where there is none.

    Metrics of the full spectrum have columns of their own, where they were measured.
    """
    full = results.get("full_spectrum") or {}
    header = ["detector", "set", "group", "images", *METRICS]
    rows: list[list[Any]] = [header + [f"full_spectrum_{metric}" for metric in METRICS if full]]
    for detector, sets in results["results"].items():
        for name, values in sets.items():
            row = [detector, name, results["groups"][name], results["counts"][name]]
            row += [values.get(metric) for metric in METRICS]
            if full:
                row += [full["results"][detector][name].get(metric) for metric in METRICS]
            rows.append(row)
    return rows


def write(results: Results, directory: Path) -> list[Path]:
    """Write `results.json`, `results.csv` and `report.md`; returns their paths."""
    table = io.StringIO()
    for row in csv_rows(results):
        csv.writer(table).writerow(f"{v:.6f}" if isinstance(v, float) else v for v in row)
    files = {
        "results.json": json.dumps(results.to_json(), indent=2, allow_nan=False) + "\n",
        "results.csv": table.getvalue(),
    }
    for name, content in files.items():
        write_text(directory / name, content)
    return [
        *(directory / name for name in files),
        write_markdown(report.markdown(results), directory),
    ]


def write_markdown(text: str, directory: Path) -> Path:
    """Write `report.md`; returns its path."""
    path = Path(directory) / "report.md"
    write_text(path, text)
    return path
