"""Sets as TFDS prepares them, written here without TensorFlow."""

import json
import sys
import types

import numpy as np
import pytest
from pictures import encode, labels, noise

from si_jax.data import tfds_sets
from si_jax.data.image_set import MissingSet, UnreadableImage
from si_jax.data.opening import as_image_set
from si_jax.data.tfds_sets import from_tfds

tfds = pytest.importorskip("tensorflow_datasets")
from array_record.python.array_record_module import ArrayRecordWriter  # noqa: E402
from tensorflow_datasets.proto import tf_example_pb2  # noqa: E402


def write_set(directory, splits, *, labelled=True, file_format="array_record"):
    """Write a set as TFDS prepares it; `splits` maps names to lists of shards of images."""
    directory.mkdir(parents=True)
    features = {"image": tfds.features.Image(shape=next(iter(splits.values()))[0].shape[1:])}
    features |= {"label": tfds.features.ClassLabel(num_classes=10)} if labelled else {}
    tfds.features.FeaturesDict(features).save_config(directory)
    name, infos = directory.parent.name, []
    for split, shards in splits.items():
        for number, images in enumerate(shards):
            file = f"{name}-{split}.{file_format}-{number:05d}-of-{len(shards):05d}"
            writer = ArrayRecordWriter(str(directory / file), "group_size:1")
            for image in images:
                feature = (example := tf_example_pb2.Example()).features.feature
                feature["image"].bytes_list.value.append(encode(image.squeeze()))
                if labelled:
                    feature["label"].int64_list.value.append(int(image[0, 0, 0]))
                writer.write(example.SerializeToString())
            writer.close()
        shape = {"numBytes": "100", "shardLengths": [str(len(images)) for images in shards]}
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        infos.append({"name": split, "filepathTemplate": template, **shape})
    about = {"name": name, "version": directory.name, "moduleName": "none.such", "splits": infos}
    content = json.dumps({"fileFormat": file_format, **about})
    (directory / "dataset_info.json").write_text(content)


def make_images(count, channels=3):
    images = noise(count, 6, 5, channels)
    images[:, 0, 0, 0] = np.arange(count) % 10  # the label
    return images


IMAGES = make_images(7)


@pytest.fixture
def data_dir(tmp_path):
    splits = {"train": [IMAGES[:1]], "test": [IMAGES[:4], IMAGES[4:]]}
    write_set(tmp_path / "tiny/1.0.0", splits)
    return tmp_path


def test_reads_every_shard_in_order_and_parts_of_splits(data_dir, monkeypatch):
    found = from_tfds("tiny", "test", data_dir)
    assert (found.name, len(found), found.ident(5)) == ("tiny/test", 7, "tiny/test[5]")
    assert labels(found) == list(range(7))
    for index in (6, 0, 3, 4):
        np.testing.assert_array_equal(found.load(index)[0], IMAGES[index])
    assert labels(from_tfds("tiny", "train+test[2:4]", data_dir)) == [0, 2, 3]
    assert "tensorflow" not in sys.modules
    source = tfds.builder_from_directory(data_dir / "tiny/1.0.0").as_data_source("test")
    same = as_image_set(source, "x")  # TFDS's own object is the same set
    assert labels(same) == labels(found)
    np.testing.assert_array_equal(same.load(5)[0], IMAGES[5])
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(from_tfds("tiny", "test")) == 7


def test_grey_images_without_labels(tmp_path):
    images = make_images(2, 1)
    write_set(tmp_path / "grey/1.0.0", {"test": [images]}, labelled=False)
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
    images = IMAGES.copy()
    images[6] = images[6, ::-1]  # another image of the same size
    splits = {"train": [images[:1]], "test": [images[:4], images[4:]]}
    write_set(tmp_path / "other/tiny/1.0.0", splits)
    assert first != from_tfds("tiny", "test", tmp_path / "other").fingerprint


def test_what_is_not_prepared(data_dir, monkeypatch):
    write_set(data_dir / "old/1.0.0", {"test": [IMAGES]}, file_format="tfrecord")
    monkeypatch.setattr(tfds_sets.importlib.util, "find_spec", lambda name: None)
    for name, split, fetch, message in (
        ("tiny", "validation", False, r"split \(='validation'\).*test, train"),
        ("old", "test", False, "in the format tfrecord"),
        ("cifar10", "test", False, r"file_format='array_record'"),
        ("cifar10", "test", True, r'pip install "si-jax\[tfds\]"'),
    ):
        with pytest.raises(MissingSet, match=message):
            from_tfds(name, split, data_dir, fetch=fetch)
    assert sorted(path.name for path in data_dir.iterdir()) == ["old", "tiny"]


def test_preparing_with_tensorflow(tmp_path, monkeypatch):
    """The call that downloads, seen from TFDS's side: format, folder, checksums."""
    seen = {}

    def builder(name, *, data_dir, file_format):
        def download_and_prepare(*, download_config):
            seen.update(name=name, format=file_format, config=download_config)
            if name == "another":
                raise ConnectionError("no route\nto host")
            write_set(data_dir / name / "1.0.0", {"test": [IMAGES]})

        return types.SimpleNamespace(download_and_prepare=download_and_prepare)

    monkeypatch.setattr(tfds_sets.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tfds, "builder", builder)
    assert len(from_tfds("fresh", "test", tmp_path, fetch=True)) == 7
    assert (seen["name"], seen["format"]) == ("fresh", "array_record")
    assert seen["config"].force_checksums_validation
    with pytest.raises(MissingSet, match="ConnectionError: no route to host"):
        from_tfds("another", "test", tmp_path, fetch=True)


@pytest.mark.parametrize("length", [None, 0, 65_536, 131_000, "damaged"])
def test_a_shard_that_was_cut_short_or_damaged(data_dir, length):
    """At half its length, array_record gives records without an image and no error."""
    shard = data_dir / "tiny/1.0.0/tiny-test.array_record-00001-of-00002"
    content = bytearray(shard.read_bytes())
    shard.unlink()
    if length == "damaged":
        start = content.index(b"\x89PNG")
        content[start : start + 60] = bytes(60)
        length = len(content)
    if length is not None:
        shard.write_bytes(bytes(content[:length]))
    found = from_tfds("tiny", "test", data_dir)
    assert found.load(3)[1] == 3 and found.fingerprint
    with pytest.raises(UnreadableImage, match=r"tiny/test\[4\] cannot be"):
        found.load(4)
