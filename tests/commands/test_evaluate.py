"""`si-jax evaluate`: killed, run again, and given wrong input."""

import contextlib
import csv
import dataclasses
import functools
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from si_jax import cli
from si_jax.commands import evaluate
from si_jax.evaluation import job, results, scoring
from si_jax.evaluation.metrics import METRICS
from si_jax.evaluation.store import chunk_path, load_scores
from si_jax.reporting import html
from si_jax.testing import small_model

ROOT = Path(__file__).parents[2]
SETS = {"known": 300, "near": 270, "far": 260}
DETECTORS = ["energy", "gaia-z"]
LIMIT = 250  # four batches


@pytest.fixture(autouse=True)
def no_checkpoint(monkeypatch):
    """Whatever is loaded is a small network."""
    monkeypatch.setattr(job, "load_model", lambda name: small_model())


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """The command line of an evaluation of `NETWORK` on custom sets."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for name, size in SETS.items():
        images = rng.integers(0, 256, (size, 8, 8, 3), np.uint8)
        np.savez(root / f"{name}.npz", images=images, labels=np.arange(size) % 4)
    paths = [f"{name}={root / name}.npz" for name in SETS]

    def arguments(directory, *more, detectors=DETECTORS, limit=LIMIT):
        given = ["--id", paths[0], "--ood", *paths[1:], "--checkpoint", "digits"]
        given += ["--detectors", *detectors, "--out", str(directory), *more]
        return [*given, "--limit", str(limit)] if limit else given

    return arguments


@pytest.fixture(scope="module")
def finished(tmp_path_factory, arguments):
    """A directory into which two runs evaluated at once, and what they printed."""
    patched = pytest.MonkeyPatch()
    patched.setattr(job, "load_model", lambda name: small_model())
    patched.setattr(html, "write", lambda run, directory: directory / "report.html")
    directory = tmp_path_factory.mktemp("finished") / "run"
    outputs = io.StringIO(), io.StringIO()
    redirected = contextlib.redirect_stdout(outputs[0]), contextlib.redirect_stderr(outputs[1])
    with redirected[0], redirected[1], ThreadPoolExecutor(2) as executor:
        started = [executor.submit(evaluate.main, arguments(directory)) for _ in range(2)]
        assert [run.result() for run in started] == [None, None]
    patched.undo()
    return directory, *(output.getvalue() for output in outputs)


def assert_equal_scores(one, other):
    for name in (*DETECTORS, "prediction"):
        for image_set in SETS:
            found, expected = (load_scores(d / "scores", name, image_set) for d in (one, other))
            assert found.keys() == expected.keys() and len(found["score"]) == LIMIT
            for key in found:
                np.testing.assert_array_equal(found[key], expected[key])


def test_results(finished):
    directory, printed, messages = finished
    assert not [path for path in directory.rglob("*") if path.name.startswith(".")]
    content = json.loads((directory / "results.json").read_text())
    assert list(content["results"]) == DETECTORS
    for rows in content["results"].values():
        assert list(rows) == ["near", "far"]
        for row in rows.values():
            assert set(row) == set(METRICS) and all(0 <= value <= 1 for value in row.values())
    expected = {"protocol": "own", "benchmark": "known", "seed": 0, "unreadable": {}}
    assert {key: content[key] for key in expected} == expected
    assert content["model"]["name"] == "small, plain" and content["checkpoint"] == "digits"
    assert content["counts"] == dict.fromkeys(SETS, LIMIT)
    assert set(content["seconds"]) == {*SETS, "total"}
    assert {"python", "jax", "jaxlib", "flax", "numpy", "si-jax"} <= set(content["versions"])
    assert all(f"{name}: " in messages for name in SETS)  # progress bars

    with (directory / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(DETECTORS) * 2
    for line in lines:
        row = content["results"][line["detector"]][line["set"]]
        assert int(line["images"]) == LIMIT
        for metric in METRICS:
            assert float(line[metric]) == pytest.approx(row[metric], abs=1e-6)

    for text in ("AUROC / FPR95, %", "published convention", "OpenOOD convention", "ood average"):
        assert text in printed
    for detector, rows in content["results"].items():
        lines = [line for line in printed.splitlines() if line.startswith(f"{detector} ")]
        assert len(lines) == 4  # two conventions, twice
        for row in rows.values():
            shown = f"{100 * row['auroc']:.2f} / {100 * row['fpr95']:6.2f}"
            assert sum(shown in line for line in lines) >= 2


@pytest.fixture
def script(monkeypatch):
    """Runs `main` with cheap parts; gives the results and (detector, set) -> images computed."""
    monkeypatch.setattr(results, "intervals", lambda job, arrays: {})
    monkeypatch.setattr(html, "write", lambda run, directory: directory / "report.html")
    computed, current = {}, []
    batches, start = scoring.batches, scoring.Scorer.start

    def spy_batches(image_set, *args, **options):
        current[:] = [image_set.name]
        return batches(image_set, *args, **options)

    def spy(self, images, wanted=None, *, few=False):
        for name in wanted:
            computed[name, current[0]] = computed.get((name, current[0]), 0) + len(images)
        if script.real:
            return start(self, images, wanted, few=few)
        means = images.mean(axis=(1, 2, 3)).astype(np.float32)
        return lambda: {name: {"score": means % 10 / 10} for name in wanted}  # a probability

    def script(*arguments):
        computed.clear()
        evaluate.main(list(arguments))
        (out,) = [b for a, b in itertools.pairwise(arguments) if a == "--out"]
        return json.loads((Path(out) / "results.json").read_text()), dict(computed)

    script.real = False
    monkeypatch.setattr(scoring, "batches", spy_batches)
    monkeypatch.setattr(scoring.Scorer, "start", spy)
    return script


def test_a_change_recomputes_what_it_must(script, tmp_path, arguments):
    def changed(*more, detectors=("energy", "gen"), limit=40):
        _, computed = script(*arguments(tmp_path, *more, detectors=detectors, limit=limit))
        assert set(computed.values()) <= ({limit} if limit else set(SETS.values()))
        everywhere = {detector for detector, _ in computed}
        assert set(computed) == {(d, name) for d in everywhere for name in SETS}
        return everywhere

    everything = {"energy", "gen", "prediction"}
    assert changed() == everything
    assert changed("--batch-size", "8") == set()
    assert changed("--set", "energy.temperature=2") == {"energy"}
    assert changed("--steps", "3", detectors=("energy", "si-z")) == {"energy", "si-z"}
    assert changed("--seed", "1") == everything
    assert changed(limit=None) == everything
    assert changed("--seed", "1", limit=None) == set()  # no subset, so no seed


DRIVER = """
import sys, time
from si_jax.commands import evaluate
from si_jax.evaluation import job, scoring
from si_jax.testing import small_model

