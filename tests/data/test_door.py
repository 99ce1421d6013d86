"""The same eight images in every form are the same pixels and labels, whatever is asked of them."""

import copy
import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from pictures import Dataset, encode, labels, noise, put
from PIL import Image

import si_jax
from si_jax.data.opening import as_image_set, as_images
from si_jax.data.pipeline import batches
from si_jax.data.preprocessing import Preprocessing
from si_jax.detectors import explanation
from si_jax.detectors.detector import training_images
from si_jax.evaluation import results

COUNT, SIZE = 8, 8
PIXELS = noise(COUNT)
LABELS = np.arange(COUNT) % 5
PICTURES = [Image.fromarray(image) for image in PIXELS]
ROWS = [{"image": image, "label": k} for image, k in zip(PIXELS, LABELS, strict=True)]


class Network(nn.Module):
    """Two layers, in which every pixel counts."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, name="inner")(x.reshape(len(x), -1)))
        return nn.Dense(5, name="head")(x)


@pytest.fixture(scope="module")
def network():
    variables = Network().init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32))
    return si_jax.Model(
        Network(),
        variables,
        input_size=SIZE,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        head="head",
    )


class Loader:
    """What can be iterated again and again, in batches."""

    def __init__(self, *columns):
        self.columns = columns

    def __iter__(self):
        for start in range(0, COUNT, 3):
            parts = [column[start : start + 3] for column in self.columns]
            yield parts[0] if len(parts) == 1 else tuple(parts)


def pairs(images, labels):
    return list(zip(images, labels, strict=True))


def torch(make):
    return lambda folder: make(pytest.importorskip("torch"))


def tensor_data_set(torch):
    images = torch.from_numpy(np.moveaxis(PIXELS, -1, 1).copy())
    return torch.utils.data.TensorDataset(images, torch.from_numpy(LABELS))


def hugging_face(form):
    def make(folder):
        datasets = pytest.importorskip("datasets")
        classes = datasets.ClassLabel(num_classes=5)
        features = datasets.Features({"img": datasets.Image(), "fine_label": classes})
        rows = {"img": PICTURES, "fine_label": LABELS.tolist()}
        return form(datasets.Dataset.from_dict(rows, features=features))

    return make


def frame(folder):
    pandas = pytest.importorskip("pandas")
    paths = [str(path) for path in sorted((folder / "flat").iterdir())]
    return pandas.DataFrame({"image": paths, "label": LABELS})


def grain(form):
    def make(folder):
        grain = pytest.importorskip("grain")
        return form(grain, grain.MapDataset.source(Dataset(ROWS)))

    return make


def grain_loader(grain, data):
    shards = grain.sharding.NoSharding()
    sampler = grain.samplers.SequentialSampler(num_records=COUNT, shard_options=shards)
    return grain.DataLoader(data_source=Dataset(ROWS), sampler=sampler, worker_count=0)


ALONE = {
    "array": lambda folder: PIXELS,
    "channels first": lambda folder: np.moveaxis(PIXELS, -1, 1),
    "list of arrays": lambda folder: list(PIXELS),
    "list of batches": lambda folder: [PIXELS[:5], PIXELS[5:]],
    "pictures": lambda folder: PICTURES,
    "bytes": lambda folder: [encode(picture) for picture in PICTURES],
    "undecoded": lambda folder: [{"bytes": encode(p), "path": None} for p in PICTURES],
    "paths": lambda folder: sorted((folder / "flat").iterdir()),
    "names": lambda folder: [str(path) for path in sorted((folder / "flat").iterdir())],
    "folder": lambda folder: folder / "flat",
    "glob": lambda folder: f"{folder}/flat/*.png",
    "folder and files": lambda folder: [
        f"{folder}/flat/0.png", folder / "flat/1.png", *PICTURES[2:3], PIXELS[3],
        f"{folder}/flat/[4-7].png",
    ],
    "generator": lambda folder: (image for image in PIXELS),
    "generator of paths": lambda folder: iter(sorted((folder / "flat").iterdir())),
    "generator of batches": lambda folder: iter(Loader(PIXELS)),
    "tensor": torch(lambda torch: torch.from_numpy(PIXELS.copy())),
}  # fmt: skip
LABELLED = {
    "pair": lambda folder: (PIXELS, LABELS),
    "pair, one-hot": lambda folder: (PIXELS, np.eye(5)[LABELS]),
    "columns": lambda folder: {"image": PIXELS, "label": LABELS.tolist()},
    "columns of pictures": lambda folder: {"img": PICTURES, "label": LABELS},
    "npz": lambda folder: folder / "set.npz",
    "list file": lambda folder: folder / "list.txt",
    "data set": lambda folder: Dataset(pairs(PIXELS, LABELS)),
    "data set of pictures": lambda folder: Dataset(pairs(PICTURES, LABELS.tolist())),
    "data set of one-hot": lambda folder: Dataset(pairs(PIXELS, np.eye(5)[LABELS])),
    "data set, channels first": lambda folder: Dataset(pairs(np.moveaxis(PIXELS, -1, 1), LABELS)),
    "data set of rows": lambda folder: Dataset(ROWS),
    "generator of pairs": lambda folder: zip(PICTURES, LABELS, strict=True),
    "generator of columns": lambda folder: iter([{"image": PIXELS, "label": LABELS}]),
    "loader": lambda folder: Loader(PIXELS, LABELS),
    "loader, one-hot": lambda folder: Loader(PIXELS, np.eye(5)[LABELS]),
    "tensors": torch(lambda torch: tensor_data_set(torch).tensors),
    "tensor data set": torch(tensor_data_set),
    "tensor loader": torch(lambda torch: torch.utils.data.DataLoader(tensor_data_set(torch), 3)),
    "hugging face": hugging_face(lambda data: data),
    "hugging face, columns": hugging_face(lambda data: data[:]),
    "hugging face, stream": hugging_face(lambda data: data.to_iterable_dataset()),
    "data frame": frame,
    "grain": grain(lambda grain, data: data),
    "grain, batches": grain(lambda grain, data: data.to_iter_dataset().batch(4)),
    "grain, loader": grain(grain_loader),
}
FORMS = ALONE | LABELLED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("forms")
    put(root / "flat", PICTURES)
    np.savez(root / "set.npz", images=PIXELS, labels=LABELS)
    (root / "list.txt").write_text("".join(f"flat/{k}.png {k % 5}\n" for k in range(COUNT)))
    return root


@pytest.fixture(scope="module")
def detector(network):
    """One that learns from images, and is calibrated."""
    knn = si_jax.make_detector("knn", network, batch_size=4, k=2)
    return knn.fit(PIXELS).calibrate(noise(40, seed=1))


@pytest.fixture(scope="module")
def scores(detector):
    return detector.score(PIXELS)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_pixels_and_labels(form, folder):
    expected = LABELS if form in LABELLED else np.full(COUNT, -1)
    (batch,) = batches(as_images(FORMS[form](folder)), Preprocessing((SIZE, SIZE)), COUNT)
    np.testing.assert_array_equal(batch.images, PIXELS)
    np.testing.assert_array_equal(batch.labels, expected)
    found = as_image_set(FORMS[form](folder), "mine")  # as evaluations do
    assert len(found) == COUNT and labels(found) == expected.tolist()
    np.testing.assert_array_equal(found.load(2)[0], PIXELS[2])
    assert len(found.fingerprint) == 64 and as_image_set(found, "other") is found


@pytest.mark.parametrize("form", ["glob", "loader", "generator of pairs"])
def test_every_method_takes_them(form, detector, scores, folder):
    make, close = FORMS[form], functools.partial(np.testing.assert_allclose, rtol=1e-5)
    close(detector.score(make(folder), progress=False), scores)
    close(detector.predict(make(folder)).score, scores)
    close(copy.copy(detector).fit(make(folder)).score(PIXELS), scores)
    calibrated = copy.copy(detector).calibrate(make(folder), tpr=0.5)
    close(calibrated.threshold.scores, np.sort(scores))
    with pytest.raises(ValueError, match="one picture explains one image"):
        detector.explain(make(folder))


def test_an_evaluation_takes_them_too(folder, network, detector, scores, monkeypatch):
    """Sets of other forms have the scores of the arrays: AUROC, and their labels' accuracy."""
    monkeypatch.setattr(results, "intervals", lambda job, arrays: {})
    floats = PIXELS.astype(np.float64) / 255
    ood = {form: FORMS[form](folder) for form in ("names", "loader", "glob")}
    ood |= {"pixels": PIXELS, "grey": PIXELS[..., 0]}
    run = si_jax.evaluate_benchmark(
        None, network, id_set=iter([(floats, np.eye(5)[LABELS])]), train_set=floats, ood=ood,
        scale="unit", detectors=["knn"], options={"knn": {"k": 2}},
    )  # fmt: skip
    aurocs = {name: row["auroc"] for name, row in run.results.results["knn"].items()}
    grey = detector.score(np.repeat(PIXELS[..., :1], 3, axis=-1))
    assert aurocs.pop("grey") == pytest.approx(si_jax.metrics.auroc(scores, grey), abs=0.02)
    assert list(aurocs.values()) == pytest.approx([0.5] * 4, abs=0.02)
    expected = (network.logits(PIXELS).argmax(axis=-1) == LABELS).mean()
    assert run.results.accuracy == pytest.approx(expected)
    with pytest.raises(ValueError, match="say scale='uint8'"):
        si_jax.evaluate_benchmark(
            None, network, detectors=["msp"], id_set=floats, ood={"x": PIXELS}
        )


