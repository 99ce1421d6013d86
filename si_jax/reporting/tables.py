"""Tables as data, with the best values marked, and as plain text and HTML."""

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from si_jax.evaluation.metrics import METRICS

PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("si_jax.reporting"),
    autoescape=lambda name: name is None or name.endswith(".html"),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)
"""The templates of pages, which escape what they are given."""


@dataclass(frozen=True)
class Cell:
    """One cell of a `Table`: its text, what follows in small print, and whether it is the best."""

    text: str
    detail: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it shows.
        header: (columns,) titles.
        rows: (rows,) of (columns,) cells.
        stubs: how many columns, from the first one on, name the rows.
        text: whether the other columns are words, not numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    stubs: int = 1
    text: bool = False


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows)])


def plain(table: Table) -> str:
    """A table as text, the best values marked by a star."""
    rows = [
        [f"{cell.text} {cell.detail}".strip() + " *" * cell.best for cell in row]
        for row in table.rows
    ]
    return text_table(table.header, rows)


def mark_best(
    rows: Sequence[Sequence[Cell]], values: Sequence[Sequence[float | None]], metric: str
) -> list[tuple[Cell, ...]]:
    """The rows with each column's best value marked, and all that read so; none of one row."""
    if len(rows) < 2:
        return [tuple(row) for row in rows]
    choose = max if METRICS[metric].higher_is_better else min
    best = [
        choose((percent(v) for v in column if v is not None), key=float, default=None)
        for column in zip(*values, strict=True)
    ]
    return [
        tuple(
            Cell(c.text, c.detail, v is not None and percent(v) == b)
            for c, v, b in zip(row, numbers, best, strict=True)
        )
        for row, numbers in zip(rows, values, strict=True)
    ]


def percent(fraction: float | int) -> str:
    """A fraction as it is printed, in per cent."""
    return f"{100 * fraction:.2f}"


def arrow(metric: str) -> str:
    """Which way a metric is better."""
    return "higher is better" if METRICS[metric].higher_is_better else "lower is better"


def html_table(table: Table) -> str:
    """A table under its title, as HTML without a style of its own."""
    source = '{% from "macros.html" import table %}{{ table(shown) }}'
    return PAGES.from_string(source).render(shown=table)
