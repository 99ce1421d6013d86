"""Rebuild the report of a finished run, or compare several runs side by side.

python scripts/report.py results/digits-published
python scripts/report.py results/seed0 results/seed1 results/other --out results/comparison

A run is the directory that scripts/evaluate.py wrote; nothing else is needed, the images neither.
Runs that differ only in their seed are joined as mean and standard deviation over the seeds.
"""

import argparse
from pathlib import Path

from si_jax import cli, comparison, html, report, runs
from si_jax.tables import plain


def main(argv: list[str] | None = None) -> None:
    """Write `report.md` and `report.html`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="+", metavar="RUN", help="directory of a finished run")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where to write; default: the run's own directory, results/comparison for several",
    )
    args = parser.parse_args(argv)
    if len(args.run) == 1:
        run = runs.load(args.run[0])
        out = Path(args.out or args.run[0])
        print(f"{report.heading(run.results)}\n\n{report.tables(run.results)}\n")
        print(f"saved {report.write_markdown(report.markdown(run.results), out)}")
        print(f"saved {html.write(run, out)}")
        return
    out = Path(args.out or "results/comparison")
    entries = comparison.join(runs.load_several(args.run))
    for title, members in comparison.sections(entries).items():
        print(title)
        for table in comparison.metric_tables(members):
            print(f"\n{table.title}\n{plain(table)}")
        print()
    print(f"saved {report.write_markdown(comparison.markdown(entries), out)}")
    print(f"saved {html.write_comparison(entries, out)}")


if __name__ == "__main__":
    cli.run(main)