def test_labels_come_with_the_images_or_beside_them(network):
    for images, known in (
        (PIXELS, LABELS),
        (PIXELS, np.eye(5, dtype=np.float32)[LABELS]),
        (iter(PIXELS), LABELS.tolist()),
        ((PIXELS, LABELS), None),
        (zip(PIXELS, LABELS, strict=True), None),
    ):
        found = as_image_set(training_images(network, images, known), "train")
        assert labels(found) == LABELS.tolist()


@pytest.mark.parametrize("scale", ["unit", "uint8", "normalised"])
def test_floats_are_taken_by_all_with_their_scale(scale, detector, scores, network, monkeypatch):
    floats = PIXELS.astype(np.float32)
    if scale != "uint8":
        floats /= 255
    if scale == "normalised":
        floats = ((floats - network.mean) / network.std).astype(np.float32)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3)
    for given in (floats, iter(floats), Loader(floats)):
        close(detector.score(given, scale=scale), scores)
    if scale != "unit":
        return
    close(detector.predict(list(floats), scale=scale).score, scores)
    again = copy.copy(detector).fit(floats, scale=scale).calibrate(floats, tpr=0.5, scale=scale)
    close(again.threshold.scores, np.sort(scores))
    monkeypatch.setattr(explanation, "draw", lambda detector, shown, title: shown.image)
    given, known = (detector.explain(x[0], scale=s) for x, s in ((floats, scale), (PIXELS, None)))
    close(given, known)


