"""A detector on tables of columns, as batch systems call it."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

import si_jax
from si_jax.decision.predictor import COLUMNS


@pytest.fixture(scope="module")
def predictor(tiny, tmp_path_factory):
    images = np.random.default_rng(3).integers(0, 256, (60, 8, 8, 3), np.uint8)
    detector = si_jax.make_detector("energy", tiny, batch_size=8).calibrate(images)
    return si_jax.Predictor(detector.save(tmp_path_factory.mktemp("saved") / "energy"))


def test_arrays(predictor, tiny_images):
    batch = {"id": np.arange(13), "image": tiny_images}
    table = predictor(batch)
    result = predictor.detector.predict(tiny_images)
    assert table.keys() == {"id", "image", *COLUMNS}
    np.testing.assert_array_equal(table["class"], result.label)
    np.testing.assert_allclose(table["score"], result.score, rtol=1e-5)
    np.testing.assert_array_equal(table["is_ood"], result.is_ood)
    np.testing.assert_allclose(table["p_value"], result.p_value)
    assert all(error == "" for error in table["error"])
    assert table["id"] is batch["id"]


def test_encoded_images_of_every_kind(predictor, tiny_images, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(tiny_images[0]).save(path)
    data = path.read_bytes()
    column = np.empty(7, object)
    column[:] = [data, str(path), Image.open(path), {"bytes": data, "path": None},
                 {"bytes": None, "path": str(path)}, b"no image", tiny_images[0]]  # fmt: skip
    table = predictor({"image": column})
    good = np.arange(7) != 5
    expected = predictor.detector.score(tiny_images[:1])
    np.testing.assert_allclose(table["score"][good], np.repeat(expected, 6), rtol=1e-5)
    assert np.isnan(table["score"][5]) and np.isnan(table["p_value"][5])
    assert table["class"][5] == -1 and table["is_ood"][5]
    assert "cannot be decoded" in table["error"][5]
    nothing = predictor({"image": []})
    assert all(len(nothing[name]) == 0 for name in COLUMNS)


def test_rows_without_an_image_leave_the_others_what_they_are(predictor, tiny_images):
    file = io.BytesIO()
    Image.fromarray(np.kron(tiny_images[0], np.ones((8, 8, 1), np.uint8))).save(file, "PNG")
    whole = file.getvalue()
    cut = Image.open(io.BytesIO(whole[: len(whole) // 2]))
    nothing = [None, float("nan"), b"", "", {"bytes": None, "path": None}]
    column = [whole, *nothing, "/nowhere/x.png", cut, whole[: len(whole) // 3], whole]
    table = predictor({"image": column})
    alone = predictor({"image": [whole]})["score"]
    np.testing.assert_allclose(table["score"][[0, -1]], np.repeat(alone, 2), rtol=1e-5)
    assert table["is_ood"][1:-1].all() and not any(table["error"][[0, -1]])
    assert all("has no image (=" in error for error in table["error"][1:6])
    assert "x.png cannot be read" in table["error"][6]
    assert all("cannot be" in error for error in table["error"][7:9])


def test_it_travels_as_its_directory(predictor, tiny_images):
    data = pickle.dumps(predictor)
    assert len(data) < 1000
    again = pickle.loads(data)({"image": tiny_images})
    np.testing.assert_array_equal(again["score"], predictor({"image": tiny_images})["score"])


def test_mistakes(predictor, tiny, tiny_images, tmp_path):
    with pytest.raises(ValueError, match="no column 'image'; it has 'picture'"):
        predictor({"picture": tiny_images})
    with pytest.raises(ValueError, match=r"shape \(9, 9, 3\)"):
        predictor({"image": np.zeros((2, 9, 9, 3), np.float32)})
    directory = si_jax.make_detector("energy", tiny).save(tmp_path / "d")
    with pytest.raises(ValueError, match="no threshold"):
        si_jax.Predictor(directory)
