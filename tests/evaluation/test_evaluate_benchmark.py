"""A benchmark as one call."""

import dataclasses
import importlib.util
import sys

import numpy as np
import pytest

import si_jax
from si_jax.batching import Batched
from si_jax.commands import evaluate as command
from si_jax.commands.options import labelled_detectors
from si_jax.detectors import Method, Plan, register_detector
from si_jax.evaluation.metrics import METRICS
from si_jax.reporting import report, runs

RNG = np.random.default_rng(0)
KNOWN, LETTERS, NOISE = (RNG.integers(0, 256, (40, 8, 8, 3), np.uint8) for _ in range(3))
OPTIONS = {
    "detectors": ["msp", "energy"], "limit": 30, "options": {"energy": {"temperature": 2}},
}  # fmt: skip


@pytest.fixture(scope="module")
def sets(small):
    ood = {"letters": LETTERS, "noise": NOISE}
    return si_jax.find_sets(None, id_set={"known": KNOWN}, ood=ood, model=small)


@pytest.fixture(scope="module")
def kept(small, sets, tmp_path_factory):
    return si_jax.evaluate(small, sets, **OPTIONS, out=tmp_path_factory.mktemp("evaluated") / "run")


def test_what_comes_back(kept):
    assert kept.detectors == ["msp", "energy"]
    assert kept.results.settings["energy"] == {"temperature": 2.0}
    assert kept.results.limit == 30 and kept.results.checkpoint == "small, plain, given as a model"
    assert "AUROC / FPR95, %" in str(kept) and "model: small, plain" in str(kept)
    page = kept._repr_html_()
    assert page.count("<table>") == 2 and '<th scope="row" class="name">energy</th>' in page
    names = ["results.json", "results.csv", "report.html"]
    assert [path.name for path in kept.saved] == names
    again = runs.load(kept.saved[0].parent)
    assert again.results == kept.results
    np.testing.assert_array_equal(again.scores("letters", "msp"), kept.scores("letters", "msp"))
    tied = dataclasses.replace(kept.results, ties={"msp": {"letters": 15}})
    text = str(dataclasses.replace(kept, results=tied))
    assert "msp: 50 % of letters have the very score" in text


def test_a_data_frame(kept, monkeypatch):
    if importlib.util.find_spec("pandas"):
        frame = kept.to_pandas()
        assert list(frame.columns) == ["detector", "set", "group", "images", *METRICS]
        assert len(frame) == 2 * 2
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "si-jax\[pandas\]"'):
        kept.to_pandas()


def test_another_run_in_the_same_place_is_reported(small, sets, kept, capsys, no_pictures):
    out = kept.saved[0].parent
    si_jax.evaluate(small, sets, **OPTIONS, out=out)
    assert "will be replaced" not in capsys.readouterr().err
    si_jax.evaluate(small, sets, detectors=["msp"], limit=30, out=out)
    told = capsys.readouterr().err
    assert "holds the results of a run that differs in settings; they will be replaced" in told


