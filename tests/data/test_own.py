from pathlib import Path

import numpy as np
import pytest
from pictures import Dataset
from PIL import Image

from si_jax.data import sources
from si_jax.data.folders import from_folder
from si_jax.data.image_set import MissingSet, subset
from si_jax.data.opening import as_image_set
from si_jax.data.own import resolve_own
from si_jax.data.preprocessing import Preprocessing
from si_jax.data.synthetic import sets_of
from si_jax.data.tfds_sets import from_tfds

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
RNG = np.random.default_rng(0)
SMALL = Preprocessing(resize=8, crop=(8, 8))
IMAGES = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def put(folder, count=2, value=None):
    folder.mkdir(parents=True)
    for k in range(count):
        pixels = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels if value is None else np.full_like(pixels, value)).save(
            folder / f"{k}.png"
        )


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for value, name in enumerate(("ant", "bee", "cat")):
            put(tmp_path / "pets" / split / name, value=value)
    return tmp_path / "pets"


def labels(images):
    return [images.load(k)[1] for k in range(len(images))]


def find(root, **options):
    return resolve_own(root, num_classes=3, preprocessing=SMALL, **options)


def test_a_folder(root):
    put(root / "ood/cars", 3)
    np.savez(root / "ood/noise.npz", images=IMAGES)
    found = find(root)
    assert (found.test.name, found.protocol, found.preprocessing) == ("pets", "own", SMALL)
    assert labels(found.test) == labels(found.train) == [0, 0, 1, 1, 2, 2]
    assert [(o.name, o.group, len(o.images)) for o in found.ood] == [
        ("cars", "ood", 3),
        ("noise", "ood", 6),
    ]
    assert found.incomplete == () and found.absent == () and found.notes == ()
    more = find(root, ood={"mine": IMAGES, "cars": IMAGES})
    assert {o.name: len(o.images) for o in more.ood} == {"cars": 6, "noise": 6, "mine": 6}


def test_classes_go_by_name(root):
    found = find(root, classes=("cat", "dog", "ant", "bee"))
    assert labels(found.test) == [2, 2, 3, 3, 0, 0]
    with pytest.raises(ValueError, match=r"class folder 'cat' \(1 such\), which the classifier's"):
        find(root, classes=("ant", "bee", "dog"))
    with pytest.raises(ValueError, match="3 class folders where the classifier has 4"):
        resolve_own(root, num_classes=4, preprocessing=SMALL)


def test_made_up_sets_where_there_is_none(root):
    found = find(root)
    assert [(o.name, o.group) for o in found.ood] == [
        ("noise", "made"),
        ("shuffled", "made"),
        ("blurred", "made"),
    ]
    again = find(root)
    for one, two in zip(found.ood, again.ood, strict=True):
        image, label = one.images.load(3)
        assert (image.shape, label) == ((8, 10, 3), -1)
        assert SMALL(image).shape == (8, 8, 3)
        np.testing.assert_array_equal(image, two.images.load(3)[0])
        assert one.images.fingerprint == two.images.fingerprint
    assert len({o.images.fingerprint for o in found.ood}) == 3


def test_what_the_made_up_sets_are():
    made = sets_of(sources.from_arrays("x", IMAGES), SMALL)
    shuffled, _ = made["shuffled"].load(0)
    assert not np.array_equal(shuffled, IMAGES[0])
    rows = sorted(map(tuple, shuffled.reshape(-1, 3))), sorted(map(tuple, IMAGES[0].reshape(-1, 3)))
    assert rows[0] == rows[1]
    noise, _ = made["noise"].load(0)
    assert set(map(tuple, noise.reshape(-1, 3))) <= set(rows[1])
    assert made["blurred"].load(0)[0].std() < IMAGES[0].std()


def test_sets_given_one_by_one(root, tmp_path):
    found = resolve_own(
        None,
        num_classes=3,
        preprocessing=SMALL,
        test=root / "val",
        train=(IMAGES, np.arange(6) % 3),
        ood={"x": list(IMAGES)},
        name="mine",
    )
    assert (found.test.name, found.train.name) == ("mine", "mine_train")
    assert labels(found.train) == [0, 1, 2, 0, 1, 2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingSet, match="has no folder val or test"):
        find(tmp_path / "empty")
    with pytest.raises(MissingSet, match="is not a folder"):
        find(tmp_path / "absent")


