"""Scoring one set that is interrupted, resumed, or written to a full disk."""

import errno
import os
import resource
import signal
import time

import pytest
from counting import Counting, Images, files, indices, score

from si_jax import cli
from si_jax.evaluation import scoring
from si_jax.evaluation.store import Store


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), RuntimeError("a bug")])
def test_an_interruption_keeps_what_was_done(digits_model, tmp_path, error):
    with pytest.raises(type(error)):
        score(digits_model, tmp_path, Images(error=error, at=13))
    assert files(tmp_path) == [
        "energy/made.partial.0.npz",
        "msp/made.partial.0.npz",
    ]
    images = Images()
    found, scorer = score(digits_model, tmp_path, images)
    assert indices(found) == list(range(20))
    assert scorer.computed["energy"] == images.loaded == list(range(12, 20))
    assert found.computed == 8
    assert files(tmp_path) == ["energy/made.npz", "msp/made.npz"]


def test_sigterm_keeps_what_was_done(digits_model, tmp_path, capsys):
    scorer = Counting(digits_model)

    class Killed(Images):
        def load(self, index):
            if index == 13:
                while len(scorer.computed["msp"]) < 12:  # the batches before, on another thread
                    time.sleep(0.01)
                time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)
            return super().load(index)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: score(digits_model, tmp_path, Killed(), scorer=scorer))
    assert ended.value.code == 143
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    found, scorer = score(digits_model, tmp_path, Images())
    assert indices(found) == list(range(20))
    assert scorer.computed["msp"] == list(range(12, 20))


def test_resuming_with_another_batch_size_and_uneven_progress(digits_model, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        score(digits_model, tmp_path, Images(error=KeyboardInterrupt(), at=9))
    with pytest.raises(KeyboardInterrupt):
        more = Counting(digits_model, ("energy", "msp", "max-logit"))
        score(
            digits_model,
            tmp_path,
            Images(error=KeyboardInterrupt(), at=6),
            scorer=more,
            batch_size=3,
        )
    assert more.computed == {"energy": [], "msp": [], "max-logit": list(range(6))}
    more = Counting(digits_model, ("energy", "msp", "max-logit"))
    found, _ = score(digits_model, tmp_path, Images(), scorer=more, batch_size=5)
    assert indices(found) == list(range(20))
    assert more.computed["max-logit"] == list(range(5, 20))
    assert more.computed["energy"] == list(range(5, 20))  # in whole batches, from 8 on


def test_progress_is_appended_in_parts(digits_model, tmp_path, monkeypatch):
    """Each file holds what is new, and what is lost of them is computed again."""
    monkeypatch.setattr(scoring, "MOST_ROWS", 8)
    written = []
    save_part = Store.save_part
    monkeypatch.setattr(
        Store,
        "save_part",
        lambda self, *args: written.append((args[0], args[3].seen)) or save_part(self, *args),
    )
    options = {"skip_unreadable": True}
    with pytest.raises(KeyboardInterrupt):
        score(digits_model, tmp_path, Images(30, {9}, error=KeyboardInterrupt(), at=26), **options)
    names = [f"made.partial.{first}.npz" for first in (0, 16, 8)]
    assert files(tmp_path) == [f"{d}/{name}" for d in ("energy", "msp") for name in names]
    assert written == [(d, 8) for _ in names for d in ("energy", "msp")]

    (tmp_path / "energy" / "made.partial.8.npz").unlink()
    found, scorer = score(digits_model, tmp_path, Images(30, {9}), **options)
    assert indices(found) == [k for k in range(30) if k != 9]
    rest = list(range(24, 30))
    assert scorer.computed == {"energy": [8, *range(10, 16), *rest], "msp": rest}
    assert found.computed == 14
    assert files(tmp_path) == ["energy/made.npz", "msp/made.npz"]


def test_a_part_that_is_deleted_meanwhile(digits_model, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "MOST_ROWS", 8)

    class Deleting(Images):
        def load(self, index):
            if index == 19:
                (tmp_path / "energy" / "made.partial.0.npz").unlink()
            return super().load(index)

    with pytest.raises(OSError, match=r"parts of .*made\.npz are gone: run it again"):
        score(digits_model, tmp_path, Deleting())
    found, scorer = score(digits_model, tmp_path, Images())
    assert indices(found) == list(range(20))
    assert scorer.computed == {"energy": list(range(8)), "msp": []}


def test_partial_progress_of_another_computation_is_dropped(digits_model, tmp_path):
    score(digits_model, tmp_path, Images())
    with pytest.raises(KeyboardInterrupt):
        other = Images(error=KeyboardInterrupt(), at=9)
        score(digits_model, tmp_path, other, facts={"protocol": "openood"})
    assert "energy/made.partial.0.npz" in files(tmp_path)
    found, scorer = score(digits_model, tmp_path, Images())
    assert not scorer.calls
    assert indices(found) == list(range(20))
    assert files(tmp_path) == ["energy/made.npz", "msp/made.npz"]


@pytest.mark.parametrize("gone", [range(10), range(8, 20), (7, 11), (8,)])
def test_resuming_beside_skipped_images(digits_model, tmp_path, gone):
    options = {"skip_unreadable": True}
    with pytest.raises(KeyboardInterrupt):
        score(digits_model, tmp_path, Images(20, gone, error=KeyboardInterrupt(), at=19), **options)
    assert len(files(tmp_path)) == 2
    images = Images(20, gone)
    found, scorer = score(digits_model, tmp_path, images, **options)
    rest = [k for k in range(20) if k not in gone]
    assert indices(found) == rest
    assert found.unreadable == tuple(f"made/{k}.png" for k in gone)
    assert found.computed == 4
    assert scorer.computed["energy"] == [k for k in rest if k >= 16]
    assert set(images.loaded) == {*gone, *range(16, 20)}


def test_full_disk_simulated(digits_model, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    score(digits_model, tmp_path, Images())
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    monkeypatch.setattr(scoring, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*made\.partial\.0\.npz"):
        score(digits_model, tmp_path, Images(), facts={"protocol": "openood"})
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_a_file_that_cannot_grow(digits_model, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        with pytest.raises(OSError, match=r"made\.npz"):
            score(digits_model, tmp_path, Images())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == []
    assert indices(score(digits_model, tmp_path, Images())[0]) == list(range(20))