job.load_model = lambda name: small_model()
scoring.CHUNK = 64
batches = scoring.batches

def stalling(image_set, *args, **options):
    for number, batch in enumerate(batches(image_set, *args, **options)):
        if image_set.name == "near" and number == 3:
            time.sleep(600)
        yield batch

scoring.batches = stalling
evaluate.main(sys.argv[1:])
"""


def test_killed_and_run_again(script, finished, tmp_path, arguments, monkeypatch):
    """By a signal that no process can handle; the scores are those of a run that was not."""
    directory, names = tmp_path / "run", (*DETECTORS, "prediction")
    chunk = functools.partial(chunk_path, directory / "scores")
    command = [sys.executable, "-c", DRIVER, *arguments(directory)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": environment}
    with subprocess.Popen(command, **quiet) as process:
        while process.poll() is None:
            time.sleep(0.05)
            if all(chunk(name, "near").is_file() for name in names):
                break
        process.kill()
        messages = process.stderr.read().decode()
    assert process.returncode == -signal.SIGKILL, messages
    assert not (directory / "results.json").exists()
    for name in names:
        assert chunk(name, "known", 3).is_file()
        assert not chunk(name, "near", 1).exists()

    monkeypatch.setattr(scoring, "CHUNK", 64)
    script.real = True
    content, computed = script(*arguments(directory))
    assert_equal_scores(directory, finished[0])
    counts = {"near": LIMIT - 64, "far": LIMIT}
    assert computed == {(name, images): n for name in names for images, n in counts.items()}
    assert content["computed"] == {"known": 0, **counts}
    uninterrupted = json.loads((finished[0] / "results.json").read_text())
    assert content["results"] == uninterrupted["results"]


def test_unreadable_images_of_a_folder(script, tmp_path, capsys, arguments):
    folder = tmp_path / "odd"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(5):
        image = rng.integers(0, 256, (10, 9, 3), np.uint8)
        Image.fromarray(image).save(folder / "deep" / f"{number}.png")
    (folder / "deep" / "broken.png").write_bytes((folder / "deep" / "3.png").read_bytes()[:100])
    given = arguments(tmp_path / "run", "--ood", f"odd={folder}", detectors=["energy"], limit=30)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: script(*given))
    assert ended.value.code == 2
    (message,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "broken.png" in message
    for _ in range(2):
        found, _ = script(*given, "--skip-unreadable")
        assert found["unreadable"] == {"odd": ["deep/broken.png"]}
        assert found["counts"]["odd"] == 5
        printed = capsys.readouterr()
        told = "odd: 1 of 6 images cannot be read and are left out: deep/broken.png"
        assert printed.err.count(told) == 1
        assert "left out of odd: 1 unreadable" in printed.out


def test_the_default_detectors_with_and_without_training_images(
    script, tmp_path, capsys, arguments
):
    head = arguments(tmp_path, limit=8)
    head = [*head[: head.index("--detectors")], "--out", str(tmp_path), "--limit", "8"]
    train = next(path.partition("=")[2] for path in head if path.startswith("near="))
    found, _ = script(*head, "--train", train, "--fit-limit", "30")
    assert list(found["results"]) == ["si-c", "si-z", "gaia-z", "msp", "max-logit", "energy"]
    assert found["fit"] == {"set": "known_train", "images": 30, "detectors": ["si-c"]}
    assert "si-c is left out" not in capsys.readouterr().err

    found, _ = script(*head)
    assert list(found["results"]) == ["si-z", "gaia-z", "msp", "max-logit", "energy"]
    assert found["fit"] == {}
    why = "must be fitted on training images, which are absent: give a folder train beside val"
    assert f"si-c is left out: it {why}" in capsys.readouterr().err
    for asked in (["--detectors", "energy", "si-c"], ["--set", "si-c.form=sum"]):
        with pytest.raises(ValueError, match=f"si-c {why}"):
            script(*head, *asked)


def test_a_network_that_gives_nan(script, tmp_path, capsys, monkeypatch, arguments):
    """Its weights are finite, but their products are not."""
    model = small_model()
    broken = jax.tree.map(lambda x: np.full_like(x, 9e19), dict(model.variables))
    model = dataclasses.replace(model, variables=broken)
    monkeypatch.setattr(job, "load_model", lambda name: model)
    script.real = True
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: script(*arguments(tmp_path, detectors=["energy"], limit=8)))
    assert ended.value.code == 2
    assert "detector 'energy' gave a score that is not finite" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--detectors", "enrgy"], ["unknown detector 'enrgy'", "energy", "si-z", "gaia-a"]),
        (["--dataset", "cifar11"], ["'cifar11'", "cifar10", "cifar100", "imagenet", "digits"]),
        (["--protocol", "pubished"], ["'pubished'", "published", "openood"]),
        (["--checkpoint", "no-such"], ["no-such", "digits"]),
        (["--checkpoint", "random"], ["needs --model"]),
        (["--checkpoint", "random", "--model", "resnet7"], ["'resnet7'", "resnet20", "bit_r50x1"]),
        (["--set", "energy"], ["--set energy", "DETECTOR.OPTION=VALUE"]),
        (["--set", "temperature=2"], ["DETECTOR.OPTION=VALUE"]),
        (["--set", "si-z.steps=2"], ["si-z", "not evaluated"]),
        (["--steps", "2"], ["energy", "steps"]),
        (["--precision", "hihg"], ["'hihg'", "highest, high, default"]),
        (["--limit", "0"], ["limit (=0)"]),
        (["--ood", "mine"], ["--ood mine", "NAME=PATH"]),
        (["--ood", "mine=/no/such/folder"], ["/no/such/folder is not a folder"]),
        (["--ood", "a=/no/x", "--ood", "b=/no/y"], ["/no/x is not a folder"]),
        (["--ood", "q=A", "q=B"], ["--ood: q is given twice: A and B"]),
        (["--ood", "q=A", "--ood", "q=B"], ["--ood: q is given twice: A and B"]),
        (["--set", "msp.a=1", "--set", "msp.a=2"], ["msp.a is given twice"]),
        (["--detectors", "msp", "msp"], ["--detectors: msp is given twice"]),
        (["--detectors", "a=msp", "a=lts:percentile=8"], ["a is given twice: msp and lts:perc"]),
        (["--detectors", "lts:percentile=8"], ["lts:percentile=8: write it as NAME or LABEL="]),
        (
            ["--detectors", "a=lts:percentile"],
            ["--detectors percentile: write it as NAME or LABEL"],
        ),
        (
            ["--detectors", "a=lts:percentile=8,percentile=9"],
            ["percentile is given twice: 8 and 9"],
        ),
        (["--out", "{text}"], ["text.txt"]),
    ],
)
def test_mistakes(tmp_path, capsys, monkeypatch, digits_model, given, expected):
    monkeypatch.setattr(job, "load_model", lambda name: digits_model)
    (tmp_path / "text.txt").write_text("not images")
    given = [word.format(text=tmp_path / "text.txt") for word in given]
    usual = ["--limit", "4", "--out", str(tmp_path)]
    usual += [] if "--detectors" in given else ["--detectors", "energy"]
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: evaluate.main([*usual, *given]))
    assert ended.value.code == 2
    printed = capsys.readouterr()
    (message,) = [x for x in printed.err.splitlines() if "img/s" not in x]
    assert printed.out == ""
    assert message.startswith("error: ")
    for text in expected:
        assert text in message


def test_sigterm_in_a_command(monkeypatch, tmp_path, capsys):
    """It ends as `cli.run` says, and not as the parser of the options would end it."""

    def killed(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(evaluate, "find_and_load", killed)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: evaluate.main(["--detectors", "msp", "--out", str(tmp_path)]))
    assert ended.value.code == 143
    assert "interrupted; what was finished is saved" in capsys.readouterr().err
