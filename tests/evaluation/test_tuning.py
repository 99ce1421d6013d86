"""A detector's options are chosen without test images."""

import itertools

import numpy as np
import pytest
from pictures import noise

import si_jax
from si_jax.commands import tune as script
from si_jax.commands.options import detector_options
from si_jax.data import digits, sources
from si_jax.data.image_set import ImageSet, UnreadableImage
from si_jax.detectors import default_options
from si_jax.evaluation import tuning


@pytest.fixture(scope="module")
def images():
    return noise(60, 2, 2, 3).repeat(4, axis=1).repeat(4, axis=2)


def test_grids_are_options_of_their_detectors():
    for name, grid in tuning.GRIDS.items():
        assert set(grid) <= set(default_options(name)), name
        found = list(tuning.candidates(name))
        assert found[0] == {option: default_options(name)[option] for option in grid}
        assert len({str(options) for options in found}) == len(found)


def test_tune_tries_all_and_sorts(small, images):
    ood = tuning.validation_ood(images[30:])
    trials, skipped = tuning.tune("energy", small, (images[:30], None), images[30:], ood)
    assert not skipped
    assert sorted(t.options["temperature"] for t in trials) == [1, 10, 100, 1000]
    means = [trial.mean for trial in trials]
    assert means == sorted(means, reverse=True)
    best = si_jax.make_detector("energy", small, **trials[0].options)
    known = best.score(images[30:])
    for name, others in ood.items():
        expected = si_jax.metrics.evaluate(known, best.score(others))["auroc"]
        assert trials[0].auroc[name] == pytest.approx(expected, abs=1e-6)


def test_of_equals_the_default_is_chosen(small, images):
    """With 4 classes, every `top` of at least 4 is the same detector."""
    ood = {"noise": tuning.validation_ood(images)["noise"]}
    grid = {"top": [50, 10, 100]}
    trials, _ = tuning.tune("gen", small, (images, None), images, ood, grid=grid)
    assert [t.options["top"] for t in trials] == [100, 50, 10]
    assert len({t.mean for t in trials}) == 1


def test_what_cannot_be_tried_is_left_out_and_said(small, images):
    ood = tuning.validation_ood(images[40:])
    fit = (images[:40], None)
    trials, skipped = tuning.tune("knn", small, fit, images[40:], ood, grid={"k": [1, 5, 41]})
    assert sorted(t.options["k"] for t in trials) == [1, 5]
    assert set(skipped) == {"knn.k=50", "knn.k=41"}
    assert "fitting images, 40" in skipped["knn.k=41"]
    with pytest.raises(ValueError, match="no options of 'knn' can be tried"):
        tuning.tune("knn", small, fit, images[40:], ood, grid={"k": [100]})
    with pytest.raises(ValueError, match="ood is empty"):
        tuning.tune("ash-s", small, fit, images, {})


def test_validation_ood(images):
    found = tuning.validation_ood(images, seed=3)
    again = tuning.validation_ood(images, seed=3)
    assert set(found) == {"noise", "shuffled"}
    for name, others in found.items():
        assert (others.shape, others.dtype) == (images.shape, images.dtype)
        np.testing.assert_array_equal(others, again[name])
        assert not np.array_equal(others, tuning.validation_ood(images, seed=4)[name])
    pixels = {p.tobytes() for p in images.reshape(-1, 3)}
    assert all(p.tobytes() in pixels for p in found["noise"].reshape(-1, 3))


def test_shuffling_moves_whole_patches_and_keeps_the_remainder():
    images = noise(5, 10, 13, 1)
    shuffled = tuning.validation_ood(images)["shuffled"]
    np.testing.assert_array_equal(shuffled[:, 8:], images[:, 8:])
    np.testing.assert_array_equal(shuffled[:, :, 12:], images[:, :, 12:])
    corners = list(itertools.product(range(0, 8, 2), range(0, 12, 3)))
    for old, new in zip(images, shuffled, strict=True):
        before, after = (
            [x[i : i + 2, j : j + 3].tobytes() for i, j in corners] for x in (old, new)
        )
        assert sorted(before) == sorted(after) and before != after
    with pytest.raises(ValueError, match="too small"):
        tuning.validation_ood(np.zeros((1, 3, 8, 3), np.uint8))


def test_describe_is_what_set_takes():
    options = {"dim": None, "x": True, "step": 0.0014, "preset": "published", "k": 5}
    texts = tuning.describe("vim", options).split()
    assert detector_options(texts) == {"vim": options}


def test_script_on_digits(capsys):
    script.main(["gen", "--grid", "gamma=0.1,0.5", "--limit", "40", "--fit-limit", "10"])
    printed = capsys.readouterr().out
    assert "40 validation images; AUROC, % against noise, shuffled" in printed
    assert printed.count("gen.gamma=") == 3
    assert "chosen: --set gen.gamma=0." in printed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("msp", "'msp' has no grid"),
        ("knn --grid size=1", "does not take the option size"),
        ("gen --limit 0", "limit"),
        ("gen --grid gamma", "write it as OPTION=VALUE,VALUE"),
        ("gen --ood-val a=x --ood-val a=x", "--ood-val: a is given twice"),
    ],
)
def test_script_refuses_what_it_does_not_know(given, message):
    with pytest.raises(ValueError, match=message):
        script.main(given.split())


def test_script_takes_validation_sets_but_none_that_is_tested_on(monkeypatch, tmp_path):
    sets, tried = {name: noise(20, 32, 32, 3) for name in ("a", "b", "mixed")}, []
    sets["mixed"][3] = digits.load("test")[0][17]
    for name, images in sets.items():
        np.savez(tmp_path / f"{name}.npz", images=images)

    def tune(name, model, fit, validation, ood, **options):
        tried.append({name: images.shape for name, images in ood.items()})
        return [tuning.Trial({}, dict.fromkeys(ood, 0.5))], {}

    monkeypatch.setattr(tuning, "tune", tune)
    argv = ["gen", "--limit", "15", "--fit-limit", "10", "--ood-val"]
    with pytest.raises(ValueError, match=r"mixed: .*3.* is also in the test set digits"):
        script.main([*argv, f"mixed={tmp_path / 'mixed.npz'}"])
    script.main([*argv, *(f"{name}={tmp_path / name}.npz" for name in "ab")])
    assert tried == [{"a": (15, 32, 32, 3), "b": (15, 32, 32, 3)}]
    similar, test = sources.from_arrays("similar", sets["mixed"][:3]), sets["mixed"][3:]
    tuning.refuse_test_images([similar], [sources.from_arrays("test", test)])


def test_unreadable_images_are_like_no_other():
    def broken(index):
        raise UnreadableImage("broken")

    images = ImageSet("x", 2, "f", broken, str)
    tuning.refuse_test_images([images], [images])
