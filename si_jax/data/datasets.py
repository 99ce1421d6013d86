"""The data sets and the benchmarks made of them, as two tables: one row a set.

To add a set, write its row in `DATASETS` and name it in a line of `BENCHMARKS`. `far` sets share
nothing with the in-distribution classes, `near` sets resemble them; each has its average. `extra`
sets are used where they lie, in no average, and never missed. The near set of `published` on CIFAR
is an addition: the published averages are over the far sets.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from si_jax.data import digits
from si_jax.data.preprocessing import PROTOCOLS


@dataclasses.dataclass(frozen=True)
class Download:
    """A file that holds a set."""

    url: str
    folder: str  # where it is unpacked, below the data folder; or a `.mat` file's own place
    holds: str  # what is in it, in words
    images: int = 0  # how many, 0 where that is not known
    md5: str = ""  # where none is known, the first download's is recorded
    terms: str = "none given"  # of use

    @property
    def name(self) -> str:
        """What the downloaded file is called until it is unpacked."""
        return self.folder.replace("/", "-")


class Tfds(NamedTuple):
    """A split of a TFDS set."""

    name: str
    split: str


Source = str | tuple[str, ...] | Tfds
"""Where a set may lie: a path below the data folder, as `sources.from_path` opens; several files of
CIFAR's binary version; or a TFDS split."""


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set."""

    name: str  # in reports
    sources: tuple[Source, ...] = ()  # where it may lie, the preferred one first
    download: Download | None = None  # the file that holds it; of two, that of `published`
    openood: Download | None = None  # OpenOOD's own archive of it
    lists: tuple[str, ...] = ()  # OpenOOD's lists of its choice of the images; else `test_NAME`
    class_folders: bool = True  # whether these are a classifier's classes, in their order
    manually: str = ""  # how to get it by hand, an order without a full stop
    make: Callable[[], Any] | None = None  # gives images, as `as_image_set` takes, on the spot
    list_files: tuple[str, ...] = ()  # set by `listed`; the first there goes before all sources

    def listed(self, *folders: str) -> "DatasetSpec":
        """The same set as the images that OpenOOD lists for it, in folders of its lists."""
        lists = self.lists or (f"test_{self.name}",)
        files = tuple(f"benchmark_imglist/{f}/{name}.txt" for f in folders for name in lists)
        return dataclasses.replace(self, list_files=files)

    def download_for(self, protocol: str) -> Download | None:
        """The file to download under a protocol; None if there is none."""
        both = (self.download, self.openood)
        return next(filter(None, both if protocol == "published" else both[::-1]), None)


def _drive(identifier: str, folder: str, holds: str = "", images: int = 0) -> Download:
    """One of OpenOOD's archives on Google Drive."""
    url = f"https://drive.google.com/uc?id={identifier}"
    terms = "of the photographs' sources"
    return Download(url, folder, holds or f"{images} images", images, terms=terms)


def _large(name: str, identifier: str, *folders: str, images: int = 0, **rest: Any) -> DatasetSpec:
    """A set of large images, whose archive is OpenOOD's."""
    folder = f"images_largescale/{name}"
    archive = _drive(identifier, folder, "" if images else "large images", images)
    return DatasetSpec(name, (*folders, folder, name), None, archive, **rest)


def _odin(name: str, address: str, folder: str, md5: str, *others: str, **rest: Any) -> DatasetSpec:
    """A set of small images as ODIN's authors distribute it."""
    images = 8925 if name == "isun" else 10000
    size = "32x32" if name.endswith(("resize", "isun")) else "36x36"
    url = f"https://www.dropbox.com/s/{address}"
    file = Download(url, folder, f"{images} images {size}", images, md5)
    return DatasetSpec(name, others or (folder,), file, **rest)


