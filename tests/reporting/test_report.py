"""A run's tables, and what is said beside them."""

import dataclasses
import re

import numpy as np

from si_jax.evaluation import metrics
from si_jax.reporting import report


def test_every_metric_has_its_table_with_the_groups_apart(run):
    shown = report.metric_tables(run.results)
    assert [table.title.split(",")[0] for table in shown] == [
        "AUROC", "FPR95", "FPR95", "AUPR", "AUPR", "Detection error",
    ]  # fmt: skip
    assert shown[0].header == (
        "detector", "svhn (far)", "places (far)", "mean of these 2 (far)", "near<b>|* (near)",
    )  # fmt: skip
    assert (
        report.metric_tables(dataclasses.replace(run.results, incomplete=[]))[0].header[3]
        == "far average"
    )


def test_the_best_of_each_column_is_marked(run):
    titles = report.titles()
    measured = [m for m in titles if not metrics.METRICS[m].needs_correct]  # no labels here
    for metric, table in zip(measured, report.metric_tables(run.results), strict=True):
        choose = np.argmax if metrics.METRICS[metric].higher_is_better else np.argmin
        for place, name in ((1, "svhn"), (2, "places"), (4, "near<b>|*")):
            values = [run.results.results[d][name][metric] for d in run.detectors]
            marked = [row[place].best for row in table.rows]
            assert marked[choose(values)]
            shown = {row[place].text for row in table.rows if row[place].best}
            assert shown == {f"{100 * values[choose(values)]:.2f}"}


def test_equal_values_are_all_best_and_one_row_is_not():
    for metric, values, expected in (
        ("auroc", [0.5, 0.500001, 0.4], [True, True, False]),
        ("auroc", [0.5], [False]),
        ("fpr95", [None, 0.1, 0.2], [False, True, False]),
    ):
        rows = [[report.Cell("", value=value)] for value in values]
        assert [row[0].best for row in report.mark_best(rows, metric)] == expected


def test_averages_have_their_own_intervals(run):
    means = {d: {"far": {"auroc": [0.4, 0.6]}} for d in run.detectors}
    both = dataclasses.replace(run.results, average_intervals=means)
    for results, of_average in ((run.results, ""), (both, "(40.0–60.0)")):
        auroc, fpr95, *_ = report.metric_tables(results)
        assert auroc.rows[0][1].detail == "(25.0–75.0)" and auroc.rows[0][3].detail == of_average
        assert fpr95.rows[0][1].detail == fpr95.rows[0][3].detail == ""


def test_the_headline_names_the_best_of_each_group(run):
    sentence = report.headline(run.results)
    for group in ("far", "near"):
        rows = {d: run.results.averages[d][group]["auroc"] for d in run.detectors}
        best = max(rows, key=rows.get)
        assert re.search(rf"{best} is best .*\(AUROC {100 * rows[best]:.2f} %", sentence)
    assert sentence.startswith("Of 3 detectors, ")
