"""Sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import importlib.util
import os
import re
from pathlib import Path

import numpy as np

from si_jax.data.decoding import decode
from si_jax.data.files import AnyPath, default_data_dir
from si_jax.data.image_set import NO_LABEL, ImageSet, MissingSet, UnreadableImage, make_set


def from_tfds(
    name: str, split: str, data_dir: AnyPath | None = None, *, fetch: bool = False, called: str = ""
) -> ImageSet:
    """Open one split of a TFDS set of images as it lies; with `fetch`, TensorFlow prepares it."""
    directory, home = find_prepared(name, data_dir), tfds_dirs(data_dir)[0]
    if directory is None and fetch:
        _prepare(name, home)
        directory = find_prepared(name, home)
    if directory is None:
        raise MissingSet(
            f"{name} is not prepared in {home}: prepare it there with tfds.builder({name!r}"
            f", data_dir={str(home)!r}, file_format='array_record').download_and_prepare()"
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(directory))
    if builder.info.file_format.value != "array_record":
        raise MissingSet(
            f"{directory} is in the format {builder.info.file_format.value}, which has no random"
            " access: prepare the set again with file_format='array_record' in another data_dir"
        )
    if "image" not in builder.info.features:
        raise ValueError(f"{directory} has no feature 'image': choose a set of labelled images")
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        source = builder.as_data_source(split=split, decoders=decoders)
    except (ValueError, KeyError) as error:
        raise MissingSet(
            f"split (={split!r}) is none of those that are prepared in {directory}:"
            f" {', '.join(sorted(builder.info.splits))}"
        ) from error
    except OSError as error:
        raise MissingSet(f"{directory} lacks files ({error}): prepare the set again") from error
    if not len(source):
        raise MissingSet(f"split (={split!r}) of {directory} holds no images: prepare it again")

    def ident(index: int) -> str:
        return f"{name}/{split}[{index}]"

    def read(index: int) -> tuple[bytes, int]:
        try:
            record = source[index]
            image, label = record["image"], record.get("label", NO_LABEL)
            if not image:  # as of a shard that was cut short
                raise ValueError("it has no image")
        except Exception as error:  # array_record raises what its C++ reader reports
            raise UnreadableImage(
                f"{ident(index)} cannot be read from {directory} ({error}): prepare the set again"
            ) from error
        return image, int(NO_LABEL if label is None else label)

    def load(index: int) -> tuple[np.ndarray, int]:
        image, label = read(index)
        return decode(image, ident(index)), label

    def origin(indices: np.ndarray) -> tuple[list[Path], object]:
        return sorted(directory.glob("*.array_record*")), (split, indices.tobytes())

    splits = sorted(builder.info.splits.items())
    shards = [(key, info.shard_lengths, info.num_bytes) for key, info in splits]
    structure = ("tfds", name, str(builder.info.version), split, shards)
    called, size = called or f"{name}/{split}", len(source)
    return make_set(called, size, load, structure, ident=ident, read=read, origin=origin)


def find_prepared(name: str, data_dir: AnyPath | None = None) -> Path | None:
    """Find the highest prepared version of a set in the first folder that has one, or None."""
    for folder in tfds_dirs(data_dir):
        found = [info.parent for info in (folder / name).glob("*/dataset_info.json")]
        versions = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
        if versions:
            return max(versions, key=lambda path: [int(part) for part in path.name.split(".")])
    return None


def tfds_dirs(data_dir: AnyPath | None = None) -> tuple[Path, ...]:
    """The folders that may hold TFDS's sets; what is prepared anew goes to the first."""
    if data_dir is not None:
        return (Path(data_dir).expanduser(),)
    tfds = os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    return (default_data_dir(), Path(tfds))


def _prepare(name: str, data_dir: Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise MissingSet(
            f'{name} is not prepared in {data_dir}: pip install "si-jax[tfds]" to download and'
            " prepare it, or give the directory in which it is as data_dir"
        )
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(force_checksums_validation=True)
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # TFDS raises whatever its downloader and its set's code do
        reason = " ".join(str(error).split())[:300]
        raise MissingSet(
            f"{name} cannot be downloaded and prepared in {data_dir} ({type(error).__name__}:"
            f" {reason}): check the network and the free space, or prepare it manually"
        ) from error
