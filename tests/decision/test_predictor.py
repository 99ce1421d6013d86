"""A detector on tables of columns and on files of any kind and number."""

import io
import pickle

import numpy as np
import pytest
from pictures import encode, put, write
from PIL import Image

import si_jax
from si_jax.data.folders import from_folder
from si_jax.data.image_set import MissingSet
from si_jax.decision.predictor import COLUMNS, find_images, predict_files


@pytest.fixture(scope="module")
def predictor(energy):
    return si_jax.Predictor(energy)


@pytest.fixture
def files(tmp_path, tiny_images):
    return put(tmp_path, tiny_images)


def test_images_of_every_kind_beside_rows_without_one(predictor, tiny_images, files):
    large = encode(np.kron(tiny_images[0], np.ones((8, 8, 1), np.uint8)))
    good = [files[0].read_bytes(), str(files[1]), Image.open(files[2]), tiny_images[3],
            {"bytes": files[4].read_bytes(), "path": None},
            {"bytes": None, "path": str(files[5])}]  # fmt: skip
    nothing = [None, float("nan"), b"", "", {"bytes": None, "path": None}]
    cut = [Image.open(io.BytesIO(large[: len(large) // 2])), large[: len(large) // 3], b"no image"]
    bad = [*nothing, *cut, "/nowhere/x.png"]
    batch = {"id": np.arange(15), "image": [*good[:3], *bad, *good[3:]]}
    table = predictor(batch)
    assert table.keys() == {"id", "image", *COLUMNS} and table["id"] is batch["id"]
    is_bad = np.isin(np.arange(15), range(3, 12))
    for name, values in predictor.detector.predict(tiny_images[:6]).as_dict().items():
        column = table["class" if name == "label" else name]
        np.testing.assert_allclose(column[~is_bad], values, rtol=1e-5)
    assert not any(table["error"][~is_bad])
    assert np.isnan(table["score"][is_bad]).all() and np.isnan(table["p_value"][is_bad]).all()
    assert (table["class"][is_bad] == -1).all() and table["is_ood"][is_bad].all()
    said = ["has no image (="] * 5 + ["cannot be"] * 3 + ["x.png cannot be read"]
    assert all(text in error for text, error in zip(said, table["error"][is_bad], strict=True))
    assert all(len(predictor({"image": []})[name]) == 0 for name in COLUMNS)


def test_it_travels_as_its_directory(predictor, tiny_images):
    data = pickle.dumps(predictor)
    assert len(data) < 1000
    again = pickle.loads(data)({"image": tiny_images})
    np.testing.assert_array_equal(again["score"], predictor({"image": tiny_images})["score"])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"picture": []}, "no column 'image'; it has 'picture'"),
        ({"image": np.zeros((2, 9, 9, 3), np.float32)}, r"shape \(9, 9, 3\)"),
    ],
)
def test_mistakes(batch, message, predictor, tiny, tmp_path):
    with pytest.raises(ValueError, match=message):
        predictor(batch)
    with pytest.raises(ValueError, match="no threshold"):
        si_jax.Predictor(si_jax.make_detector("energy", tiny).save(tmp_path / "d"))


def test_folders_are_searched_as_by_evaluations_and_globs_and_files_are_taken(tmp_path):
    """Linked folders and files without an ending count; what is hidden or no image does not."""
    root = tmp_path / "photos"
    for name in ("unnamed", "b/1.png", "2.png", ".hidden.png"):
        write(root / name)
    write(tmp_path / "elsewhere/3.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()

    def found(*paths):
        return [path.removeprefix(f"{root}/") for path in find_images(paths)]

    assert found(root) == ["2.png", "unnamed", "b/1.png", "linked/3.png"]
    assert sorted(found(root)) == sorted(map(from_folder(root).ident, range(4)))
    assert found(f"{root}/*.png") == ["2.png"]
    assert found(f"{root}/**/*.png") == ["2.png", "b/1.png", "linked/3.png"]
    assert found(root / "notes.txt", root / "2.png") == ["notes.txt", "2.png"]
    for path, message in (
        (root / "absent.png", "does not exist"),
        (f"{root}/*.gif", "no file matches"),
        (tmp_path / "empty", "holds no images"),
    ):
        with pytest.raises(MissingSet, match=message):
            found(path)


def test_files_are_predicted_in_order_and_unreadable_ones_do_not_stop_them(energy, files, tmp_path):
    detector = si_jax.load_detector(energy)
    (tmp_path / "notes.txt").write_text("no image")
    order = [*files[:4], tmp_path / "notes.txt", *files[4:], tmp_path / "gone.png"]
    rows = list(predict_files(detector, order))
    assert [row.file for row in rows] == list(map(str, order))
    broken = [row.error for row in rows if row.error]
    assert "not a JPEG" in broken[0] and "gone.png" in broken[1] and len(broken) == 2
    good = detector.predict(files)
    read = [row for row in rows if not row.error]
    np.testing.assert_allclose([row.score for row in read], good.score, rtol=1e-5)
    assert [row.is_ood for row in read] == good.is_ood.tolist()
    assert read[0].as_dict().keys() == {
        "file", "label", "probability", "score", "is_ood", "p_value"
    }  # fmt: skip
    assert list(predict_files(detector, [])) == []


def test_memory_does_not_grow_with_the_number_of_files(energy, files):
    """No more than two batches are opened ahead of the one that is asked for."""
    opened = []

    def endless():
        while True:
            opened.append(1)
            yield files[0]

    rows = predict_files(si_jax.load_detector(energy), endless())
    for _ in range(20):
        next(rows)
    assert len(opened) <= 5 * 8
    rows.close()
