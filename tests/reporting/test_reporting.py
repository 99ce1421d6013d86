"""Reports of small made runs: their tables, figures and page; runs read again and compared."""

import dataclasses
import re
import shutil
from html import escape
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from si_jax.commands import report as command
from si_jax.data.image_set import ImageSet
from si_jax.evaluation import metrics
from si_jax.evaluation.results import Results
from si_jax.evaluation.store import chunk_path, write_keyed
from si_jax.reporting import comparison, figures, html, report, runs

SETS = {"known": 60, "svhn": 40, "places": 30, "near<b>|*": 25}
GROUPS = {"svhn": "far", "places": "far", "near<b>|*": "near"}
TAPS = ["bn1", "layer1_0/bn1", "layer2_0/bn1"]
SETTINGS = {"si-z": {"steps": 2, "taps": TAPS}, "gaia-a": {"taps": TAPS[1:]}, "msp": {}}


def image_set(name, size):
    def load(index):
        shade = sum(name.encode()) % 97 + index
        return np.full((150, 120, 3), shade % 256, np.uint8), -1

    return ImageSet(name, size, name, load, lambda index: f"{name}/{index}.png")


ABOUT = {
    "benchmark": "synthetic",
    "in_distribution": "known",
    "protocol": "published",
    "preprocessing": "no resize",
    "checkpoint": "<script>alert(1)</script>",
    "accuracy": None,
    "seed": 0,
}


def minimal(**changes):
    """Results of one detector, but for what is given."""
    model = {"name": "resnet8", "weights_sha256": "0"}
    settings = {"msp": {"seed": changes.get("seed", 0)}}
    empty = {"averages": {}, "groups": {}, "counts": {}, "results": {"msp": {}}}
    return Results(**ABOUT | empty | {"model": model, "settings": settings} | changes)


def make_run(directory, *, seed=0, shift=0.0, **changes):
    """A small finished run, as si-jax evaluate leaves it."""
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
            write_keyed(chunk_path(directory / "scores", detector, name), detector, found)
    results = {
        d: {n: metrics.evaluate(arrays["known"][d]["score"], arrays[n][d]["score"]) for n in GROUPS}
        for d in SETTINGS
    }
    content = ABOUT | {
        "results": results,
        "averages": {d: metrics.averages(rows, GROUPS) for d, rows in results.items()},
        "intervals": {d: {n: {"auroc": [0.25, 0.75]} for n in GROUPS} for d in SETTINGS},
        "bootstrap": {"resamples": 200, "seed": 0, "level": 0.95},
        "groups": GROUPS,
        "counts": SETS,
        "accuracy": 0.9 + 0.01 * seed,
        "model": {"name": "resnet8", "parameters": 78042, "classes": 10, "input_size": [32, 32],
                  "mean": [0.5] * 3, "std": [0.5] * 3, "weights_sha256": "ab"},
        "settings": SETTINGS,
        "seed": seed,
        "absent": {"lsun": "places"},
        "incomplete": ["far"],
        "versions": {"python": "3.11"},
        "command": "python scripts/evaluate.py --out a&b",
        "seconds": {"total": 1.5},
    } | changes  # fmt: skip
    runs.write(Results.from_json(content), directory)
    sets = [image_set(name, size) for name, size in SETS.items()]
    runs.save_thumbnails(directory, arrays, sets, lambda image: image[:120])
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def run(directory):
    return runs.load(directory)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return html.write(run, tmp_path_factory.mktemp("page")).read_text()


def test_every_metric_has_its_table_with_the_groups_apart(run):
    shown = report.metric_tables(run.results)
    titles = ["AUROC", "FPR95", "FPR95", "AUPR", "AUPR", "Detection error"]
    assert [table.title.split(",")[0] for table in shown] == titles
    header = "detector", "svhn (far)", "places (far)", "mean of these 2 (far)", "near<b>|* (near)"
    assert shown[0].header == header
    complete = dataclasses.replace(run.results, incomplete=[])
    assert report.metric_tables(complete)[0].header[3] == "far average"


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


def weights(number):
    return {"name": "resnet8", "weights_sha256": str(number)}


@pytest.mark.parametrize(
    ("changes", "joined"),
    [
        ({"seed": 1}, True),
        ({}, False),
        ({"seed": 1, "limit": 5}, False),
        ({"seed": 1, "model": weights(1)}, False),
        ({"seed": 1, "results": {"energy": {}}}, False),
    ],
)
def test_what_counts_as_another_seed(changes, joined):
    assert len(comparison.join([fake("a"), fake("b", **changes)])) == (1 if joined else 2)


def test_seeds_in_the_names_of_checkpoints():
    made = [fake(f"r{i}", checkpoint=f"wrn_seed{i}", model=weights(i)) for i in range(3)]
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