def test_numbers_are_taken_in_their_order_and_the_other_is_known(tmp_path):
    for name in ("0", "1", "2", "10"):
        put(tmp_path / "set" / name, 1)
    found = from_folder(tmp_path / "set", num_classes=4)
    assert [found.ident(k) for k in range(4)] == ["0/0.png", "1/0.png", "10/0.png", "2/0.png"]
    assert labels(found) == [0, 1, 3, 2]
    assert found.other_labels == (0, 1, 3, 2)
    assert subset(found, 2).other_labels == found.other_labels
    (tmp_path / "set/10").rename(tmp_path / "set/3")
    assert from_folder(tmp_path / "set").other_labels == ()


GREY = Image.fromarray(IMAGES[0, ..., 0])
FORMS = {
    "array": IMAGES,
    "pair": (IMAGES, np.arange(6)),
    "dictionary of arrays": {"image": IMAGES, "label": np.arange(6)},
    "list of images": list(IMAGES),
    "pairs": Dataset([(image, k) for k, image in enumerate(IMAGES)]),
    "dictionaries": Dataset([{"img": image, "fine_label": k} for k, image in enumerate(IMAGES)]),
    "pillow": Dataset([(Image.fromarray(image), k) for k, image in enumerate(IMAGES)]),
    "channels first": Dataset([(np.moveaxis(i, -1, 0), k) for k, i in enumerate(IMAGES)]),
    "loader": iter([(IMAGES[:4], np.arange(4)), (IMAGES[4:], np.arange(4, 6))]),
    "loader of dictionaries": iter([{"image": IMAGES, "label": np.arange(6)}]),
    "loader, channels first": iter([(np.moveaxis(IMAGES, -1, 1), np.arange(6))]),
}


@pytest.mark.parametrize("form", FORMS)
def test_everything_that_holds_images(form):
    found = as_image_set(FORMS[form], "mine")
    for index in range(6):
        np.testing.assert_array_equal(found.load(index)[0], IMAGES[index])
    unlabelled = form in ("array", "list of images")
    assert labels(found) == ([-1] * 6 if unlabelled else list(range(6)))
    assert len(found) == 6 and found.ident(2) == "mine[2]"
    assert len(found.fingerprint) == 64
    assert as_image_set(found, "other") is found


def test_torch_loaders():
    torch = pytest.importorskip("torch")
    images = torch.from_numpy(np.moveaxis(IMAGES, -1, 1).copy())
    data = torch.utils.data.TensorDataset(images, torch.arange(6))
    for source in (data, torch.utils.data.DataLoader(data, batch_size=4)):
        found = as_image_set(source, "torch")
        np.testing.assert_array_equal(found.load(5)[0], IMAGES[5])
        assert labels(found) == list(range(6))


def check(source):
    found = as_image_set(source, "mine")
    assert labels(found) == list(range(6))
    for index in (0, 5):
        np.testing.assert_array_equal(found.load(index)[0], IMAGES[index])


def test_data_sets_of_hugging_face():
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face's datasets")
    features = datasets.Features(
        {"img": datasets.Image(), "fine_label": datasets.ClassLabel(num_classes=6)}
    )
    rows = {"img": [Image.fromarray(image) for image in IMAGES], "fine_label": list(range(6))}
    data = datasets.Dataset.from_dict(rows, features=features)
    check(data)
    check(data.to_iterable_dataset())
    with pytest.raises(ValueError, match=r"none of the keys image, img.* but test"):
        as_image_set(datasets.DatasetDict({"test": data}), "x")


def test_data_sets_and_loaders_of_grain():
    grain = pytest.importorskip("grain", reason="needs grain")
    pairs = Dataset([{"image": image, "label": k} for k, image in enumerate(IMAGES)])
    data = grain.MapDataset.source(pairs)
    check(data)
    check(data.to_iter_dataset())
    check(data.to_iter_dataset().batch(4))
    sampler = grain.samplers.SequentialSampler(
        num_records=6, shard_options=grain.sharding.NoSharding()
    )
    check(grain.DataLoader(data_source=pairs, sampler=sampler, worker_count=0))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} isn't there: no TFDS set to read")
def test_data_sources_of_tfds():
    import tensorflow_datasets as tfds

    source = tfds.data_source("cifar100", split="test[:20]", data_dir=SHARED / "tfds")
    found, expected = (
        as_image_set(source, "x"),
        from_tfds("cifar100", "test", SHARED / "tfds"),
    )
    for index in (0, 19):
        image, label = found.load(index)
        np.testing.assert_array_equal(image, expected.load(index)[0])
        assert label == expected.load(index)[1]


def test_grey_and_wrong_items():
    assert as_image_set([GREY], "x").load(0)[0].shape == (8, 8, 3)
    for data, message in (
        ([{"picture": IMAGES[0]}], "none of the keys image, img"),
        (7, "of type int"),
        ([], "x is empty"),
        (iter([]), "x is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            as_image_set(data, "x")
