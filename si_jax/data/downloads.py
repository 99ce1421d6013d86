"""Where the public sets come from, and `prepare`, which brings those of a benchmark.

Addresses and MD5 sums are data, here. Archives on Google Drive come by gdown (the extra
`download`), what TFDS alone prepares by TFDS, the rest over HTTP.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from si_jax.data import files, finding, sources
from si_jax.data.catalogue import Listing, SetEntry, Tfds
from si_jax.data.fetching import FailedDownload, fetch, fetch_from_drive
from si_jax.data.image_set import MissingSet
from si_jax.data.preprocessing import PROTOCOLS
from si_jax.data.tables import BENCHMARKS
from si_jax.data.unpacking import unpack

DRIVE = "drive:"  # begins an address that is an identifier of Google Drive


@dataclasses.dataclass(frozen=True)
class Download:
    """A file that holds a set.

    Attributes:
        address: of the file; an identifier of Google Drive behind 'drive:'.
        folder: where it is unpacked, below the data root; or a file's own place.
        holds: what is in it, in words.
        images: number of images in it, 0 where that is not known.
        md5: its sum, '' where none is known; the first download's is then recorded.
        counted: the folder in which the images are counted, below `folder`.
        terms: a note on its terms of use.
    """

    address: str
    folder: str
    holds: str
    images: int = 0
    md5: str = ""
    counted: str = "."
    terms: str = "none given"


_OTHERS = "of the photographs' sources"


def _openood(identifier: str, folder: str, holds: str = "", images: int = 0) -> Download:
    return Download(DRIVE + identifier, folder, holds or f"{images} images", images, terms=_OTHERS)


DOWNLOADS = {
    "cifar10": Download(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        "50000 training and 10000 test images 32x32, 170 MB",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
    ),
    "cifar100": Download(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "cifar-100-binary",
        "50000 training and 10000 test images 32x32, 169 MB",
        md5="03b5dce01913d631647c71ecec9e9cb8",
    ),
    "svhn": Download(
        "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        "svhn/test_32x32.mat",
        "26032 test images 32x32, 64 MB",
        26032,
        "eb5a983be6a315427106f1b164d9cef3",
        terms="non-commercial",
    ),
    "lsun": Download(
        "https://www.dropbox.com/s/raw/fhtsw1m3qxlwj6h/LSUN.tar.gz",
        "LSUN",
        "10000 crops 36x36",
        10000,
        "458a0a0ab8e5f1cb4516d7400568e460",
    ),
    "lsun_resize": Download(
        "https://www.dropbox.com/s/raw/moqh2wh8696c3yl/LSUN_resize.tar.gz",
        "LSUN_resize",
        "10000 images 32x32",
        10000,
        "278b7b31c8cb7e804a1465a8ce03a2dc",
    ),
    "tiny_imagenet_crop": Download(
        "https://www.dropbox.com/s/raw/avgm2u562itwpkl/Imagenet.tar.gz",
        "Imagenet",
        "10000 crops 36x36",
        10000,
        "7c0827e4246c3718a5ee076e999e52e5",
    ),
    "tiny_imagenet_resize": Download(
        "https://www.dropbox.com/s/raw/kp3my3412u5k9rl/Imagenet_resize.tar.gz",
        "Imagenet_resize",
        "10000 images 32x32",
        10000,
        "0f9ff11d45babf2eff5fe12281d1ac31",
    ),
    "isun": Download(
        "https://www.dropbox.com/s/ssz7qxfqae0cca5/iSUN.tar.gz?dl=1",
        "iSUN",
        "8925 images 32x32",
        8925,
    ),
    "textures": Download(
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        "dtd",
        "5640 photographs, 600 MB",
        5640,
        "fff73e5086ae6bdbea199a49dfb8a4c1",
        counted="images",
        terms="research only",
    ),
    "openood_lists": _openood(
        "1lI1j0_fDDvjIt9JlWAw09X8ks-yrR_H1", "benchmark_imglist", "lists of images"
    ),
    "openood_cifar10": _openood(
        "1Co32RiiWe16lTaiOU6JMMnyUYS41IlO1", "images_classic/cifar10", "CIFAR-10 as PNG files"
    ),
    "openood_cifar100": _openood(
        "1PGKheHUsf29leJPPGuXqzLBMwl8qMF8_", "images_classic/cifar100", "CIFAR-100 as PNG files"
    ),
    "openood_tin": _openood(
        "1PZ-ixyx52U989IKsMA2OT-24fToTrelC", "images_classic/tin", "Tiny ImageNet"
    ),
    "openood_mnist": _openood(
        "1CCHAGWqA1KJTFFswuF9cbhmB-j98Y1Sb", "images_classic/mnist", "70000 digits", 70000
    ),
    "openood_svhn": _openood(
        "1DQfc11HOtB1nEwqS4pWUFp8vtQ3DczvI", "images_classic/svhn", "SVHN as PNG files"
    ),
    "openood_texture": _openood(
        "1OSz1m3hHfVWbRdmMwKbUzoU8Hg9UKcam", "images_classic/texture", images=5640
    ),
    "openood_places365": _openood(
        "1Ec-LRSTf6u5vEctKX9vRp9OA6tqnJ0Ay", "images_classic/places365", "Places365, test part"
    ),
    "openood_ssb_hard": _openood(
        "1PzkA-WGG8Z18h0ooL_pDdz9cO-DCIouE", "images_largescale/ssb_hard", images=49000
    ),
    "openood_ninco": _openood(
        "1Z82cmvIB0eghTehxOGP5VTdLt7OD3nk6", "images_largescale/ninco", images=5879
    ),
    "openood_inaturalist": _openood(
        "1zfLfMvoUD0CUlKNnkk7LgxZZBnTBipdj", "images_largescale/inaturalist", images=10000
    ),
    "openood_places": _openood(
        "1fZ8TbPC4JGqUCm-VtvrmkYxqRNp2PoB3", "images_largescale/places", images=10000
    ),
    "openood_sun": _openood(
        "1ISK0STxWzWmg-_uUr4RQ8GSLFW7TZiKp", "images_largescale/sun", images=10000
    ),
    "openood_openimage_o": _openood(
        "1VUFXnB_z70uHfdgJG2E_pjYOcEgqM7tE", "images_largescale/openimage_o", "OpenImage-O"
    ),
}
"""Name -> download."""

_SAME = ("places365", "inaturalist", "sun", "places", "ssb_hard", "ninco", "openimage_o")
_CIFAR = {f"{name}{split}": name for name in ("cifar10", "cifar100") for split in ("", "_train")}
BRINGS = {
    "published": {
        **_CIFAR,
        "tiny_imagenet": "tiny_imagenet_crop",
        **{name: name for name in ("svhn", "lsun", "lsun_resize", "isun", "textures")},
        "tiny_imagenet_resize": "tiny_imagenet_resize",
        **{name: f"openood_{name}" for name in _SAME},
    },
    "openood": {
        **{name: f"openood_{name}" for name in ("cifar10", "cifar100", "svhn", "mnist", *_SAME)},
        **{f"{name}_train": f"openood_{name}" for name in ("cifar10", "cifar100")},
        "textures": "openood_texture",
        "tiny_imagenet": "openood_tin",
    },
}
"""Protocol -> set -> download."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one set: `state` is 'there', 'fetched', 'by hand' or 'failed'."""

    name: str
    state: str
    images: int
    detail: str