MSP = "scores/msp/svhn/000000.npz"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.json", None, "no run directory"),
        ("results.json", b"{", "results.json is broken"),
        ("results.json", b"\xff\xfe\x00", "is broken"),
        ("results.json", b"[]", "holds no object"),
        ("results.json", b"{}", "is no result of si-jax evaluate: it"),
        (MSP, None, "svhn holds no scores"),
        (MSP, b"PK", "svhn/000000.npz is no score file"),
        (MSP, "scores/si-z/svhn/000000.npz", "another computation"),
        ("scores/msp/known/000000.npz", MSP, "another computation"),
        ("thumbnails.npz", b"x", "thumbnails.npz is broken"),
    ],
)
def test_wrong_run_is_told_in_one_sentence(file, content, message, directory, tmp_path):
    """Without the file, or with other content or another file's."""
    run = shutil.copytree(directory, tmp_path / "run")
    if content is None:
        (run / file).unlink()
    else:
        content = content if isinstance(content, bytes) else (run / content).read_bytes()
        (run / file).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        runs.load(run)
    assert "\n" not in str(caught.value)


def test_thumbnails_of_other_scores_or_sets_are_refused(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "a")
    with np.load(make_run(tmp_path / "b", seed=1) / runs.THUMBNAILS) as file:
        content = dict(file)
    for names in (content["pick_set"], np.char.add(content["pick_set"], "x")):
        np.savez(tmp_path / "a" / runs.THUMBNAILS, **content | {"pick_set": names})
        with pytest.raises(ValueError, match=r"thumbnails\.npz is of another computation"):
            runs.load(tmp_path / "a")


def test_a_file_of_a_run_stands_for_it(directory, run, tmp_path):
    assert runs.load(directory / "results.csv", scores=False).results == run.results
    (tmp_path / "notes.txt").touch()
    for given, message in (
        ([tmp_path / "notes.txt"], r"notes\.txt is a file of no run: beside it lies no"),
        ([directory, f"{directory}/"], "given twice"),
        ([tmp_path / "nothing"], "nothing is no run directory: there is no such directory"),
    ):
        with pytest.raises(ValueError, match=message):
            command.main([*map(str, given)])


def test_figures_leave_matplotlib_alone(run):
    before = dict(matplotlib.rcParams)
    png = figures.encode(figures.histograms(run, "msp"), dpi=50)
    assert png.startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_figures_of_constant_scores_of_one_image_each(tmp_path):
    one = {"score": np.ones(1, np.float32), "index": np.arange(1)}
    row = metrics.evaluate(one["score"], one["score"])
    results = minimal(results={"msp": {"b": row}}, groups={"b": "far"}, in_distribution="a")
    run = runs.Run("x", results, {"a": {"msp": one}, "b": {"msp": one}})
    for figure in (figures.histograms(run, "msp"), figures.roc_curves(run)):
        assert figures.encode(figure, dpi=40)
    assert figures.tap_kind(run, "msp") is None


def test_the_area_under_a_drawn_roc_curve_is_the_auroc():
    rng = np.random.default_rng(0)
    known, novel = rng.normal(1, 1, 200), np.round(rng.normal(0, 1, 150), 1)
    fpr, tpr = figures._roc(known, novel)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(metrics.auroc(known, novel), abs=1e-12)


def test_thumbnails_are_of_the_extremes(run):
    for name in SETS:
        for detector in SETTINGS:
            order = np.argsort(run.scores(name, detector))
            expected = [*order[::-1][:6], *order[:6]]
            picked = runs.extremes(run.arrays[name][detector])
            assert picked == [(i, run.scores(name, detector)[i]) for i in expected]
            for index in expected:
                image = run.thumbnails[name][index]
                assert image.shape == (96, 96, 3)
                assert image[5, 5, 0] == sum(name.encode()) % 97 + index


def test_thumbnails_are_kept_once_and_small_images_not_enlarged(tmp_path):
    score = np.arange(4, dtype=np.float32)
    arrays = {"s": {d: {"score": score, "index": np.arange(4)} for d in ("a", "b")}}
    loaded = []

    def load(index):
        loaded.append(index)
        return np.zeros((8, 9, 3), np.uint8), -1

    images = ImageSet("s", 4, "s", load, str)
    runs.save_thumbnails(tmp_path, arrays, [images], lambda image: image)
    assert sorted(loaded) == [0, 1, 2, 3]
    kept = runs.load_thumbnails(tmp_path)["s"]
    assert sorted(kept) == [0, 1, 2, 3] and kept[0].shape == (8, 9, 3)


