"""The catalogue: every single data set that a benchmark may use, and where it may come from.

To let a set be found in one more place, add that place to its line.
"""

import dataclasses

GROUPS = ("far", "near", "extra")  # 'extra' sets are in no average and never missed
SHIFTED = "shifted"  # the group of in-distribution images that look otherwise


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A split of a TFDS set; `fetch` is False where it's too large to be downloaded unasked."""

    name: str
    split: str
    fetch: bool = True


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder (or `.npz`, `.mat` file) below `ood_root`; `num_classes` if its labels count."""

    path: str
    num_classes: int | None = None


@dataclasses.dataclass(frozen=True)
class Digits:
    """A part of the offline benchmark: 'train', 'test' or one of its out-of-distribution sets."""

    part: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images that a text file below the data root lists: OpenOOD's own choice of them.

    Attributes:
        files: the file's path; or others by which it goes.
        roots: folders that the listed paths may be relative to.
        num_classes: if its labels count.
    """

    files: tuple[str, ...]
    roots: tuple[str, ...]
    num_classes: int | None = None


@dataclasses.dataclass(frozen=True)
class CifarBinary:
    """Files of CIFAR's binary version below `ood_root`, as its archive unpacks."""

    paths: tuple[str, ...]
    num_classes: int


Place = Tfds | Folder | Digits | Listing | CifarBinary


@dataclasses.dataclass(frozen=True)
class SetEntry:
    """One set of a benchmark.

    Attributes:
        name: what the report calls it.
        places: where it may come from, the preferred place first.
        group: 'far', 'near' or 'extra'; '' for in-distribution.
        stand_in: name of the entry of `STAND_INS` to use, under its own name, where the set itself
            is absent.
        hint: how to get the set by hand, an order without its full stop.
    """

    name: str
    places: tuple[Place, ...]
    group: str = ""
    stand_in: str | None = None
    hint: str = ""

    def listed(self, *files: str, num_classes: int | None = None) -> "SetEntry":
        """Give the same set as the images that OpenOOD lists for it."""
        listing = Listing(
            tuple(f"benchmark_imglist/{file}.txt" for file in files),
            ("images_classic", "images_largescale", "."),
            num_classes,
        )
        return dataclasses.replace(self, places=(listing, *self.places))

    @property
    def has_list(self) -> bool:
        """Whether OpenOOD lists its images."""
        return any(isinstance(place, Listing) for place in self.places)

    def within(self, group: str) -> "SetEntry":
        """Give the same set as a member of a group."""
        return dataclasses.replace(self, group=group)


def _folders(*paths: str) -> tuple[Folder, ...]:
    return tuple(Folder(path) for path in paths)


# Sets that may take the place of an absent one, never under its name.
STAND_INS = {
    "svhn_grey_recrop": _folders("svhn_grey_recrop"),  # cut anew from SVHN's photographs, in grey
    "tiny_imagenet64": _folders("tiny_imagenet64"),  # a part of Tiny ImageNet's validation images
    "places128": _folders("places128"),  # 1000 images of Places, 128x128
    "textures224": _folders("textures224"),  # 470 images of DTD, cropped to 224x224
    "imagenet_sample": (Folder("imagenet_sample", 1000),),  # one photograph of each of 100 classes
}

