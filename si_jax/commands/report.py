"""Rebuild the report of a finished run, or compare several runs side by side.

si-jax report results/digits-published
si-jax report results/seed0 results/seed1 results/other --out results/comparison

A run is the directory that `si-jax evaluate` wrote, or a file in it; nothing else is needed, the
images neither. Runs that differ only in their seed are joined as mean and standard deviation over
the seeds.
"""

from pathlib import Path

from si_jax.commands.options import command
from si_jax.reporting import comparison, html, runs
from si_jax.reporting.report import plain


@command("si-jax report")
def main(run: str, /, *further: str, out: str | None = None) -> None:
    """Write `report.html`.

    Args:
        run: directory of a finished run.
        further: more of them, to compare.
        out: where to write; default: the run's own directory, results/comparison for several.
    """
    if not further:
        one = runs.load(run)
        path = html.write(one, Path(out or runs.directory_of(run)))
        print(f"{one}\n")
    else:
        entries = comparison.join(runs.load_several([run, *further]))
        path = html.write_comparison(entries, Path(out or "results/comparison"))
        for title, members in comparison.sections(entries).items():
            print(title)
            for table in comparison.metric_tables(members):
                print(f"\n{table.title}\n{plain(table)}")
            print()
    print(f"saved {path}")