def _cifar_sets(classes: int, md5: str, identifier: str, c_record: str, c_md5: str) -> tuple:
    """Test and training images of CIFAR, and the corrupted copies of the former."""
    name, other = f"cifar{classes}", f"cifar-{classes}"
    binary = f"{other}-batches-bin" if classes == 10 else f"{other}-binary"
    batches = [f"data_batch_{k}" for k in range(1, 6)] if classes == 10 else ["train"]
    parts = {"test": ["test_batch" if classes == 10 else "test"], "train": batches}
    test, train = (
        (Tfds(name, split), tuple(f"{binary}/{part}.bin" for part in files), f"{name}/{split}")
        for split, files in parts.items()
    )
    url = f"https://www.cs.toronto.edu/~kriz/{other}-binary.tar.gz"
    whole = Download(url, binary, "50000 training and 10000 test images 32x32, 170 MB", md5=md5)
    as_files = _drive(identifier, f"images_classic/{name}", f"CIFAR-{classes} as PNG files")
    copies = f"CIFAR-{classes}-C"
    holds = f"CIFAR-{classes}'s test images under 19 corruptions, 2.9 GB"
    url = f"https://zenodo.org/record/{c_record}/files/{copies}.tar"
    corrupted = Download(url, copies, holds, md5=c_md5, terms="CC BY 4.0")
    return (
        DatasetSpec(name, test, whole, as_files),
        DatasetSpec(f"{name}_train", train, whole, as_files, (f"train_{name}",)),
        DatasetSpec(f"{name}_c", (copies,), corrupted),
    )


LISTS = _drive(
    "1lI1j0_fDDvjIt9JlWAw09X8ks-yrR_H1", "benchmark_imglist", "OpenOOD's lists of images"
)
_WHOLE_TIN = ("images_classic/tin/val", "tiny-imagenet-200/val", "tin/val", "tiny_imagenet")
_IMAGENET_LISTED = (
    "download OpenOOD's lists to benchmark_imglist/ and ImageNet's images to"
    " images_largescale/imagenet_1k/ below the data folder"
)

