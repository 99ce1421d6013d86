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


def test_encoded_images_of_every_kind_beside_rows_without_one(predictor, tiny_images, tmp_path):
    path, file = tmp_path / "image.png", io.BytesIO()
    Image.fromarray(tiny_images[0]).save(path)
    Image.fromarray(np.kron(tiny_images[0], np.ones((8, 8, 1), np.uint8))).save(file, "PNG")
    data, large = path.read_bytes(), file.getvalue()
    good = [data, str(path), Image.open(path), {"bytes": data, "path": None},
            {"bytes": None, "path": str(path)}, tiny_images[0]]  # fmt: skip
    nothing = [None, float("nan"), b"", "", {"bytes": None, "path": None}]
    cut = [Image.open(io.BytesIO(large[: len(large) // 2])), large[: len(large) // 3], b"no image"]
    bad = [*nothing, *cut, "/nowhere/x.png"]
    table = predictor({"image": [*good[:3], *bad, *good[3:]]})
    is_bad = np.isin(np.arange(15), range(3, 12))
    expected = predictor.detector.score(tiny_images[:1])
    np.testing.assert_allclose(table["score"][~is_bad], np.repeat(expected, 6), rtol=1e-5)
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


def test_mistakes(predictor, tiny, tiny_images, tmp_path):
    with pytest.raises(ValueError, match="no column 'image'; it has 'picture'"):
        predictor({"picture": tiny_images})
    with pytest.raises(ValueError, match=r"shape \(9, 9, 3\)"):
        predictor({"image": np.zeros((2, 9, 9, 3), np.float32)})
    directory = si_jax.make_detector("energy", tiny).save(tmp_path / "d")
    with pytest.raises(ValueError, match="no threshold"):
        si_jax.Predictor(directory)