def test_a_constant_score_is_reported(small, sets, no_pictures):
    name = "constant-for-a-test"

    def compute(inputs, state):
        logits = inputs.forward.logits
        return {"score": 0 * logits[:, 0] - 1, "more": 2 * logits}

    register_detector(name, Method(lambda model: Plan(compute), "", "", 1))
    run = si_jax.evaluate(small, sets, detectors=[name, "msp"], limit=20)
    (told,) = [note for note in report.notes(run.results) if "the same score" in note]
    assert told.startswith(f"{name} gives every image of every set the same score: it")
    assert told.endswith("and its FPR95 means nothing. Use another detector.")
    assert told in str(run)
    # what else the detector gave is there, although no files are kept
    assert run.arrays["letters"][name]["more"].shape == (20, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"benchmark": "cifar11"}, "unknown dataset 'cifar11'"),
        ({"detectors": ["msp", "msp"]}, "detector 'msp' is given twice"),
        ({"detectors": {"a": ("mps", {})}}, "unknown detector 'mps'"),
        ({"detectors": {"a": ("msp",)}}, r"detector 'a' \(=\('msp',\)\): give a name or"),
        ({"detectors": {"energy": "msp"}}, "'energy' means something else than msp"),
        ({"detectors": {"a\nb": "msp"}}, "the detector's name .* must be printable"),
        ({"detectors": {"A": "msp", "a": "msp"}}, "detectors' names 'A' and 'a' differ in case"),
        ({"detectors": {"a": ("lts", {"percentil": 8})}}, "does not take the option percentil;"),
        (
            {"detectors": {"a": ("lts", {"percentile": 8})}, "options": {"a": {"percentile": 9}}},
            "the option percentile of a is given twice",
        ),
        ({"limit": 0}, r"limit \(=0\)"),
        ({"ood": {"a\nb": "."}}, r"'a\\nb' must be printable"),
        ({"ood": {"total": "."}}, "'total' is reserved"),
    ],
)
def test_mistakes(arguments, message, unchecked, small, sets):
    with pytest.raises(ValueError, match=message):
        if {"benchmark", "ood"} & arguments.keys():
            si_jax.evaluate_benchmark(**arguments)
        si_jax.evaluate(small, sets, **arguments)


@pytest.mark.usefixtures("no_pictures")
def test_one_detector_under_several_labels(small, sets, tmp_path, monkeypatch):
    """Labels are what results, tables, files and a resumed run use; scores are those of each."""
    texts = ["lts", "lts-85=lts:percentile=80", "odd=si-c:components=energy,channel-average,form=x"]
    detectors = labelled_detectors(texts, "--detectors")
    odd = {"components": "energy,channel-average", "form": "x"}
    assert detectors.pop("odd") == ("si-c", odd)
    detectors["lts"] = ("lts", {"percentile": 60})
    run = si_jax.evaluate(small, sets, detectors=detectors, out=tmp_path)
    assert list(run.results.results) == ["lts", "lts-85"]
    settings = run.results.settings
    assert settings["lts-85"] == {**settings["lts"], "percentile": 80, "detector": "lts"}
    for label, percentile in (("lts", 60), ("lts-85", 80)):
        expected = si_jax.make_detector("lts", small, percentile=percentile).score(LETTERS)
        np.testing.assert_allclose(run.scores("letters", label), expected, rtol=1e-5)
        assert f"\n{label} " in str(run)
    assert "detector=lts, percentile=80" in dict(report.settings(run.results))["lts-85"]
    monkeypatch.setattr(Batched, "start", None)  # nothing is computed again
    again = si_jax.evaluate(small, sets, detectors=detectors, out=tmp_path)
    assert again.results.results == run.results.results


def test_an_out_that_cannot_be(tmp_path, small, sets):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for name, message in (("link", "link to .*nowhere, which is not there"), ("file", "is a file")):
        with pytest.raises(ValueError, match=message):
            si_jax.evaluate(small, sets, detectors=["msp"], out=tmp_path / name)


def test_the_default_directory_differs_with_what_decides_the_results(monkeypatch):
    def directory(*argv):
        with pytest.raises(ValueError) as found:
            command.main(list(argv))
        return str(found.value)

    def refused(directory):
        raise ValueError(directory)

    monkeypatch.setattr(command, "checked_directory", refused)
    assert directory() == "results/digits-published"
    assert directory("--batch-size", "3", "--data-dir", "x") == directory()
    others = [
        directory("--limit", "100"),
        directory("--detectors", "msp"),
        directory("--set", "knn.k=3"),
        directory("--checkpoint", "a/b"),
        directory("--checkpoint", "c/b"),
        directory("--seed", "1"),
        directory("--protocol", "openood"),
    ]
    assert len({directory(), *others}) == len(others) + 1
    assert directory("--limit", "100").startswith("results/digits-published-limit100-")
