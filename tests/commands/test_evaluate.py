"""`si-jax evaluate`: killed, run again, and given wrong input."""

import contextlib
import csv
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pictures import noise, put

from si_jax import cli
from si_jax.commands import evaluate
from si_jax.evaluation import job, scoring
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
    for name, size in SETS.items():
        images = noise(size, seed=size)
        np.savez(root / f"{name}.npz", images=images, labels=np.arange(size) % 4)
    paths = [f"{name}={root / name}.npz" for name in SETS]

    def arguments(directory, *more, detectors=DETECTORS, limit=LIMIT):
        given = ["--id", paths[0], "--ood", *paths[1:], "--checkpoint", "digits"]
        given += ["--detectors", *detectors, "--out", str(directory), *more]
        return [*given, "--limit", str(limit)]

    return arguments


@pytest.fixture(scope="module")
def finished(tmp_path_factory, arguments):
    """A directory into which two runs evaluated at once, and what they printed."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        ThreadPoolExecutor(2) as executor,
    ):
        patched.setattr(job, "load_model", lambda name: small_model())
        patched.setattr(html, "write", lambda run, directory: directory / "report.html")
        list(executor.map(evaluate.main, [arguments(directory)] * 2))
    return directory, out.getvalue(), err.getvalue()


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
        assert [float(line[m]) for m in METRICS] == pytest.approx(
            [row[m] for m in METRICS], abs=1e-6
        )

    for text in ("AUROC / FPR95, %", "published convention", "OpenOOD convention", "ood average"):
        assert text in printed
    for detector, rows in content["results"].items():
        shown = "".join(line for line in printed.splitlines() if line.startswith(f"{detector} "))
        for row in rows.values():
            assert shown.count(f"{100 * row['auroc']:.2f} / {100 * row['fpr95']:6.2f}") >= 1


@pytest.fixture
def by_pixels(monkeypatch, no_pictures):
    """Scores are of the pixels alone."""

    def start(self, images, wanted=None, *, few=False):
        means = images.mean(axis=(1, 2, 3)).astype(np.float32)
        return lambda: {name: {"score": means % 10 / 10} for name in wanted}  # a probability

    monkeypatch.setattr(scoring.Scorer, "start", start)


def run(arguments):
    """The results that the command writes."""
    evaluate.main(arguments)
    return json.loads((Path(arguments[arguments.index("--out") + 1]) / "results.json").read_text())


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


def test_killed_and_run_again(no_pictures, finished, tmp_path, arguments, monkeypatch):
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
    content = run(arguments(directory))
    assert_equal_scores(directory, finished[0])
    assert content["computed"] == {"known": 0, "near": LIMIT - 64, "far": LIMIT}
    uninterrupted = json.loads((finished[0] / "results.json").read_text())
    assert content["results"] == uninterrupted["results"]


def test_unreadable_images_of_a_folder(by_pixels, tmp_path, capsys, arguments):
    folder = tmp_path / "odd"
    first, *_ = put(folder / "deep", noise(5, 10, 9, 3))
    first.with_name("broken.png").write_bytes(first.read_bytes()[:100])
    given = arguments(tmp_path / "run", "--ood", f"odd={folder}", detectors=["energy"], limit=30)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: run(given))
    assert ended.value.code == 2
    (message,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "broken.png" in message
    found = run([*given, "--skip-unreadable"])
    assert found["unreadable"] == {"odd": ["deep/broken.png"]} and found["counts"]["odd"] == 5
    printed = capsys.readouterr()
    told = "odd: 1 of 6 images cannot be read and are left out: deep/broken.png"
    assert told in printed.err and "left out of odd: 1 unreadable" in printed.out


def test_the_default_detectors_with_and_without_training_images(
    by_pixels, tmp_path, capsys, arguments
):
    head = arguments(tmp_path)
    head = [*head[: head.index("--detectors")], "--out", str(tmp_path), "--limit", "8"]
    train = next(path.partition("=")[2] for path in head if path.startswith("near="))
    found = run([*head, "--train", train, "--fit-limit", "30"])
    assert list(found["results"]) == ["si-c", "si-z", "gaia-z", "msp", "max-logit", "energy"]
    assert found["fit"] == {"set": "known_train", "images": 30, "detectors": ["si-c"]}
    assert "si-c is left out" not in capsys.readouterr().err

    found = run(head)
    assert list(found["results"]) == ["si-z", "gaia-z", "msp", "max-logit", "energy"]
    assert found["fit"] == {}
    why = "must be fitted on training images, which are absent: give a folder train beside val"
    assert f"si-c is left out: it {why}" in capsys.readouterr().err
    for asked in (["--detectors", "energy", "si-c"], ["--set", "si-c.form=sum"]):
        with pytest.raises(ValueError, match=f"si-c {why}"):
            run([*head, *asked])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--detectors enrgy", "unknown detector 'enrgy': .*gaia-a.* energy"),
        ("--dataset cifar11", "'cifar11': .*digits, cifar10, cifar100, imagenet"),
        ("--protocol pubished", "'pubished'.*published.*openood"),
        ("--checkpoint no-such", "no-such.*digits"),
        ("--checkpoint random", "needs --model"),
        ("--checkpoint random --model resnet7", "'resnet7'.*resnet20.*bit_r50x1"),
        ("--id val", "no checkpoint for custom data comes with the package"),
        ("--set energy", "--set energy: .*DETECTOR.OPTION=VALUE"),
        ("--set temperature=2", "DETECTOR.OPTION=VALUE"),
        ("--set si-z.steps=2", "si-z, which is not evaluated"),
        ("--steps 2", "none of energy takes the option steps"),
        ("--precision hihg", "'hihg'.*highest, high, default"),
        ("--limit 0", r"limit \(=0\)"),
        ("--ood mine", "--ood mine: .*NAME=PATH"),
        ("--ood mine=/no/such/folder", "/no/such/folder is not a folder"),
        ("--ood a=/no/x --ood b=/no/y", "/no/x is not a folder"),
        ("--ood q=A q=B", "--ood: q is given twice: A and B"),
        ("--ood q=A --ood q=B", "--ood: q is given twice: A and B"),
        ("--set msp.a=1 --set msp.a=2", "msp.a is given twice"),
        ("--detectors msp msp", "--detectors: msp is given twice"),
        ("--detectors a=msp a=lts:percentile=8", "a is given twice: msp and lts:perc"),
        ("--detectors lts:percentile=8", "lts:percentile=8: write it as NAME or LABEL="),
        ("--detectors a=lts:percentile", "percentile: write it as NAME or LABEL"),
        ("--detectors a=lts:percentile=8,percentile=9", "percentile is given twice: 8 and 9"),
        ("--out {text}", "text.txt"),
    ],
)
def test_mistakes(tmp_path, capsys, monkeypatch, digits_model, given, message):
    monkeypatch.setattr(job, "load_model", lambda name: digits_model)
    (tmp_path / "text.txt").write_text("not images")
    usual = ["--limit", "4", "--out", str(tmp_path)]
    usual += [] if "--detectors" in given else ["--detectors", "energy"]
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: evaluate.main([*usual, *given.format(text=tmp_path / "text.txt").split()]))
    assert ended.value.code == 2
    printed = capsys.readouterr()
    (said,) = [x for x in printed.err.splitlines() if "img/s" not in x]
    assert printed.out == "" and re.match(f"error: .*{message}", said)


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
