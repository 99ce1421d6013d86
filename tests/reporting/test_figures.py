"""The pictures of a report, and the images that are kept for them."""

import dataclasses

import numpy as np
import pytest
from made_runs import GROUPS, SETS, SETTINGS, minimal

from si_jax.data.image_set import ImageSet
from si_jax.evaluation import metrics
from si_jax.reporting import figures, runs


def test_figures_leave_matplotlib_alone(run):
    import matplotlib

    before = dict(matplotlib.rcParams)
    png = figures.encode(figures.histograms(run, "msp"), dpi=50)
    assert png.startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_figures_of_constant_scores_of_one_image_each(tmp_path):
    one = {"score": np.ones(1, np.float32), "index": np.arange(1)}
    row = metrics.evaluate(one["score"], one["score"])
    results = minimal(results={"msp": {"b": row}}, groups={"b": "far"})
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
