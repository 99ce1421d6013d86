import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from si_jax.data.image_set import ImageSet
from si_jax.evaluation import measuring, metrics
from si_jax.evaluation.results import Results
from si_jax.evaluation.store import Store
from si_jax.reporting import comparison, extremes, figures, files, html, panels, report, runs

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
SETS = {"known": 60, "svhn": 40, "places": 30, "near<b>|*": 25}
GROUPS = {"svhn": "far", "places": "far", "near<b>|*": "near"}
TAPS = ["bn1", "layer1_0/bn1", "layer2_0/bn1"]
SETTINGS = {"si-z": {"steps": 2, "taps": TAPS}, "gaia-a": {"taps": TAPS[1:]}, "msp": {}}


def image_set(name, size):
    def load(index):
        shade = sum(name.encode()) % 97 + index
        return np.full((150, 120, 3), shade % 256, np.uint8), -1

    return ImageSet(name, size, name, load, lambda index: f"{name}/{index}.png")


def make_run(directory, *, seed=0, shift=0.0, **changes):
    """A small finished run, as scripts/evaluate.py leaves it."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, size in SETS.items():
        arrays[name] = {}
        for number, detector in enumerate(SETTINGS):
            scores = rng.normal((name == "known") * (1 + shift) * number, 1, size)
            found = {"score": scores.astype(np.float32), "label": np.full(size, -1)}
            found["index"] = np.arange(size)
            if detector == "si-z":
                found["tap_density"] = rng.random((size, 3)).astype(np.float32)
            if detector == "gaia-a":
                found["tap_average"] = rng.random((size, 2)).astype(np.float32)
                found["outer"] = 1 + rng.random(size).astype(np.float32)
            arrays[name][detector] = found
            Store(directory / "scores").save(detector, name, "key", found)
    results = {
        d: {n: metrics.evaluate(arrays["known"][d]["score"], arrays[n][d]["score"]) for n in GROUPS}
        for d in SETTINGS
    }
    intervals = {d: {n: {"auroc": [0.25, 0.75]} for n in GROUPS} for d in SETTINGS}
    content = {
        "results": results,
        "averages": {d: measuring.averages(rows, GROUPS) for d, rows in results.items()},
        "intervals": intervals,
        "bootstrap": {"resamples": 200, "seed": 0, "level": 0.95},
        "groups": GROUPS,
        "counts": SETS,
        "in_distribution": "known",
        "accuracy": 0.9 + 0.01 * seed,
        "model": {"name": "resnet8", "parameters": 78042, "classes": 10, "input_size": [32, 32],
                  "mean": [0.5] * 3, "std": [0.5] * 3, "weights_sha256": "ab"},
        "settings": SETTINGS,
        "benchmark": "made-up",
        "protocol": "published",
        "preprocessing": "no resize",
        "checkpoint": "<script>alert(1)</script>",
        "seed": seed,
        "limit": None,
        "absent": {"lsun": "places"},
        "incomplete": ["far"],
        "versions": {"python": "3.11"},
        "command": "python scripts/evaluate.py --out a&b",
        "seconds": {"total": 1.5},
    } | changes  # fmt: skip
    files.write(Results.from_json(content), directory)
    sets = [image_set(name, size) for name, size in SETS.items()]
    extremes.save(directory, arrays, sets, lambda image: image[:120], list(SETTINGS))
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def run(directory):
    return runs.load(directory)


@pytest.fixture(scope="module")
def page(run):
    return html.run_page(run)


def script(*arguments):
    command = [sys.executable, ROOT / "scripts" / "report.py", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT,
        env=ENVIRONMENT,
    )  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------


def test_every_metric_has_its_table_with_the_groups_apart(run):
    tables = report.metric_tables(run.results)
    assert [table.title.split(",")[0] for table in tables] == [
        "AUROC", "FPR95", "FPR95", "AUPR", "AUPR", "Detection error",
    ]  # fmt: skip
    assert tables[0].header == (
        "detector", "svhn (far)", "places (far)", "mean of these 2 (far)", "near<b>|* (near)",
    )  # fmt: skip
    assert report.metric_tables({**run.results, "incomplete": []})[0].header[3] == "far average"


def test_the_best_of_each_column_is_marked(run):
    titles = report.metric_titles()
    measured = [m for m in titles if not metrics.METRICS[m].needs_correct]  # no labels here
    for metric, table in zip(measured, report.metric_tables(run.results), strict=True):
        choose = np.argmax if metrics.METRICS[metric].higher_is_better else np.argmin
        for place, name in ((1, "svhn"), (2, "places"), (4, "near<b>|*")):
            values = [run.results["results"][d][name][metric] for d in run.detectors]
            marked = [row[place].best for row in table.rows]
            assert marked[choose(values)]
            shown = {row[place].text for row in table.rows if row[place].best}
            assert shown == {f"{100 * values[choose(values)]:.2f}"}


def test_equal_values_are_all_best_and_one_row_is_not(run):
    rows = [[report.Cell("1")], [report.Cell("2")], [report.Cell("3")]]
    marked = report.mark_best(rows, [[0.5], [0.500001], [0.4]], "auroc")
    assert [row[0].best for row in marked] == [True, True, False]
    assert not report.mark_best(rows[:1], [[0.5]], "auroc")[0][0].best
    marked = report.mark_best(rows, [[None], [0.1], [0.2]], "fpr95")
    assert [row[0].best for row in marked] == [False, True, False]


def test_averages_have_their_own_intervals(run):
    means = {d: {"far": {"auroc": [0.4, 0.6]}} for d in run.detectors}
    auroc, fpr95, *_ = report.metric_tables({**run.results, "average_intervals": means})
    assert auroc.rows[0][3].detail == "(40.0–60.0)"
    assert fpr95.rows[0][3].detail == ""


def test_intervals_of_sets_are_not_those_of_averages(run):
    auroc, fpr95, *_ = report.metric_tables(run.results)
    assert auroc.rows[0][1].detail == "(25.0–75.0)"
    assert auroc.rows[0][3].detail == fpr95.rows[0][1].detail == ""


def test_markdown(directory):
    text = (directory / "report.md").read_text()
    assert "| near\\<b\\>\\|\\* (near) |" in text
    assert "<script>" not in text
    assert re.search(r"\| \*\*\d+\.\d\d\*\* \(25\.0–75\.0\) \|", text)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 6 * (2 + len(SETTINGS))
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {6}
    assert "lsun (places stands in)" in text


# --- pictures and the page ------------------------------------------------------------------------


def test_page_is_whole_and_loads_nothing(page):
    class Reader(HTMLParser):
        open_tags, sources, links = [], [], []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img", "br"):
                self.open_tags.append(tag)
            found = dict(attributes)
            self.sources += [found[key] for key in ("src",) if key in found]
            self.links += [found[key] for key in ("href",) if key in found]

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    reader = Reader()
    reader.feed(page)
    assert reader.open_tags == []
    assert len(reader.sources) == 2 + len(SETTINGS) + 2 + len(SETS)
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert reader.links
    assert all(f'id="{link[1:]}"' in page for link in reader.links)
    assert not re.search(r"https?://|@import|url\(|<link|<script", page)


def test_page_escapes_what_users_named(page):
    assert "near&lt;b&gt;|*" in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "a&amp;b" in page


def test_page_tells_the_facts(page):
    for text in ("resnet8, 78,042 parameters", "made-up, protocol published", "90.00%", "no resize",
                 "known 60", "lsun (places stands in)", "python 3.11", "steps=2"):  # fmt: skip
        assert text in page
    warnings = re.findall(r'<p class="warning">(.*?)</p>', page)
    assert len(warnings) == 1
    assert "lsun (places stands in)" in warnings[0]


def test_page_warns_and_does_without_images(run):
    results = {**run.results, "warning": "near chance"}
    page = html.run_page(runs.Run("x", results, run.arrays, {}))
    assert "near chance" in page
    assert "No images were kept" in page


def test_figures_leave_matplotlib_alone(run):
    import matplotlib

    before = dict(matplotlib.rcParams)
    png = panels.encode(figures.histograms(run, "msp"), dpi=50)
    assert png.startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_only_when_it_draws():
    code = (
        "import sys, si_jax.reporting.html; assert 'matplotlib' not in sys.modules;"
        "import si_jax.reporting.figures; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)


def test_figures_of_constant_scores_of_one_image_each(tmp_path):
    one = {"score": np.ones(1, np.float32), "index": np.arange(1)}
    row = metrics.evaluate(one["score"], one["score"])
    results = {"results": {"msp": {"b": row}}, "groups": {"b": "far"}, "in_distribution": "a",
               "settings": {}}  # fmt: skip
    run = runs.Run("x", results, {"a": {"msp": one}, "b": {"msp": one}})
    for figure in (figures.histograms(run, "msp"), figures.roc_curves(run)):
        assert panels.encode(figure, dpi=40)
    assert figures.tap_kind(run, "msp") is None


def test_roc_curve_is_thinned_but_true():
    rng = np.random.default_rng(0)
    known, novel = rng.normal(1, 1, 2000), np.round(rng.normal(0, 1, 1500), 1)
    fpr, tpr = figures._roc(known, novel)
    assert len(fpr) <= figures.POINTS
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(metrics.auroc(known, novel), abs=2e-3)
    thresholds = [*known, *novel, np.inf]
    near = np.array([(np.mean(novel >= t), np.mean(known >= t)) for t in thresholds])
    for point in zip(fpr, tpr, strict=True):
        assert np.abs(near - point).sum(axis=1).min() < 1e-9


def test_auroc_of_a_tap():
    rng = np.random.default_rng(0)
    known, novel = rng.integers(0, 9, 50) * 1.0, rng.integers(2, 12, 40) * 1.0
    assert figures._auroc(np.sort(known), novel) == pytest.approx(metrics.auroc(-known, -novel))


# --- thumbnails -----------------------------------------------------------------------------------


def test_thumbnails_are_the_extremes(run):
    for name in SETS:
        for detector in SETTINGS:
            scores = run.scores(name, detector)
            order = np.argsort(scores)
            for end, expected in (("most", order[::-1][:6]), ("least", order[:6])):
                picks = run.picks[name, detector, end]
                assert [pick.index for pick in picks] == list(expected)
                assert [pick.score for pick in picks] == list(scores[expected])
                assert {pick.image.shape for pick in picks} == {(96, 96, 3)}
                shade = sum(name.encode()) % 97
                assert [int(pick.image[5, 5, 0]) for pick in picks] == [shade + i for i in expected]
                assert picks[0].ident == f"{name}/{expected[0]}.png"


def test_thumbnails_are_kept_once_and_small_images_not_enlarged(tmp_path):
    score = np.arange(4, dtype=np.float32)
    arrays = {"s": {d: {"score": score, "index": np.arange(4)} for d in ("a", "b")}}
    loaded = []

    def load(index):
        loaded.append(index)
        return np.zeros((8, 9, 3), np.uint8), -1

    images = ImageSet("s", 4, "s", load, str)
    path = extremes.save(tmp_path, arrays, [images], lambda image: image, ["a", "b"])
    assert sorted(loaded) == [0, 1, 2, 3]
    with np.load(path, allow_pickle=False) as file:
        assert file["image"].shape == (4, 8, 9, 3)
    assert len(extremes.load(tmp_path)["s", "b", "most"]) == 4


# --- rebuilding and comparing ---------------------------------------------------------------------


def test_rebuilt_report_is_the_same(directory, page, tmp_path):
    done = script(directory, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.md").read_bytes() == (directory / "report.md").read_bytes()
    assert "saved" in done.stdout
    assert (tmp_path / "report.html").read_bytes() == page.encode()


def test_seeds_are_joined(tmp_path):
    paths = [make_run(tmp_path / f"run-seed{seed}", seed=seed) for seed in (0, 1, 2)]
    paths.append(make_run(tmp_path / "other", seed=0, shift=2.0, preprocessing="resize 32"))
    entries = comparison.join(runs.load_several(paths))
    assert [(e.name, len(e.runs)) for e in entries] == [("run (3 seeds)", 3), ("other", 1)]
    auroc = comparison.metric_tables(entries)[0]
    assert [(row[0].text, row[1].text) for row in auroc.rows[:2]] == [
        ("si-z", "run (3 seeds)"), ("si-z", "other"),
    ]  # fmt: skip
    values = [
        runs.load(p, scores=False).results["results"]["gaia-a"]["svhn"]["auroc"] for p in paths
    ]
    (cell,) = (r[2] for r in auroc.rows if (r[0].text, r[1].text) == ("gaia-a", "run (3 seeds)"))
    assert cell.text == f"{100 * np.mean(values[:3]):.2f}"
    assert cell.detail == f"± {100 * np.std(values[:3], ddof=1):.2f}"
    (row,) = comparison.differences(entries).rows
    assert [cell.text for cell in row] == ["preprocessing", "no resize", "resize 32"]
    done = script(*paths, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "run (3 seeds)" in (tmp_path / "out" / "report.md").read_text()
    assert "run (3 seeds)" in (tmp_path / "out" / "report.html").read_text()
    assert "gaia-a" in done.stdout


def fake(name, **changes):
    base = {
        "results": {"msp": {}}, "settings": {"msp": {"seed": changes.get("seed", 0)}},
        "model": {"name": "resnet8", "weights_sha256": "0"}, "checkpoint": "c", "seed": 0,
    }  # fmt: skip
    return runs.Run(name, base | changes)


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


def test_runs_of_different_benchmarks_are_kept_apart(directory, tmp_path):
    other = make_run(tmp_path / "one", benchmark="another")
    entries = comparison.join(runs.load_several([directory, other]))
    assert [len(members) for members in comparison.sections(entries).values()] == [1, 1]
    assert len({entry.name for entry in entries}) == 2
    assert all("/one" in entry.name for entry in entries)


# --- wrong input ----------------------------------------------------------------------------------


def edit(directory, change):
    path = directory / "results.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


WRONG = {
    "gone": (lambda d: (d / "results.json").rename(d / "x"), "no run directory"),
    "cut": (lambda d: (d / "results.json").write_text("{"), "results.json is broken"),
    "binary": (lambda d: (d / "results.json").write_bytes(b"\xff\xfe\x00"), "is broken"),
    "list": (lambda d: (d / "results.json").write_text("[]"), "holds no object"),
    "key": (lambda d: edit(d, lambda c: c.pop("groups")), "lacks 'groups'"),
    "type": (lambda d: edit(d, lambda c: c.update(counts=3)), "'counts' is of the wrong type"),
    "empty": (lambda d: edit(d, lambda c: c.update(results={})), "no detector"),
    "sets": (lambda d: edit(d, lambda c: c["results"]["msp"].pop("svhn")), "detector 'msp'"),
    "number": (
        lambda d: edit(d, lambda c: c["results"]["msp"]["svhn"].update(auroc="x")),
        "'msp' on 'svhn'",
    ),
    "average": (lambda d: edit(d, lambda c: c["averages"].pop("msp")), "averages of detector"),
    "missing": (lambda d: (d / "scores/msp/svhn.npz").unlink(), "svhn.npz is missing"),
    "broken": (lambda d: (d / "scores/msp/svhn.npz").write_bytes(b"PK"), "is no score file"),
    "swapped": (
        lambda d: (d / "scores/msp/svhn.npz").write_bytes(
            (d / "scores/si-z/svhn.npz").read_bytes()
        ),
        "another computation",
    ),
    "shorter": (
        lambda d: (d / "scores/msp/known.npz").write_bytes(
            (d / "scores/msp/svhn.npz").read_bytes()
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


def test_thumbnails_of_other_scores_are_refused(tmp_path):
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1)
    (tmp_path / "a" / extremes.FILE).write_bytes((tmp_path / "b" / extremes.FILE).read_bytes())
    with pytest.raises(ValueError, match=r"thumbnails\.npz is of another computation"):
        runs.load(tmp_path / "a")


def test_script_ends_with_status_2(tmp_path):
    done = script(tmp_path / "nothing")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path / 'nothing'} is no run directory: there is no such directory\n"
    )


def test_the_same_run_twice(directory):
    with pytest.raises(ValueError, match="given twice"):
        runs.load_several([directory, f"{directory}/"])


# --- the first screen -----------------------------------------------------------------------------


def test_the_answer_names_the_best_of_each_group(run):
    sentence = report.answer(run.results)
    for group in ("far", "near"):
        rows = {d: run.results["averages"][d][group]["auroc"] for d in run.detectors}
        best = max(rows, key=rows.get)
        assert re.search(rf"{best} is best .*\(AUROC {100 * rows[best]:.2f} %", sentence)
    assert sentence.startswith("Of 3 detectors, ")


def test_the_page_answers_first_and_tells_facts_last(page, run):
    answer = page.index('class="answer"')
    assert answer < page.index("<figure>") < page.index('id="results"') < page.index('id="facts"')
    assert page.index('id="settings"') < page.index('id="facts"')


def test_overview_shows_every_detector_on_every_set(run):
    figure = figures.overview(run)
    assert len(figure.axes) == len(GROUPS)
    for axes, name in zip(figure.axes, GROUPS, strict=True):
        (points,) = axes.lines[:1]
        shown = sorted(points.get_xdata())
        assert shown == pytest.approx(
            sorted(100 * run.results["results"][d][name]["auroc"] for d in run.detectors)
        )


def test_curves_that_coincide_are_named(run):
    assert figures.coincidences(run) == []
    arrays = {name: {**found, "gaia-a": found["si-z"]} for name, found in run.arrays.items()}
    (sentence,) = figures.coincidences(runs.Run("x", run.results, arrays, {}))
    assert "si-z and gaia-a coincide" in sentence


def test_msp_has_an_axis_of_log_odds():
    p = np.array([0.5, 0.9, 1.0], np.float32)
    assert figures.log_odds(p) == pytest.approx([0, np.log(9), np.log(2.0**24 - 1)], rel=1e-5)


def test_gallery_says_class_and_verdict(run):
    arrays = {}
    for name, size in SETS.items():
        labels = np.arange(size) % 7 if name == "known" else np.full(size, -1)
        predicted = {"score": np.full(size, 3), "label": labels, "index": np.arange(size)}
        arrays[name] = {**run.arrays[name], "prediction": predicted}
    shown = runs.Run("x", run.results, arrays, run.picks)
    texts = [text.get_text() for text in figures.gallery(shown, "known").axes[0].texts]
    assert any("accepted\nclass 3, true" in text for text in texts)
    assert any("rejected" in text for text in texts)
    texts = [text.get_text() for text in figures.gallery(shown, "svhn").axes[0].texts]
    assert any(text.endswith("class 3") for text in texts)


def test_names_that_matplotlib_would_take_for_mathematics():
    figure, (axes,) = panels.grid(1, height=2.0)
    name = r"$\frac{$ and \udc80"
    axes.set_title(name)
    axes.set_xlabel(name)
    axes.plot([0, 1], label=name)
    axes.legend()
    figure.suptitle(name)
    assert panels.encode(figure).startswith(b"\x89PNG")


def test_a_name_that_is_no_text_is_written_as_an_escape(tmp_path):
    assert files.write_markdown("a \udc80 name", tmp_path).read_text() == "a \\udc80 name"