def prepare(
    benchmark: str,
    protocol: str = "published",
    data_dir: str | os.PathLike | None = None,
    ood_root: str | os.PathLike | None = None,
) -> Iterator[Outcome]:
    """Bring every public set of a benchmark that is not on this machine.

    Args:
        benchmark: a key of `BENCHMARKS`.
        protocol: 'published' or 'openood'.
        data_dir: the folder of all data; `sources.default_data_dir()` by default.
        ood_root: the folder for folders of images; `data_dir` by default.

    Returns:
        An iterator that brings one set after the other and tells what became of it. A set that
        fails does not keep the next from being tried.

    Raises:
        ValueError: if `benchmark` or `protocol` is unknown.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark (={benchmark!r}) must be one of {', '.join(BENCHMARKS)}.")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol (={protocol!r}) must be one of {', '.join(PROTOCOLS)}.")
    table = BENCHMARKS[benchmark]
    where = finding.Where(data_dir, ood_root, fetch=False)
    entries = [table.id_entry("test", protocol), table.id_entry("train", protocol)]
    return _prepare([*entries, *table.ood[protocol]], protocol, where)


def bring(name: str, root: Path) -> Path:
    """Download one file, unpack it below the data root and count its images.

    Args:
        name: a key of `DOWNLOADS`.
        root: the data root.

    Returns:
        Where the set is.

    Raises:
        OSError: if it cannot be downloaded or written.
        ValueError: if it is not what it should be; nothing of it is left.
    """
    download = DOWNLOADS[name]
    target = root / download.folder
    single = Path(download.folder).suffix == ".mat"
    archive = target if single else root / "downloads" / name
    md5 = download.md5 or _recorded(root).get(name, "")
    if not archive.exists():
        address = download.address
        if address.startswith(DRIVE):
            found = fetch_from_drive(address.removeprefix(DRIVE), archive, md5)
        else:
            found = fetch(address, archive, md5)
        if not md5:
            _record(root, name, found)
    if not single:
        unpack(archive, root, download.folder)
    if download.images:
        count = len(sources.from_path(target / download.counted))
        if count != download.images:
            target.unlink() if single else shutil.rmtree(target)
            raise ValueError(
                f"{name} holds {count} images where {download.images} are known; it was deleted."
            )
    if not single:
        archive.unlink()
    return target


def _prepare(entries: list[SetEntry], protocol: str, where: finding.Where) -> Iterator[Outcome]:
    if any(entry.has_list for entry in entries):
        lists = where.root / DOWNLOADS["openood_lists"].folder
        if lists.is_dir():
            yield Outcome("OpenOOD's lists", "there", 0, str(lists))
        else:
            yield _bring_set("OpenOOD's lists", "openood_lists", where.root)
    for entry in entries:
        yield _outcome(entry, protocol, where)


def _outcome(entry: SetEntry, protocol: str, where: finding.Where) -> Outcome:
    if (there := _look(entry, where)) is not None:
        return there
    key = BRINGS[protocol].get(entry.name)
    if key is not None:
        outcome = _bring_set(entry.name, key, where.root)
        there = _look(entry, where)
        if outcome.state != "fetched" or there is None:
            return outcome
        return dataclasses.replace(there, state="fetched")
    try:
        images = finding.find(entry, dataclasses.replace(where, fetch=True))
    except (MissingSet, OSError) as error:
        public = any(isinstance(place, Tfds) and place.fetch for place in entry.places)
        return Outcome(entry.name, "failed" if public else "by hand", 0, str(error))
    return Outcome(entry.name, "fetched", len(images), "prepared by TFDS")


def _look(entry: SetEntry, where: finding.Where) -> Outcome | None:
    """Say where a set is, if it's there as the protocol takes it."""
    try:
        images, place = finding.locate(entry, where)
    except MissingSet:
        return None
    except ValueError as error:
        return Outcome(entry.name, "failed", 0, str(error))
    if entry.has_list and not isinstance(place, Listing):
        return None
    return Outcome(entry.name, "there", len(images), finding.describe(place, where))


def _bring_set(name: str, key: str, root: Path) -> Outcome:
    try:
        target = bring(key, root)
    except FailedDownload as error:
        return Outcome(name, "failed", 0, str(error))
    except (OSError, ValueError) as error:
        return Outcome(name, "failed", 0, f"{key}: {error}")
    return Outcome(name, "fetched", DOWNLOADS[key].images, str(target))


def _recorded(root: Path) -> dict[str, str]:
    try:
        found = json.loads(files.read_bytes(root / "downloads/md5.json"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _record(root: Path, name: str, md5: str) -> None:
    text = json.dumps({**_recorded(root), name: md5}, indent=1)
    files.write_text(root / "downloads/md5.json", text + "\n")
