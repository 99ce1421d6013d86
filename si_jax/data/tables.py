"""The benchmarks as tables.

To add a set to a benchmark, add it to a line here (and, where it's new, to the catalogue).

Two protocols: `published` crops the centre without resizing (480x480 for ImageNet), `openood`
resizes the shorter side and then crops, and takes the images that OpenOOD lists where the lists lie
below the data root; their out-of-distribution sets differ too. `far` sets
share nothing with the in-distribution classes, `near` sets resemble them; they are averaged apart.
`extra` sets are used where they lie, in no average. The near set of `published` on CIFAR is an
addition: the published averages are over the far sets.
"""

import dataclasses
from collections.abc import Mapping

from si_jax.data import catalogue as cat
from si_jax.data import digits
from si_jax.data.catalogue import Digits, Folder, SetEntry, Tfds
from si_jax.data.preprocessing import PROTOCOLS


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """In-distribution splits and, for each protocol, out-of-distribution sets.

    `size` is the key of `PREPROCESSING` next to the protocol; `train` is what detectors are
    fitted on; `lists` is OpenOOD's name for the benchmark, '' where it has none. `shifted` are
    in-distribution images that look otherwise, of the full spectrum.
    """

    name: str
    num_classes: int
    size: str
    test: SetEntry
    train: SetEntry
    ood: Mapping[str, tuple[SetEntry, ...]]
    lists: str = ""
    shifted: tuple[SetEntry, ...] = ()

    def id_entry(self, split: str, protocol: str) -> SetEntry:
        """Give the in-distribution set of a split, 'test' or 'train', under a protocol."""
        entry = self.test if split == "test" else self.train
        if not self.lists or protocol != "openood":
            return entry
        file = f"{self.lists}/{split}_{self.lists}"
        return entry.listed(file, num_classes=self.num_classes)


def _group(group: str, *entries: SetEntry) -> tuple[SetEntry, ...]:
    return tuple(entry.within(group) for entry in entries)


def _cifar(
    num_classes: int, test: SetEntry, train: SetEntry, *, other: SetEntry, corrupted: SetEntry
) -> Benchmark:
    name = test.name
    far = _group("far", cat.SVHN, cat.LSUN, cat.TINY_IMAGENET, cat.PLACES365, cat.TEXTURES)
    extra = _group("extra", cat.LSUN_RESIZE, cat.ISUN, cat.TINY_IMAGENET_RESIZE)
    return Benchmark(
        name=name,
        num_classes=num_classes,
        size="small",
        test=test,
        train=train,
        ood={
            "published": far + _group("near", other) + extra,
            "openood": _group(
                "far",
                cat.MNIST.listed(f"{name}/test_mnist"),
                cat.SVHN.listed(f"{name}/test_svhn"),
                cat.TEXTURES.listed(f"{name}/test_texture", f"{name}/test_textures"),
                cat.PLACES365.listed(f"{name}/test_places365"),
            )
            + _group(
                "near",
                other.listed(f"{name}/test_{other.name}"),
                cat.WHOLE_TINY_IMAGENET.listed(f"{name}/test_tin"),
            ),
        },
        lists=name,
        shifted=(corrupted,),
    )


_DIGITS_OOD = tuple(
    SetEntry(part, (Digits(part),), group)
    for part, group in (
        ("photos", "far"),
        ("shuffled", "far"),
        ("noise", "far"),
        ("letters", "near"),
    )
)


def _imagenet_openood(*folders: str) -> tuple[SetEntry, ...]:
    """Give OpenOOD's sets against ImageNet, its lists in the first folder that has them."""

    def listed(entry: SetEntry, *names: str) -> SetEntry:
        return entry.listed(*(f"{f}/test_{n}" for f in folders for n in names or (entry.name,)))

    return _group(
        "far",
        listed(cat.INATURALIST),
        listed(cat.TEXTURES, "textures", "texture"),
        listed(cat.OPENIMAGE_O),
    ) + _group("near", listed(cat.SSB_HARD), listed(cat.NINCO))


_IMAGENET_SHIFTED = tuple(
    entry.listed(f"imagenet/test_{entry.name}", num_classes=1000)
    for entry in (cat.IMAGENET_V2, cat.IMAGENET_C, cat.IMAGENET_R)
)
_IMAGENET200_SHIFTED = tuple(  # which of their images are of the 200 classes, the lists alone say
    dataclasses.replace(entry, places=()).listed(f"imagenet200/test_{entry.name}", num_classes=200)
    for entry in (cat.IMAGENET_V2, cat.IMAGENET_C, cat.IMAGENET_R)
)


_IMAGENET200_HINT = (
    "put OpenOOD's lists into benchmark_imglist/ and ImageNet's images into"
    " images_largescale/imagenet_1k/ below the data folder"
)
BENCHMARKS = {
    "digits": Benchmark(
        name="digits",
        num_classes=digits.CLASSES,
        size="small",
        test=SetEntry("digits", (Digits("test"),)),
        train=SetEntry("digits_train", (Digits("train"),)),
        ood=dict.fromkeys(PROTOCOLS, _DIGITS_OOD),
    ),
    "cifar10": _cifar(
        *(10, cat.CIFAR10_TEST, cat.CIFAR10_TRAIN),
        other=cat.CIFAR100_TEST,
        corrupted=cat.CIFAR10_C,
    ),
    "cifar100": _cifar(
        *(100, cat.CIFAR100_TEST, cat.CIFAR100_TRAIN),
        other=cat.CIFAR10_TEST,
        corrupted=cat.CIFAR100_C,
    ),
    "imagenet": Benchmark(
        name="imagenet",
        num_classes=1000,
        size="imagenet",
        test=SetEntry(
            "imagenet",
            (
                Tfds("imagenet2012", "validation", fetch=False),
                Folder("imagenet/val", 1000),
                Folder("images_largescale/imagenet_1k/val", 1000),
                Folder("ILSVRC2012_img_val", 1000),
            ),
            stand_in="imagenet_sample",
            hint="sort the validation images into one folder a class",
        ),
        train=SetEntry(
            "imagenet_train",
            (
                Tfds("imagenet2012", "train", fetch=False),
                Folder("imagenet/train", 1000),
                Folder("images_largescale/imagenet_1k/train", 1000),
            ),
        ),
        ood={
            "published": _group("far", cat.INATURALIST, cat.SUN, cat.PLACES, cat.TEXTURES),
            "openood": _imagenet_openood("imagenet"),
        },
        lists="imagenet",
        shifted=_IMAGENET_SHIFTED,
    ),
    # OpenOOD's choice of 200 classes, which its lists alone define, whatever the protocol
    "imagenet200": Benchmark(
        name="imagenet200",
        num_classes=200,
        size="imagenet",
        test=SetEntry("imagenet200", (), hint=_IMAGENET200_HINT).listed(
            "imagenet200/test_imagenet200", num_classes=200
        ),
        train=SetEntry("imagenet200_train", (), hint=_IMAGENET200_HINT).listed(
            "imagenet200/train_imagenet200", num_classes=200
        ),
        ood=dict.fromkeys(PROTOCOLS, _imagenet_openood("imagenet200", "imagenet")),
        shifted=_IMAGENET200_SHIFTED,
    ),
}