def test_overview_shows_every_detector_on_every_set(run):
    """Whole: no dot is cut at 100 %, no name is cut or runs into another."""
    groups = {f"{name}, and more words than fit": group for name, group in GROUPS.items()}
    results = {"perfect": {name: {"auroc": 1.0} for name in groups}}
    for detector, rows in run.results.results.items():
        for label in (f"{detector}, a rather long label {n}" for n in "12"):
            results[label] = dict(zip(groups, rows.values(), strict=True))
    shown = runs.Run("x", dataclasses.replace(run.results, results=results, groups=groups))
    figure = figures.overview(shown)
    figures.encode(figure)
    assert len(figure.axes) == len(groups)
    titles = []
    for axes, name in zip(figure.axes, groups, strict=True):
        (points,) = axes.lines[:1]
        expected = [100 * results[d][name]["auroc"] for d in results]
        assert sorted(points.get_xdata()) == pytest.approx(sorted(expected))
        assert not points.get_clip_on()
        texts = [text for text in axes.get_yticklabels() if text.get_text()]
        titles.append(axes.title.get_window_extent())
        for box in (titles[-1], *(text.get_window_extent() for text in texts)):
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert {text.get_text() for text in figure.axes[0].get_yticklabels()} == set(results)
    assert not titles[0].overlaps(titles[1])


def test_curves_that_coincide_are_named(run):
    assert figures.coincidences(run) == []
    arrays = {name: {**found, "gaia-a": found["si-z"]} for name, found in run.arrays.items()}
    (sentence,) = figures.coincidences(runs.Run("x", run.results, arrays, {}))
    assert "si-z and gaia-a coincide" in sentence


def test_msp_has_an_axis_of_log_odds():
    p = np.array([0.5, 0.9, 1.0], np.float32)
    assert figures.log_odds(p) == pytest.approx([0, np.log(9), np.log(2.0**24 - 1)], rel=1e-5)


def test_names_that_matplotlib_would_take_for_mathematics():
    figure, (axes,) = figures.grid(1, height=2.0)
    name = r"$\frac{$ and \udc80"
    axes.set_title(name)
    axes.set_xlabel(name)
    axes.plot([0, 1], label=name)
    axes.legend()
    figure.suptitle(name)
    assert figures.encode(figure).startswith(b"\x89PNG")


class Reader(HTMLParser):
    """What is open, and what is referred to."""

    def __init__(self):
        super().__init__()
        self.open_tags, self.sources, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open_tags.append(tag)
        self.sources += [value for key, value in attributes if key == "src"]
        self.links += [value for key, value in attributes if key == "href"]

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


def test_page_is_whole_loads_nothing_and_escapes_what_users_named(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open_tags == []
    images = len(SETS) * len(SETTINGS) * 12
    assert len(reader.sources) == 2 + len(SETTINGS) + 2 + images
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert reader.links and all(f'id="{link[1:]}"' in page for link in reader.links)
    assert not re.search(r"https?://|@import|url\(|<link|<script|<b>", page)
    for text in ("near&lt;b&gt;|*", "&lt;script&gt;alert(1)", "a&amp;b"):
        assert text in page
    places = ['class="headline"', "<figure>", 'id="results"', 'id="settings"', 'id="metadata"']
    assert sorted(places, key=page.index) == places


def test_page_and_text_render_the_metadata(page, run):
    for name, value in report.metadata(run.results):
        assert f'class="name">{name}</th><td class="name">{escape(value)}</td>' in page
    for name, value in report.summary(run.results):
        assert f"\n{name}: {value}\n" in f"\n{run}"
    for text in ("resnet8, 78,042 parameters", "synthetic, protocol published", "90.00%",
                 "no resize", "svhn 40", "python 3.11", "steps=2"):  # fmt: skip
        assert text in page
    warnings = re.findall(r'<p class="warning">(.*?)</p>', page)
    assert len(warnings) == 1
    assert "averages: lsun." in warnings[0] and "WARNING: Sets of the" in str(run)


def test_gallery_says_class_and_decision(run, tmp_path):
    arrays = {}
    for name, size in SETS.items():
        labels = np.arange(size) % 7 if name == "known" else np.full(size, -1)
        predicted = {"score": np.full(size, 3), "label": labels, "index": np.arange(size)}
        arrays[name] = {**run.arrays[name], "prediction": predicted}
    shown = runs.Run("x", run.results, arrays, run.thumbnails)
    known, other = (html._gallery(shown, name) for name in ("known", "svhn"))
    said = [cell.detail for row in known.rows for cell in row[1:]]
    assert all(re.fullmatch(r"(accepted|rejected)\nclass 3\ntrue \d", one) for one in said)
    assert {one[:8] for one in said} == {"accepted", "rejected"}
    assert other.rows[0][1].detail.endswith("\nclass 3")
    assert other.rows[0][1].picture.startswith("data:image/jpeg;base64,")


def test_page_warns_and_does_without_images(run, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "encode", lambda figure: b"")
    results = dataclasses.replace(run.results, warning="near chance")
    page = html.write(runs.Run("x", results, run.arrays, {}), tmp_path).read_text()
    assert "near chance" in page
    assert "No images were kept" in page
