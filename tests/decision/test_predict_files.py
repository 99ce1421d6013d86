"""Files of any kind and number are predicted in order, by the command too."""

import io
import json

import numpy as np
import pytest
from PIL import Image

import si_jax
from si_jax import cli
from si_jax.commands import predict
from si_jax.data.folders import from_folder
from si_jax.data.image_set import MissingSet
from si_jax.decision.predictor import find_images, predict_files


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    images = np.random.default_rng(3).integers(0, 256, (60, 8, 8, 3), np.uint8)
    detector = si_jax.make_detector("energy", tiny, batch_size=8)
    detector.calibrate(images, keep_images=5)
    return detector.save(tmp_path_factory.mktemp("saved") / "energy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven images at two depths, a hidden one and a text."""
    root = tmp_path_factory.mktemp("images")
    (root / "b").mkdir()
    rng = np.random.default_rng(1)
    for index in range(11):
        image = Image.fromarray(rng.integers(0, 256, (10 + index, 9, 3), np.uint8))
        image.save(root / ("b" if index % 2 else ".") / f"{index:02}.png")
    image.save(root / ".hidden.png")
    (root / "notes.txt").write_text("no image")
    return root


def names(paths):
    return [path.rsplit("/", 1)[1] for path in paths]


def test_files_folders_and_globs(folder):
    flat, deep = ["00.png", "02.png", "04.png", "06.png", "08.png", "10.png"], ["01.png", "03.png"]
    assert names(find_images([folder])) == [*flat, *deep, "05.png", "07.png", "09.png"]
    assert names(find_images([f"{folder}/*.png"])) == flat
    assert len(list(find_images([f"{folder}/**/*.png"]))) == 11
    assert names(find_images([folder / "notes.txt", folder / "02.png"])) == ["notes.txt", "02.png"]
    (folder / "empty").mkdir(exist_ok=True)
    for path, message in (
        (folder / "absent.png", "does not exist"),
        (f"{folder}/*.gif", "no file matches"),
        (folder / "empty", "holds no images"),
    ):
        with pytest.raises(MissingSet, match=message):
            list(find_images([path]))


def test_folders_are_searched_as_by_evaluations(saved, folder, tmp_path, capsys):
    """Linked folders and files without an ending count; what cannot be read is named."""
    root, other = tmp_path / "photos", tmp_path / "elsewhere"
    root.mkdir()
    other.mkdir()
    (root / "unnamed").write_bytes((folder / "00.png").read_bytes())
    (other / "02.png").write_bytes((folder / "02.png").read_bytes())
    (root / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (root / "linked").symlink_to(other)
    found = [path.split("photos/")[1] for path in find_images([root])]
    assert found == ["unnamed", "linked/02.png"]
    assert sorted(found) == sorted(map(from_folder(root).ident, range(2)))
    run(saved, root)
    out, err = capsys.readouterr()
    assert "2 images:" in err and "1 file is left out" in err and "phone.heic" in err
    assert "unnamed" in out and "linked/02.png" in out
    with pytest.raises(SystemExit):
        run(saved, root / "phone.heic")
    assert "phone.heic cannot be decoded (not a JPEG" in capsys.readouterr().err


def test_predictions_are_in_order_and_unreadable_files_do_not_stop_them(saved, folder):
    detector = si_jax.load_detector(saved)
    files = [*find_images([folder]), str(folder / "notes.txt"), str(folder / "gone.png")]
    order = [*files[:4], files[-2], *files[4:-2], files[-1]]
    rows = list(predict_files(detector, order))
    assert [row.file for row in rows] == order
    broken = [row for row in rows if row.error]
    assert [row.file for row in broken] == [files[-2], files[-1]]
    assert "not a JPEG" in broken[0].error and "gone.png" in broken[1].error
    good = detector.predict(files[:-2])
    read = [row for row in rows if not row.error]
    np.testing.assert_allclose([row.score for row in read], good.score, rtol=1e-5)
    assert [row.is_ood for row in read] == good.is_ood.tolist()
    assert read[0].as_dict().keys() == {
        "file", "label", "probability", "score", "is_ood", "p_value"
    }  # fmt: skip


def test_memory_does_not_grow_with_the_number_of_files(saved, folder):
    """No more than two batches are opened ahead of the one that is asked for."""
    opened = []

    def endless():
        while True:
            opened.append(1)
            yield folder / "00.png"

    rows = predict_files(si_jax.load_detector(saved), endless())
    for _ in range(20):
        next(rows)
    assert len(opened) <= 5 * 8
    rows.close()
    assert list(predict_files(si_jax.load_detector(saved), [])) == []


def run(*argv):
    cli.run(lambda: predict.main([str(text) for text in argv]))


def test_the_command_prints_a_table_of_a_list_and_a_folder(saved, folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder}/00.png\n\n{folder}/02.png\n"))
    run(saved, "-", folder / "b")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("energy on resnet8: threshold") and "60 calibration" in lines[0]
    assert lines[1] == "images are prepared by: shorter side to 8, centre crop 8x8"
    assert lines[3].split() == ["verdict", "p-value", "score", "class", "probability", "file"]
    assert all(line.split()[0] in ("in", "OOD") for line in lines[4:])
    expected = ["00.png", "02.png", "01.png", "03.png", "05.png", "07.png", "09.png"]
    assert names(lines[4:]) == expected
    assert "7 images:" in err and "0 unreadable" in err


def test_the_command_prints_json_and_explains_what_it_can_read(saved, folder, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    options = ["--json", "--tpr", "0.5", "--explain", pictures]
    with pytest.raises(SystemExit) as stop:
        run(saved, folder / "00.png", folder / "notes.txt", *options)
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[0]["file"].endswith("00.png") and 0 < rows[0]["p_value"] <= 1
    assert rows[1].keys() == {"file", "error"}
    assert "unreadable:" in err and "notes.txt" in err and "0.5 of in-distribution" in err
    (picture,) = pictures.iterdir()
    assert picture.name.endswith("00.png.png")
    with Image.open(picture) as image:
        assert image.width > 1000


def test_mistakes_end_in_one_sentence(saved, folder, tiny, tmp_path, capsys, monkeypatch):
    uncalibrated = si_jax.make_detector("energy", tiny).save(tmp_path / "uncalibrated")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for argv, message in (
        ([tmp_path, folder], "holds no detector.json"),
        (["nothing", folder], "there is no detector 'nothing'"),
        ([uncalibrated, folder], "has no threshold: call calibrate"),
        ([saved, "absent.png"], "absent.png does not exist"),
        ([saved, folder, "--tpr", "0.999"], "too few to promise tpr=0.999"),
        ([saved, folder, "--batch-size", "0"], r"batch_size (=0)"),
        ([saved, folder, "--explain", folder / "notes.txt"], "is a file"),
        ([saved, "-"], "no image is named"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(*argv)
        assert stop.value.code == 2
        out, err = capsys.readouterr()
        assert message in err and not out and err.count("\n") == 1
