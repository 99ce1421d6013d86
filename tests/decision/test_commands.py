"""From a checkpoint and two folders to a detector; from that to verdicts, and to one file."""

import io
import json

import numpy as np
import pytest
from pictures import noise, write
from PIL import Image

import si_jax
from si_jax import cli, commands
from si_jax.commands import calibrate


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    return si_jax.save_checkpoint(tmp_path_factory.mktemp("weights") / "tiny", tiny)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five classes of eight images."""
    root = tmp_path_factory.mktemp("images")
    for index, image in enumerate(noise(40, 10, 9, 3, seed=1)):
        write(root / str(index % 5) / f"{index:02}.png", image)
    return root


def run(*argv):
    cli.run(lambda: commands.dispatch([str(text) for text in argv]))


def test_calibrate_then_export(checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "detector"
    run("calibrate", checkpoint, "--detector", "knn", "--set", "k=3", "--fit", folder, "--images",
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
    run("export", out, "--out", tmp_path / "d.jaxexport", "--platforms", "cpu")
    assert "jax.export.deserialize" in capsys.readouterr().out
    assert (tmp_path / "d.jaxexport").stat().st_size > 1000


def test_class_folders_are_those_of_the_card_by_name(checkpoint, folder, tmp_path):
    names = ["3", "0", "4", "1", "2"]
    options = ["--detector", "she", "--images", folder, "--classes", *names]
    run("calibrate", checkpoint, *options, "--fit", folder, "--out", tmp_path / "she")
    files = sorted(folder.rglob("*.png"))
    labels = np.array([names.index(path.parent.name) for path in files])
    right = si_jax.make_detector("she", si_jax.load_model(checkpoint)).fit(files, labels)
    scores = si_jax.load_detector(tmp_path / "she").score(files)
    np.testing.assert_allclose(scores, right.score(files), rtol=1e-5)
    (folder / "5").mkdir()  # of no images, so of no class
    with pytest.raises(ValueError, match=r"class folder '3' .1 such., which the classifier's"):
        calibrate.opened(str(folder), ("0", "1", "2", "4", "x"))


def test_predictions_of_a_list_and_a_folder_are_a_table(
    energy, folder, tmp_path, capsys, monkeypatch
):
    write(tmp_path / "b/01.png")
    (tmp_path / "b/phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder}/0/05.png\n\n{folder}/2/02.png\n"))
    run("predict", energy, "-", tmp_path / "b")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("energy on resnet8: threshold") and "60 calibration" in lines[0]
    assert lines[1] == "images are prepared by: shorter side to 8, centre crop 8x8"
    assert lines[3].split() == ["verdict", "p-value", "score", "class", "probability", "file"]
    assert all(line.split()[0] in ("in", "OOD") for line in lines[4:])
    assert [line.rpartition("/")[2] for line in lines[4:]] == ["05.png", "02.png", "01.png"]
    assert "3 images:" in err and "0 unreadable" in err
    assert "1 file is left out" in err and "phone.heic" in err


def test_predictions_are_json_and_what_can_be_read_is_explained(energy, folder, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no image")
    pictures = tmp_path / "pictures"
    options = ["--json", "--tpr", "0.5", "--explain", pictures]
    with pytest.raises(SystemExit) as stop:
        run("predict", energy, folder / "0/00.png", tmp_path / "notes.txt", *options)
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[0]["file"].endswith("00.png") and 0 < rows[0]["p_value"] <= 1
    assert rows[1].keys() == {"file", "error"} and "not a JPEG" in rows[1]["error"]
    assert "unreadable:" in err and "notes.txt" in err and "0.5 of in-distribution" in err
    (picture,) = pictures.iterdir()
    assert picture.name.endswith("00.png.png")
    with Image.open(picture) as image:
        assert image.width > 1000


MISTAKES = [
    ("calibrate {checkpoint} --images {folder} --out {new}", "learns from training images"),
    ("calibrate {checkpoint} {energy} --limit 9 --out {new}", "9 calibration images are too"),
    ("calibrate {checkpoint} {energy} --classes a --out {new}", "names 1 of 5 classes"),
    ("calibrate {checkpoint} {energy} --set k=1 --out {new}", "does not take the option k"),
    ("calibrate {checkpoint} {energy} --out {folder}", "exists already"),
    ("export {folder} --out {new}", "holds no detector.json"),
    ("export {folder} --out {tmp}", "is a directory"),
    ("predict {tmp} {folder}", "holds no detector.json"),
    ("predict nothing {folder}", "there is no detector 'nothing'"),
    ("predict {uncalibrated} {folder}", "has no threshold: call calibrate"),
    ("predict {saved} absent.png", "absent.png does not exist"),
    ("predict {saved} {folder} --tpr 0.999", "too few to promise tpr=0.999"),
    ("predict {saved} {folder} --batch-size 0", "batch_size (=0)"),
    ("predict {saved} {folder} --explain {folder}/0/00.png", "is a file"),
    ("predict {saved} -", "no image is named"),
]


def test_mistakes_end_in_one_sentence(
    checkpoint, folder, energy, tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    uncalibrated = si_jax.make_detector("energy", tiny).save(tmp_path / "uncalibrated")
    places = {"checkpoint": checkpoint, "folder": folder, "saved": energy, "tmp": tmp_path}
    places |= {"new": tmp_path / "new", "uncalibrated": uncalibrated}
    places["energy"] = f"--detector energy --images {folder}"
    for line, message in MISTAKES:
        with pytest.raises(SystemExit) as stop:
            run(*line.format(**places).split())
        assert stop.value.code == 2
        out, err = capsys.readouterr()
        said = [text for text in err.splitlines() if "error:" in text]
        assert len(said) == 1 and message in said[0], line
        assert line.startswith("calibrate") or (out, err.count("\n")) == ("", 1)
    assert not (tmp_path / "new").exists()
