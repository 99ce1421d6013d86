"""From a checkpoint and two folders to a detector, and from that to one file."""

import numpy as np
import pytest
from PIL import Image

import si_jax
from si_jax import cli
from si_jax.commands import calibrate, export


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    return si_jax.save_checkpoint(tmp_path_factory.mktemp("weights") / "tiny", tiny)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five classes of eight images."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    for index in range(40):
        (root / str(index % 5)).mkdir(exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (10, 9, 3), np.uint8))
        image.save(root / str(index % 5) / f"{index:02}.png")
    return root


def run(command, *argv):
    cli.run(lambda: command.main([str(text) for text in argv]))


def test_calibrate_then_export(checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "detector"
    run(calibrate, checkpoint, "--detector", "knn", "--set", "k=3", "--fit", folder, "--images",
        folder, "--limit", "30", "--tpr", "0.9", "--keep-images", "4", "--classes", *"43210",
        "--out", out)  # fmt: skip
    printed = capsys.readouterr().out
    assert "30 calibration images" in printed and f"saved       {out}" in printed
    detector = si_jax.load_detector(out)
    assert detector.settings["k"] == 3 and detector.threshold.tpr == 0.9
    assert detector.threshold.preprocessing == str(detector.preprocessing)
    assert detector.card["fit"] == {"set": folder.name, "images": 40}
    assert "si-jax calibrate" in detector.card["command"]
    assert detector.model.card["classes"] == list("43210")
    files = sorted(str(path) for path in folder.rglob("*.png"))
    # calibrated on 30 of these very images
    assert 0 < detector.predict(files).is_ood.mean() < 0.4
    run(export, out, "--out", tmp_path / "d.jaxexport", "--platforms", "cpu")
    assert "jax.export.deserialize" in capsys.readouterr().out
    assert (tmp_path / "d.jaxexport").stat().st_size > 1000


def test_class_folders_are_those_of_the_card_by_name(checkpoint, folder, tmp_path):
    names = ["3", "0", "4", "1", "2"]
    options = ["--detector", "she", "--images", folder, "--classes", *names]
    run(calibrate, checkpoint, *options, "--fit", folder, "--out", tmp_path / "she")
    files = sorted(folder.rglob("*.png"))
    labels = np.array([names.index(path.parent.name) for path in files])
    right = si_jax.make_detector("she", si_jax.load_model(checkpoint)).fit(files, labels)
    scores = si_jax.load_detector(tmp_path / "she").score(files)
    np.testing.assert_allclose(scores, right.score(files), rtol=1e-5)
    (folder / "5").mkdir()  # of no images, so of no class
    with pytest.raises(ValueError, match=r"class folder '3' .1 such., which the classifier's"):
        calibrate.opened(str(folder), ("0", "1", "2", "4", "x"))


def test_mistakes_end_in_one_sentence(checkpoint, folder, tmp_path, capsys):
    out = ["--out", tmp_path / "d"]
    energy = ["--detector", "energy", "--images", folder]
    for command, argv, message in (
        (calibrate, [checkpoint, "--images", folder, *out], "learns from training images"),
        (calibrate, [checkpoint, *energy, "--limit", "9", *out], "9 calibration images are too"),
        (calibrate, [checkpoint, *energy, "--classes", "a", *out], "names 1, but the network"),
        (calibrate, [checkpoint, *energy, "--set", "k=1", *out], "does not take the option k"),
        (calibrate, [checkpoint, *energy, "--out", folder], "exists already"),
        (export, [folder, "--out", tmp_path / "e"], "holds no detector.json"),
        (export, [folder, "--out", tmp_path], "is a directory"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(command, *argv)
        assert stop.value.code == 2
        err = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(err) == 1 and message in err[0]
    assert not (tmp_path / "d").exists()
