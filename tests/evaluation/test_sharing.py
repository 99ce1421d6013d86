"""Several processes that score shares of one evaluation: the same bits as one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import noise

import si_jax
from si_jax.commands import evaluate as command
from si_jax.evaluation import job, scoring
from si_jax.evaluation.sharing import score_share, score_with_ray

KNOWN, OTHER, TRAIN = (noise(count, seed=count) for count in (1100, 2000, 200))
OPTIONS = {"detectors": ["msp", "knn"], "options": {"knn": {"k": 3}}}


pytestmark = pytest.mark.usefixtures("no_pictures")


def sets_of(model):
    return si_jax.find_sets(
        None, id_set={"known": KNOWN}, ood={"other": list(OTHER)}, train_set=TRAIN, model=model
    )


def assert_same_scores(one, other):
    """All arrays of all files."""
    paths = sorted(path.relative_to(one) for path in one.rglob("scores/**/*.npz"))
    assert len(paths) == 3 * (3 + 4)
    assert paths == sorted(path.relative_to(other) for path in other.rglob("scores/**/*.npz"))
    for path in paths:
        assert (one / path).read_bytes() == (other / path).read_bytes()


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory):
    """The directory of one process that scored all."""
    out = tmp_path_factory.mktemp("alone")
    score_share(small, sets_of(small), share=(1, 1), out=out, **OPTIONS)
    return out


def test_shares_and_a_plain_run_that_computes_what_is_left(small, tmp_path, alone):
    sets = sets_of(small)
    score_share(small, sets, share=(2, 3), out=tmp_path, **OPTIONS)
    found = [path.name for path in sorted(tmp_path.glob("scores/msp/*/*.npz"))]
    assert found == ["000001.npz"] * 2  # the second and fifth of seven
    score_share(small, sets, share=(1, 3), out=tmp_path, **OPTIONS)
    assert not (tmp_path / "results.json").exists()
    run = si_jax.evaluate(small, sets, out=tmp_path, **OPTIONS)
    assert run.results.computed == {"known": 1100 - 1024, "other": 512}  # the third and sixth
    assert_same_scores(tmp_path, alone)


def test_on_the_command_line(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scoring, "CHUNK", 64)
    monkeypatch.setattr(job, "load_model", lambda name: small)
    np.savez(tmp_path / "images.npz", images=KNOWN)
    path, out = str(tmp_path / "images.npz"), ["--out", str(tmp_path / "out")]
    given = ["--id", f"known={path}", "--ood", f"a={path}", f"b={path}", "--checkpoint", "digits"]
    given += ["--detectors", "msp", "--limit", "80", *out]
    command.main([*given, "--share", "2/4"])
    assert "saved share 2/4 below" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("scores/msp/*/*.npz"))) == 2  # of three sets of two chunks
    for share, message in (
        ("3/2", r"share \(=3/2\) must be from 1/2 to 2/2"),
        ("0/2", r"share \(=0/2\) must be"),
        ("2", "--share 2: write it as K/N"),
    ):
        with pytest.raises(ValueError, match=message):
            command.main([*given, "--share", share])


DRIVER = """
import os, signal, sys
from pathlib import Path
import numpy as np
import si_jax
from si_jax.evaluation.sharing import score_with_ray
from si_jax.testing import small_model

out = Path(sys.argv[1])
arrays = np.load(out / "images.npz")
model, mark, driver = small_model(), out / "killed", os.getpid()
stored = out / "scores" / "msp" / "known" / "000001.npz"

class Killing:
    # kills the worker that asks for an image of its third chunk, once

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == 1500 and os.getpid() != driver and stored.exists() and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images[index]

sets = si_jax.find_sets(
    None,
    id_set={"known": arrays["known"]},
    ood={"other": Killing(arrays["other"])},
    train_set=arrays["train"],
    model=model,
)
options = {"detectors": ["msp", "knn"], "options": {"knn": {"k": 3}}}
score_with_ray(model, sets, workers=2, out=out, **options)
"""


@pytest.mark.slow
def test_rays_workers_one_of_which_is_killed(small, tmp_path, alone):
    pytest.importorskip("ray")
    np.savez(tmp_path / "images.npz", known=KNOWN, other=OTHER, train=TRAIN)
    (tmp_path / "driver.py").write_text(DRIVER)
    root = str(Path(si_jax.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists() and not (tmp_path / "results.json").exists()
    run = si_jax.evaluate(small, sets_of(small), out=tmp_path, **OPTIONS)
    assert run.results.computed == {"known": 0, "other": 0}
    assert_same_scores(tmp_path, alone)


def test_mistakes_before_ray_is_started(small, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    for options, message in (
        ({"workers": 0}, r"ray \(=0\) must be at least 1"),
        ({"workers": 2, "options": {"knn": {"a": 1}}}, "does not take the option a"),
    ):
        with pytest.raises(ValueError, match=message):
            score_with_ray(small, sets_of(small), out=tmp_path, **{**OPTIONS, **options})
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'pip install "si-jax\[ray\]"'):
        score_with_ray(small, sets_of(small), workers=2, out=tmp_path, **OPTIONS)
