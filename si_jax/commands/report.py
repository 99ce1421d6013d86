"""Rebuild the report of a finished run, or compare several runs side by side.

si-jax report results/digits-published
si-jax report results/seed0 results/seed1 results/other --out results/comparison

A run is the directory that `si-jax evaluate` wrote; nothing else is needed, the images neither.
Runs that differ only in their seed are joined as mean and standard deviation over the seeds.
"""

from pathlib import Path

from si_jax import cli
from si_jax.reporting import comparison, files, html, report, runs
from si_jax.reporting.tables import plain


def main(argv: list[str] | None = None) -> None:
    """Write `report.md` and `report.html`."""
    parser = cli.parser("report", __doc__)
    parser.add_argument("run", nargs="+", metavar="RUN", help="directory of a finished run")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where to write; default: the run's own directory, results/comparison for several",
    )
    args = parser.parse_args(argv)
    if len(args.run) == 1:
        rebuild(args.run[0], Path(args.out or args.run[0]))
    else:
        compare(args.run, Path(args.out or "results/comparison"))


def rebuild(directory: str, out: Path) -> None:
    """Write and print one run's report."""
    run = runs.load(directory)
    saved = [files.write_markdown(report.markdown(run.results), out), html.write(run, out)]
    print(f"{run}\n")
    for path in saved:
        print(f"saved {path}")


def compare(directories: list[str], out: Path) -> None:
    """Write and print several runs side by side."""
    entries = comparison.join(runs.load_several(directories))
    markdown = comparison.markdown(entries)
    saved = [files.write_markdown(markdown, out), html.write_comparison(entries, out)]
    for title, members in comparison.sections(entries).items():
        print(title)
        for table in comparison.metric_tables(members):
            print(f"\n{table.title}\n{plain(table)}")
        print()
    for path in saved:
        print(f"saved {path}")