def test_arrays_of_another_size_are_brought_to_it_as_files_are(detector, tmp_path):
    large = noise(2, 12, 10, 3)
    np.testing.assert_allclose(
        detector.score(large), detector.score(put(tmp_path, large)), rtol=1e-6
    )
    assert detector.predict(large).preprocessing and not detector.predict(PIXELS).preprocessing


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "of type NoneType.* holds no images: give arrays, paths"),
        (7, "of type int.* holds no images"),
        ([7], "hold a int, which is no image"),
        ([], "is empty"),
        (Loader([]), "is empty"),
        (PIXELS[:0], "is empty"),
        ([None], "has no image \\(=None\\)"),
        ([""], "has no image \\(=''\\)"),
        ("nowhere/x.png", r"nowhere/x\.png cannot be read"),
        ("nowhere", "nowhere is not a folder"),
        ("nowhere/*.png", r"no file matches nowhere/\*\.png"),
        ([b"no image"], r"cannot be decoded \(not a JPEG"),
        ({"picture": PIXELS}, "have none of the keys image"),
        ((PIXELS, LABELS[:3]), r"must be one class index for each of 8 images"),
        ((PIXELS, "cats"), "labels of images"),
        (np.zeros((2, 8, 8, 4), np.uint8), "leave out the last channel"),
        (PIXELS / 255.0, "dtype float64.* (scale='unit'|by scale=, one of .*'unit')"),
        (np.zeros((2, 9, 9, 3), np.float32), r"float32 of shape \(9, 9, 3\), where the network"),
        ([PIXELS[0], PIXELS[0].astype(np.float32)], "all of one dtype"),
        ([np.zeros((2, 2, 2, 2, 3), np.uint8)], r"shape \(2, 2, 2, 2, 3\)"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_one_sentence_everywhere(given, message, detector):
    detector = copy.copy(detector)
    for name in ("score", "predict", "explain", "calibrate", "fit"):
        with pytest.raises(ValueError, match=message) as error:
            getattr(detector, name)(given)
        assert "\n" not in str(error.value)


def test_what_a_detector_goes_through_twice_is_no_generator():
    stream = as_images(iter(PIXELS))
    assert len(list(stream.entries())) == COUNT
    with pytest.raises(ValueError, match="can be gone through but once"):
        list(stream.entries())