# Folder names: as the sets are distributed or unpacked, then OpenOOD's layout (images_classic,
# images_largescale), then the plain name of the set.
SVHN = SetEntry(
    "svhn",
    (
        Tfds("svhn_cropped", "test"),
        *_folders("svhn/test_32x32.mat", "test_32x32.mat", "images_classic/svhn/test"),
        *_folders("svhn/test", "svhn", "SVHN"),
    ),
    stand_in="svhn_grey_recrop",
)
LSUN = SetEntry(
    "lsun",
    _folders("LSUN", "LSUN_C", "lsun"),
    hint="unpack LSUN.tar.gz, the crops distributed with ODIN",
)
LSUN_RESIZE = SetEntry("lsun_resize", _folders("LSUN_resize", "lsun_resize"))
ISUN = SetEntry("isun", _folders("iSUN", "isun"))
_WHOLE_TINY_IMAGENET = (
    *("images_classic/tin/val", "tiny-imagenet-200/val"),
    *("tin/val", "tiny_imagenet"),
)
TINY_IMAGENET = SetEntry(
    "tiny_imagenet",
    _folders(
        *("Imagenet/test", "Imagenet_crop"),  # ODIN's crops, which the published results are on
        *_WHOLE_TINY_IMAGENET,
    ),
    stand_in="tiny_imagenet64",
    hint="unpack tiny-imagenet-200.zip",
)
WHOLE_TINY_IMAGENET = dataclasses.replace(TINY_IMAGENET, places=_folders(*_WHOLE_TINY_IMAGENET))
TINY_IMAGENET_RESIZE = SetEntry("tiny_imagenet_resize", _folders("Imagenet_resize"))
PLACES365 = SetEntry(
    "places365",
    _folders("places365/test_subset", "images_classic/places365", "places365", "Places365"),
    stand_in="places128",
    hint="unpack the test subset of Places365",
)
TEXTURES = SetEntry(
    "textures",
    (
        *_folders("dtd/images", "dtd", "images_classic/texture", "images_largescale/texture"),
        *_folders("textures", "Textures"),
        Tfds("dtd", "train+validation+test"),  # together all 5640 images
    ),
    stand_in="textures224",
)
MNIST = SetEntry(
    "mnist", (Tfds("mnist", "test"), *_folders("images_classic/mnist/test", "mnist/test", "mnist"))
)
INATURALIST = SetEntry(
    "inaturalist",
    _folders("iNaturalist/images", "iNaturalist", "images_largescale/inaturalist", "inaturalist"),
    hint="unpack the 10,000-image subset of iNaturalist",
)
SUN = SetEntry(
    "sun",
    _folders("SUN/images", "SUN", "images_largescale/sun", "sun"),
    hint="unpack the 10,000-image subset of SUN",
)
PLACES = SetEntry(
    "places",
    _folders("Places/images", "Places", "images_largescale/places", "places"),
    stand_in="places128",
    hint="unpack the 10,000-image subset of Places",
)
SSB_HARD = SetEntry("ssb_hard", _folders("images_largescale/ssb_hard", "ssb_hard"))
NINCO = SetEntry("ninco", _folders("images_largescale/ninco", "ninco", "NINCO/NINCO_OOD_classes"))
OPENIMAGE_O = SetEntry(
    "openimage_o", _folders("images_largescale/openimage_o", "openimage_o", "OpenImage-O")
)


def _cifar(name: str, split: str, num_classes: int, *binary: str) -> SetEntry:
    places = (
        Tfds(name, split),
        CifarBinary(binary, num_classes),
        Folder(f"{name}/{split}", num_classes),
    )
    hint = f"run si-jax prepare-data --dataset {name}"
    return SetEntry(name if split == "test" else f"{name}_{split}", places, hint=hint)


CIFAR10_TEST = _cifar("cifar10", "test", 10, "cifar-10-batches-bin/test_batch.bin")
CIFAR10_TRAIN = _cifar(
    *("cifar10", "train", 10), *(f"cifar-10-batches-bin/data_batch_{k}.bin" for k in range(1, 6))
)
CIFAR100_TEST = _cifar("cifar100", "test", 100, "cifar-100-binary/test.bin")
CIFAR100_TRAIN = _cifar("cifar100", "train", 100, "cifar-100-binary/train.bin")


def _shifted(name: str, hint: str, *folders: Folder) -> SetEntry:
    return SetEntry(name, folders, SHIFTED, hint=hint)


_BRING = "run si-jax prepare-data --full-spectrum --dataset"
CIFAR10_C = _shifted("cifar10_c", f"{_BRING} cifar10", Folder("CIFAR-10-C", 10))
CIFAR100_C = _shifted("cifar100_c", f"{_BRING} cifar100", Folder("CIFAR-100-C", 100))
IMAGENET_V2 = _shifted(
    "imagenet_v2",
    f"{_BRING} imagenet",
    Folder("images_largescale/imagenet_v2", 1000),
    Folder("imagenetv2-matched-frequency-format-val", 1000),
)
IMAGENET_C = _shifted("imagenet_c", f"{_BRING} imagenet", Folder("images_largescale/imagenet_c"))
IMAGENET_R = _shifted(
    "imagenet_r", f"{_BRING} imagenet", *_folders("images_largescale/imagenet_r", "imagenet-r")
)