# Folder names: as the sets are distributed or unpacked, then OpenOOD's layout (images_classic,
# images_largescale), then the plain name of the set.
_ROWS = (
    DatasetSpec("digits", make=partial(digits.load, "test")),
    DatasetSpec("digits_train", make=partial(digits.load, "train")),
    *(DatasetSpec(name, make=make) for name, make in digits.OOD_SETS.items()),
    *_cifar_sets(
        *(10, "c32a1d4ab5d03f1284b67883e8d87530", "1Co32RiiWe16lTaiOU6JMMnyUYS41IlO1"),
        *("2535967", "56bf5dcef84df0e2308c6dcbcbbd8499"),
    ),
    *_cifar_sets(
        *(100, "03b5dce01913d631647c71ecec9e9cb8", "1PGKheHUsf29leJPPGuXqzLBMwl8qMF8_"),
        *("3555552", "11f0ed0f1191edbf9fa23466ae6021d3"),
    ),
    DatasetSpec(
        "svhn",
        (
            Tfds("svhn_cropped", "test"),
            *("svhn/test_32x32.mat", "test_32x32.mat", "images_classic/svhn/test"),
            *("svhn/test", "svhn", "SVHN"),
        ),
        Download(
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            "svhn/test_32x32.mat",
            "26032 test images 32x32, 64 MB",
            26032,
            "eb5a983be6a315427106f1b164d9cef3",
            terms="non-commercial",
        ),
        _drive("1DQfc11HOtB1nEwqS4pWUFp8vtQ3DczvI", "images_classic/svhn", "SVHN as PNG files"),
    ),
    _odin(
        *("lsun", "raw/fhtsw1m3qxlwj6h/LSUN.tar.gz", "LSUN"),
        *("458a0a0ab8e5f1cb4516d7400568e460", "LSUN", "LSUN_C", "lsun"),
    ),
    _odin(
        *("lsun_resize", "raw/moqh2wh8696c3yl/LSUN_resize.tar.gz", "LSUN_resize"),
        *("278b7b31c8cb7e804a1465a8ce03a2dc", "LSUN_resize", "lsun_resize"),
    ),
    _odin("isun", "ssz7qxfqae0cca5/iSUN.tar.gz?dl=1", "iSUN", "", "iSUN", "isun"),
    _odin(
        *("tiny_imagenet", "raw/avgm2u562itwpkl/Imagenet.tar.gz", "Imagenet"),
        *("7c0827e4246c3718a5ee076e999e52e5", "Imagenet/test", "Imagenet_crop", *_WHOLE_TIN),
        openood=_drive("1PZ-ixyx52U989IKsMA2OT-24fToTrelC", "images_classic/tin", "Tiny ImageNet"),
        lists=("test_tin",),
    ),
    _odin(
        *("tiny_imagenet_resize", "raw/kp3my3412u5k9rl/Imagenet_resize.tar.gz"),
        *("Imagenet_resize", "0f9ff11d45babf2eff5fe12281d1ac31"),
    ),
    DatasetSpec(
        "places365",
        ("places365/test_subset", "images_classic/places365", "places365", "Places365"),
        None,
        _drive("1Ec-LRSTf6u5vEctKX9vRp9OA6tqnJ0Ay", "images_classic/places365", "its test part"),
    ),
    DatasetSpec(
        "textures",
        (
            *("dtd/images", "dtd", "images_classic/texture", "images_largescale/texture"),
            *("textures", "Textures"),
            Tfds("dtd", "train+validation+test"),  # together all 5640 images
        ),
        Download(
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            "dtd",
            "5640 photographs, 600 MB",
            5640,
            "fff73e5086ae6bdbea199a49dfb8a4c1",
            terms="research only",
        ),
        _drive("1OSz1m3hHfVWbRdmMwKbUzoU8Hg9UKcam", "images_classic/texture", images=5640),
        ("test_textures", "test_texture"),
    ),
    DatasetSpec(
        "mnist",
        (Tfds("mnist", "test"), "images_classic/mnist/test", "mnist/test", "mnist"),
        None,
        _drive("1CCHAGWqA1KJTFFswuF9cbhmB-j98Y1Sb", "images_classic/mnist", images=70000),
    ),
    _large(
        *("inaturalist", "1zfLfMvoUD0CUlKNnkk7LgxZZBnTBipdj", "iNaturalist/images", "iNaturalist"),
        images=10000,
    ),
    _large("sun", "1ISK0STxWzWmg-_uUr4RQ8GSLFW7TZiKp", "SUN/images", "SUN", images=10000),
    _large("places", "1fZ8TbPC4JGqUCm-VtvrmkYxqRNp2PoB3", "Places/images", "Places", images=10000),
    _large("ssb_hard", "1PzkA-WGG8Z18h0ooL_pDdz9cO-DCIouE", images=49000),
    _large("ninco", "1Z82cmvIB0eghTehxOGP5VTdLt7OD3nk6", "NINCO/NINCO_OOD_classes", images=5879),
    _large("openimage_o", "1VUFXnB_z70uHfdgJG2E_pjYOcEgqM7tE", "OpenImage-O"),
    DatasetSpec(
        "imagenet",
        (
            Tfds("imagenet2012", "validation"),
            *("imagenet/val/val.txt", "imagenet/val", "images_largescale/imagenet_1k/val"),
            *("ILSVRC2012_img_val/val.txt", "ILSVRC2012_img_val"),
        ),
        manually="download the validation images from https://image-net.org",
    ),
    DatasetSpec(
        "imagenet_train",
        (Tfds("imagenet2012", "train"), "imagenet/train", "images_largescale/imagenet_1k/train"),
        lists=("train_imagenet",),
        manually="download the training images from https://image-net.org",
    ),
    _large(
        *("imagenet_v2", "1akg2IiE22HcbvTBpwXQoD7tgfPCdkoho"),
        "imagenetv2-matched-frequency-format-val",
    ),
    _large("imagenet_c", "1JeXL9YH4BO8gCJ631c5BHbaSsl-lekHt", class_folders=False),
    _large("imagenet_r", "1EzjMN2gq-bVV7lg-MEAdeuBuz-7jbGYU", "imagenet-r", class_folders=False),
    # OpenOOD's choice of 200 classes, which its lists alone define
    DatasetSpec("imagenet200", manually=_IMAGENET_LISTED),
    DatasetSpec("imagenet200_train", lists=("train_imagenet200",), manually=_IMAGENET_LISTED),
)
DATASETS = {spec.name: spec for spec in _ROWS}
"""Name -> data set."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """In-distribution splits and, for each protocol, out-of-distribution sets by group."""

    name: str
    num_classes: int
    size: str  # the key of `PREPROCESSING` beside the protocol
    test: DatasetSpec
    train: DatasetSpec  # what detectors are fitted on
    ood: Mapping[str, Mapping[str, tuple[DatasetSpec, ...]]]
    shifted: tuple[DatasetSpec, ...] = ()  # covariate-shifted images of the same classes

    def specs(self, protocol: str) -> list[tuple[str, DatasetSpec]]:
        """'test', 'train' and all groups of a protocol, each with a set."""
        known = [("test", self.test), ("train", self.train)]
        if protocol == "openood":
            known = [(split, spec.listed(self.name)) for split, spec in known]
        ood = [(group, spec) for group, specs in self.ood[protocol].items() for spec in specs]
        return [*known, *ood]


def _sets(*names: str, lists: Sequence[str] = ()) -> tuple[DatasetSpec, ...]:
    """Sets by name, as what OpenOOD lists in those folders."""
    return tuple(DATASETS[name].listed(*lists) for name in names)


def _cifar(name: str, num_classes: int, other: str) -> Benchmark:
    whole_tin = dataclasses.replace(DATASETS["tiny_imagenet"].listed(name), sources=_WHOLE_TIN)
    published = {
        "far": _sets("svhn", "lsun", "tiny_imagenet", "places365", "textures"),
        "near": _sets(other),
        "extra": _sets("lsun_resize", "isun", "tiny_imagenet_resize"),
    }
    openood = {
        "far": _sets("mnist", "svhn", "textures", "places365", lists=[name]),
        "near": (*_sets(other, lists=[name]), whole_tin),
    }
    test, train, shifted = _sets(name, f"{name}_train", f"{name}_c")
    ood = {"published": published, "openood": openood}
    return Benchmark(name, num_classes, "small", test, train, ood, (shifted,))


def _imagenet_openood(*folders: str) -> Mapping[str, tuple[DatasetSpec, ...]]:
    """OpenOOD's sets against ImageNet, its lists in the first folder that has them."""
    return {
        "far": _sets("inaturalist", "textures", "openimage_o", lists=folders),
        "near": _sets("ssb_hard", "ninco", lists=folders),
    }


