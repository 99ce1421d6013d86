"""Scoring one set that is interrupted, resumed, shared, or written to a full disk."""

import resource

import pytest
from counting import Counting, Images, files, indices, score

from si_jax.evaluation import scoring


@pytest.fixture(autouse=True)
def chunks_of_two_batches(monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 9)  # 8, in batches of 4


def chunks(*numbers, detectors=("energy", "msp")):
    return [f"{detector}/made/{number:06d}.npz" for detector in detectors for number in numbers]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), RuntimeError("a bug")])
def test_an_interruption_keeps_what_was_done(small, tmp_path, error):
    with pytest.raises(type(error)):
        score(small, tmp_path, Images(error=error, at=18))
    assert files(tmp_path) == chunks(0)  # the second one's results were still to be fetched
    images = Images()
    found, scorer = score(small, tmp_path, images)
    assert indices(found) == list(range(20))
    assert scorer.computed["energy"] == images.loaded == list(range(8, 20))
    assert found.computed == 12
    assert files(tmp_path) == chunks(0, 1, 2)


def test_uneven_progress(small, tmp_path):
    """Each detector computes the chunks that it lacks, in the batches of the whole set."""
    score(small, tmp_path, Images())
    for path in chunks(1, detectors=["energy"]) + chunks(2, detectors=["msp"]):
        (tmp_path / path).unlink()
    more = Counting(small, ("energy", "msp", "max-logit"))
    found, _ = score(small, tmp_path, Images(), scorer=more)
    assert indices(found) == list(range(20)) and found.computed == 20
    rest = {"energy": list(range(8, 16)), "msp": list(range(16, 20))}
    assert more.computed == rest | {"max-logit": list(range(20))}
    batches = [images for _, images in more.calls]
    assert batches == [list(range(first, first + 4)) for first in range(0, 20, 4)]


def test_files_of_another_computation_are_replaced(small, tmp_path):
    """Also those of a larger set; and no results of both are ever mixed."""
    score(small, tmp_path, Images(40))
    with pytest.raises(KeyboardInterrupt):
        other = Images(40, error=KeyboardInterrupt(), at=18)
        score(small, tmp_path, other, facts={"protocol": "openood"})
    found, scorer = score(small, tmp_path, Images(40))
    assert scorer.computed["msp"] == list(range(8))
    found, scorer = score(small, tmp_path, Images(12))
    assert indices(found) == scorer.computed["energy"] == list(range(12))
    assert files(tmp_path) == chunks(0, 1)
    score(small, tmp_path, Images(12), batch_size=3)
    assert files(tmp_path) == chunks(0, 1)  # of 9 and 3 images
    found, scorer = score(small, tmp_path, Images(12))
    assert indices(found) == scorer.computed["energy"] == list(range(12))


@pytest.mark.parametrize("gone", [range(10), range(8, 20), (7, 11), (8,)])
def test_resuming_beside_skipped_images(small, tmp_path, gone):
    options = {"skip_unreadable": True}
    with pytest.raises(KeyboardInterrupt):
        score(small, tmp_path, Images(32, gone, error=KeyboardInterrupt(), at=31), **options)
    assert files(tmp_path) == chunks(0, 1)
    images = Images(32, gone)
    found, scorer = score(small, tmp_path, images, **options)
    rest = [k for k in range(32) if k not in gone]
    assert indices(found) == rest
    assert found.unreadable == tuple(f"made/{k}.png" for k in gone)
    assert found.computed == 16
    assert scorer.computed["energy"] == [k for k in rest if k >= 16]
    assert set(images.loaded) == {*gone, *range(16, 32)}


def test_shares_of_chunks_make_the_whole(small, tmp_path):
    """Each stores its own alone; a plain run computes what is absent of them."""
    images = Images(44)
    common = {"facts": {"protocol": "published"}, "directory": tmp_path, "batch_size": 4}
    for numbers in (range(0, 6, 3), range(1, 6, 3)):
        scorer = Counting(small)
        scoring.score_chunks(scorer, images.set, lambda x: x, numbers, **common)
        expected = [k for k in range(44) if k // 8 in numbers]
        assert scorer.computed == dict.fromkeys(("energy", "msp"), expected)
    assert files(tmp_path) == chunks(0, 1, 3, 4)
    found, scorer = score(small, tmp_path, images)
    assert indices(found) == list(range(44)) and found.computed == 12
    assert scorer.computed["msp"] == [*range(16, 24), *range(40, 44)]
    score(small, tmp_path / "alone", images)
    for path in files(tmp_path / "alone"):
        assert (tmp_path / path).read_bytes() == (tmp_path / "alone" / path).read_bytes()


def test_a_file_that_cannot_grow(small, tmp_path):
    """As on a full disk: what was there stays, and nothing lies beside it."""
    score(small, tmp_path, Images())
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        with pytest.raises(OSError, match=r"made/000000\.npz"):
            score(small, tmp_path, Images(), facts={"protocol": "openood"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
