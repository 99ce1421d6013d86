"""Runs read again, joined and compared, and what is said of broken ones."""

import re

import numpy as np
import pytest
from made_runs import make_run, minimal

from si_jax.commands import report as command
from si_jax.evaluation import metrics
from si_jax.reporting import comparison, report, runs


def test_rebuilt_report_is_the_same(directory, page, tmp_path, capsys):
    command.main([str(directory), "--out", str(tmp_path)])
    assert f"saved {tmp_path / 'report.html'}" in capsys.readouterr().out
    assert (tmp_path / "report.html").read_bytes() == page.encode()


def test_seeds_are_joined(tmp_path, capsys):
    paths = [make_run(tmp_path / f"run-seed{seed}", seed=seed) for seed in (0, 1, 2)]
    paths.append(make_run(tmp_path / "other", seed=0, shift=2.0, preprocessing="resize 32"))
    entries = comparison.join(runs.load_several(paths))
    assert [(e.name, len(e.runs)) for e in entries] == [("run (3 seeds)", 3), ("other", 1)]
    auroc = comparison.metric_tables(entries)[0]
    assert [(row[0].text, row[1].text) for row in auroc.rows[:2]] == [
        ("si-z", "run (3 seeds)"), ("si-z", "other"),
    ]  # fmt: skip
    values = [runs.load(p, scores=False).results.results["gaia-a"]["svhn"]["auroc"] for p in paths]
    (cell,) = (r[2] for r in auroc.rows if (r[0].text, r[1].text) == ("gaia-a", "run (3 seeds)"))
    assert cell.text == f"{100 * np.mean(values[:3]):.2f}"
    assert cell.detail == f"± {100 * np.std(values[:3], ddof=1):.2f}"
    (row,) = comparison.differences(entries).rows
    assert [cell.text for cell in row] == ["preprocessing", "no resize", "resize 32"]
    command.main([*map(str, paths), "--out", str(tmp_path / "out")])
    assert "run (3 seeds)" in (tmp_path / "out" / "report.html").read_text()
    assert "gaia-a" in capsys.readouterr().out


def fake(name, **changes):
    return runs.Run(name, minimal(**changes))


@pytest.mark.parametrize(
    ("changes", "joined"),
    [
        ({"seed": 1}, True),
        ({}, False),
        ({"seed": 1, "limit": 5}, False),
        ({"seed": 1, "model": {"name": "resnet8", "weights_sha256": "1"}}, False),
        ({"seed": 1, "results": {"energy": {}}}, False),
    ],
)
def test_what_counts_as_another_seed(changes, joined):
    assert len(comparison.join([fake("a"), fake("b", **changes)])) == (1 if joined else 2)


def test_seeds_in_the_names_of_checkpoints():
    made = [
        fake(f"r{i}", checkpoint=f"wrn_seed{i}",
             model={"name": "wrn", "weights_sha256": str(i)}) for i in range(3)
    ]  # fmt: skip
    (entry,) = comparison.join(made)
    assert entry.name == "r (3 seeds)"


def test_a_run_of_before_a_metric_is_read_and_compared(directory, tmp_path, monkeypatch):
    new = metrics.Metric("new", lambda counts: 0.25, True, "A new metric")
    monkeypatch.setitem(metrics.METRICS, "new", new)
    recent = make_run(tmp_path / "recent", preprocessing="resize 32")
    old, new = runs.load_several([directory, recent])
    for run, there in ((old, False), (new, True)):
        titles = [table.title for table in report.metric_tables(run.results)]
        assert any(title.startswith("A new metric") for title in titles) == there
    for run, value in ((old, None), (new, 0.25)):
        header, row, *_ = report.csv_rows(run.results)
        assert dict(zip(header, row, strict=True))["new"] == value
    entries = comparison.join([old, new])
    (table,) = (t for t in comparison.metric_tables(entries) if t.title.startswith("A new metric"))
    shown = {row[1].text: {cell.text for cell in row[2:]} for row in table.rows}
    assert shown == {old.name: {"–"}, new.name: {"25.00"}}


def test_runs_of_different_benchmarks_are_kept_apart(directory, tmp_path):
    other = make_run(tmp_path / "one", benchmark="another")
    entries = comparison.join(runs.load_several([directory, other]))
    assert [len(members) for members in comparison.sections(entries).values()] == [1, 1]
    assert len({entry.name for entry in entries}) == 2
    assert all("/one" in entry.name for entry in entries)


WRONG = {
    "gone": (lambda d: (d / "results.json").rename(d / "x"), "no run directory"),
    "cut": (lambda d: (d / "results.json").write_text("{"), "results.json is broken"),
    "binary": (lambda d: (d / "results.json").write_bytes(b"\xff\xfe\x00"), "is broken"),
    "list": (lambda d: (d / "results.json").write_text("[]"), "holds no object"),
    "key": (lambda d: (d / "results.json").write_text("{}"), "is no result of si-jax evaluate: it"),
    "missing": (lambda d: (d / "scores/msp/svhn/000000.npz").unlink(), "svhn holds no scores"),
    "broken": (
        lambda d: (d / "scores/msp/svhn/000000.npz").write_bytes(b"PK"),
        "svhn/000000.npz is no score file",
    ),
    "swapped": (
        lambda d: (d / "scores/msp/svhn/000000.npz").write_bytes(
            (d / "scores/si-z/svhn/000000.npz").read_bytes()
        ),
        "another computation",
    ),
    "shorter": (
        lambda d: (d / "scores/msp/known/000000.npz").write_bytes(
            (d / "scores/msp/svhn/000000.npz").read_bytes()
        ),
        "another computation",
    ),
    "images": (lambda d: (d / "thumbnails.npz").write_bytes(b"x"), "thumbnails.npz is broken"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_run_is_told_in_one_sentence(case, tmp_path):
    damage, message = WRONG[case]
    damage(make_run(tmp_path / "run"))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        runs.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_thumbnails_of_other_scores_or_sets_are_refused(tmp_path):
    make_run(tmp_path / "a", seed=0)
    with np.load(make_run(tmp_path / "b", seed=1) / runs.THUMBNAILS) as file:
        content = dict(file)
    for names in (content["pick_set"], np.char.add(content["pick_set"], "x")):
        np.savez(tmp_path / "a" / runs.THUMBNAILS, **content | {"pick_set": names})
        with pytest.raises(ValueError, match=r"thumbnails\.npz is of another computation"):
            runs.load(tmp_path / "a")


def test_a_file_of_a_run_stands_for_it(directory, run, tmp_path):
    assert runs.load(directory / "results.csv", scores=False).results == run.results
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt is a file of no run: beside it lies no"):
        runs.load(tmp_path / "notes.txt")


def test_directories_that_cannot_be(directory, tmp_path):
    with pytest.raises(ValueError, match="given twice"):
        command.main([str(directory), f"{directory}/"])
    with pytest.raises(ValueError, match="nothing is no run directory: there is no such directory"):
        command.main([str(tmp_path / "nothing")])
