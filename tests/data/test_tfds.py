import json
import sys
import types

import numpy as np
import pytest
from pictures import encode, labels

from si_jax.data import tfds_sets
from si_jax.data.image_set import MissingSet, UnreadableImage
from si_jax.data.opening import as_image_set
from si_jax.data.tfds_sets import from_tfds

tfds = pytest.importorskip("tensorflow_datasets")
from array_record.python.array_record_module import ArrayRecordWriter  # noqa: E402
from tensorflow_datasets.proto import tf_example_pb2  # noqa: E402

PACKAGE = "tensorflow_datasets.core.features."
SHAPES = {"rgb": (6, 5, 3), "grey": (6, 5, 1)}


def write_set(directory, splits, *, kind="rgb", labelled=True, file_format="array_record"):
    """Write a set as TFDS prepares it; `splits` maps names to lists of shards of images."""
    directory.mkdir(parents=True)
    features = {
        "image": {
            "pythonClassName": f"{PACKAGE}image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": [str(n) for n in SHAPES[kind]]}},
        }
    }
    if labelled:
        features["label"] = {
            "pythonClassName": f"{PACKAGE}class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "10"},
        }
    (directory / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": f"{PACKAGE}features_dict.FeaturesDict",
                "featuresDict": {"features": features},
            }
        )
    )
    name, infos = directory.parent.name, []
    for split, shards in splits.items():
        for number, images in enumerate(shards):
            file = f"{name}-{split}.{file_format}-{number:05d}-of-{len(shards):05d}"
            writer = ArrayRecordWriter(str(directory / file), "group_size:1")
            for image in images:
                example = tf_example_pb2.Example()
                example.features.feature["image"].bytes_list.value.append(encode(image.squeeze()))
                if labelled:
                    example.features.feature["label"].int64_list.value.append(int(image[0, 0, 0]))
                writer.write(example.SerializeToString())
            writer.close()
        infos.append(
            {
                "name": split,
                "numBytes": "100",
                "shardLengths": [str(len(images)) for images in shards],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    (directory / "dataset_info.json").write_text(
        json.dumps(
            {
                "name": name,
                "version": directory.name,
                "fileFormat": file_format,
                "moduleName": "none.such",
                "splits": infos,
            }
        )
    )


def make_images(count, kind="rgb", seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *SHAPES[kind]), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count) % 10  # the label
    return images


@pytest.fixture
def data_dir(tmp_path):
    images = make_images(7)
    write_set(tmp_path / "tiny/1.0.0", {"train": [images[:1]], "test": [images[:4], images[4:]]})
    return tmp_path


def test_reads_every_shard_in_order_and_parts_of_splits(data_dir):
    found, images = from_tfds("tiny", "test", data_dir), make_images(7)
    assert (found.name, len(found), found.ident(5)) == ("tiny/test", 7, "tiny/test[5]")
    assert labels(found) == list(range(7))
    for index in (6, 0, 3, 4):
        np.testing.assert_array_equal(found.load(index)[0], images[index])
    assert labels(from_tfds("tiny", "train+test[2:4]", data_dir)) == [0, 2, 3]
    assert "tensorflow" not in sys.modules


def test_grey_images_without_labels(tmp_path):
    images = make_images(2, "grey")
    write_set(tmp_path / "grey/1.0.0", {"test": [images]}, kind="grey", labelled=False)
    image, label = from_tfds("grey", "test", tmp_path).load(1)
    np.testing.assert_array_equal(image, np.repeat(images[1], 3, axis=-1))
    assert label == -1


def test_a_configuration_and_the_highest_version(tmp_path):
    for version, count in (("2.0.0", 2), ("10.0.0", 3), ("9.9.9", 4)):
        write_set(tmp_path / f"set/config/{version}", {"test": [make_images(count)]})
    assert len(from_tfds("set/config", "test", tmp_path)) == 3


def test_fingerprint(data_dir, tmp_path):
    first = from_tfds("tiny", "test", data_dir).fingerprint
    assert first == from_tfds("tiny", "test", data_dir).fingerprint
    assert first != from_tfds("tiny", "test[:6]", data_dir).fingerprint
    images = make_images(7)
    images[6] = images[6, ::-1]  # another image of the same size
    splits = {"train": [images[:1]], "test": [images[:4], images[4:]]}
    write_set(tmp_path / "other/tiny/1.0.0", splits)
    assert first != from_tfds("tiny", "test", tmp_path / "other").fingerprint


def test_a_data_source_of_tfds_is_the_same_set(data_dir):
    source = tfds.builder_from_directory(data_dir / "tiny/1.0.0").as_data_source("test")
    found, expected = as_image_set(source, "x"), from_tfds("tiny", "test", data_dir)
    assert labels(found) == labels(expected)
    np.testing.assert_array_equal(found.load(5)[0], expected.load(5)[0])


def test_default_data_dir(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(from_tfds("tiny", "test")) == 7


def test_a_split_that_was_not_prepared(data_dir):
    with pytest.raises(MissingSet, match=r"split \(='validation'\).*test, train"):
        from_tfds("tiny", "validation", data_dir)


def test_another_format(tmp_path):
    write_set(tmp_path / "old/1.0.0", {"test": [make_images(2)]}, file_format="tfrecord")
    with pytest.raises(MissingSet, match="in the format tfrecord"):
        from_tfds("old", "test", tmp_path)


def test_damaged_records_are_named(data_dir):
    shard = data_dir / "tiny/1.0.0/tiny-test.array_record-00001-of-00002"
    content = bytearray(shard.read_bytes())
    start = content.index(b"\x89PNG")
    content[start : start + 60] = bytes(60)
    shard.write_bytes(bytes(content))
    found = from_tfds("tiny", "test", data_dir)
    assert found.load(0)[1] == 0
    damaged = []
    for index in range(len(found)):
        try:
            found.load(index)
        except UnreadableImage as error:
            damaged.append(str(error))
    assert damaged
    assert "tiny/test[4]" in damaged[0]


def test_unprepared_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_sets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingSet, match=r'pip install "si-jax\[tfds\]"'):
        from_tfds("cifar10", "test", tmp_path, fetch=True)
    with pytest.raises(MissingSet, match=r"file_format='array_record'"):
        from_tfds("cifar10", "test", tmp_path)
    assert not list(tmp_path.iterdir())


def test_preparing_with_tensorflow(tmp_path, monkeypatch):
    """The call that downloads, seen from TFDS's side: format, folder, checksums."""
    seen = {}

    def builder(name, *, data_dir, file_format):
        def download_and_prepare(*, download_config):
            seen.update(name=name, format=file_format, config=download_config)
            write_set(data_dir / name / "1.0.0", {"test": [make_images(3)]})

        return types.SimpleNamespace(download_and_prepare=download_and_prepare)

    monkeypatch.setattr(tfds_sets.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tfds, "builder", builder)
    assert len(from_tfds("fresh", "test", tmp_path, fetch=True)) == 3
    assert (seen["name"], seen["format"]) == ("fresh", "array_record")
    assert seen["config"].force_checksums_validation

    def failing(name, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds, "builder", failing)
    with pytest.raises(MissingSet, match="ConnectionError: no route to host"):
        from_tfds("another", "test", tmp_path, fetch=True)


@pytest.mark.parametrize("length", [None, 0, 65_536, 131_000])
def test_a_shard_that_was_cut_short(tmp_path, length):
    """At half its length, array_record gives records without an image and no error."""
    directory = tmp_path / "cifar10/3.0.2"
    write_set(directory, {"test": [make_images(4), make_images(4, seed=1)]})
    shard = sorted(directory.glob("*.array_record-*"))[1]
    content = shard.read_bytes()
    shard.unlink()
    if length is not None:
        shard.write_bytes(content[:length])
    found = from_tfds("cifar10", "test", tmp_path)
    assert found.load(3)[1] == 3 and found.fingerprint
    with pytest.raises(UnreadableImage, match=r"test\[4\] cannot be read from"):
        found.load(4)