_DIGITS = {"far": _sets("photos", "shuffled", "noise"), "near": _sets("letters")}
_PUBLISHED = {"far": _sets("inaturalist", "sun", "places", "textures")}
_SHIFTED = ("imagenet_v2", "imagenet_c", "imagenet_r")
_TABLES = (
    Benchmark(
        *("digits", digits.CLASSES, "small"),
        test=DATASETS["digits"],
        train=DATASETS["digits_train"],
        ood=dict.fromkeys(PROTOCOLS, _DIGITS),
    ),
    _cifar("cifar10", 10, "cifar100"),
    _cifar("cifar100", 100, "cifar10"),
    Benchmark(
        *("imagenet", 1000, "imagenet"),
        test=DATASETS["imagenet"],
        train=DATASETS["imagenet_train"],
        ood={"published": _PUBLISHED, "openood": _imagenet_openood("imagenet")},
        shifted=_sets(*_SHIFTED, lists=["imagenet"]),
    ),
    Benchmark(
        *("imagenet200", 200, "imagenet"),
        test=DATASETS["imagenet200"].listed("imagenet200"),
        train=DATASETS["imagenet200_train"].listed("imagenet200"),
        ood=dict.fromkeys(PROTOCOLS, _imagenet_openood("imagenet200", "imagenet")),
        shifted=tuple(  # which of their images are of the 200 classes, the lists alone say
            dataclasses.replace(s, sources=()) for s in _sets(*_SHIFTED, lists=["imagenet200"])
        ),
    ),
)
BENCHMARKS = {table.name: table for table in _TABLES}
