"""Where the public sets come from, and which of a benchmark's sets is in which download."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Download:
    """A file that holds a set.

    Attributes:
        address: of the file.
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


_DRIVE = "https://drive.google.com/uc?id="
_OTHERS = "of the photographs' sources"


def _openood(identifier: str, folder: str, holds: str = "", images: int = 0) -> Download:
    return Download(
        f"{_DRIVE}{identifier}", folder, holds or f"{images} images", images, terms=_OTHERS
    )


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
    "cifar10_c": Download(
        "https://zenodo.org/record/2535967/files/CIFAR-10-C.tar",
        "CIFAR-10-C",
        "CIFAR-10's test images under 19 corruptions, 2.9 GB",
        md5="56bf5dcef84df0e2308c6dcbcbbd8499",
        terms="CC BY 4.0",
    ),
    "cifar100_c": Download(
        "https://zenodo.org/record/3555552/files/CIFAR-100-C.tar",
        "CIFAR-100-C",
        "CIFAR-100's test images under 19 corruptions, 2.9 GB",
        md5="11f0ed0f1191edbf9fa23466ae6021d3",
        terms="CC BY 4.0",
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
    "openood_imagenet_v2": _openood(
        "1akg2IiE22HcbvTBpwXQoD7tgfPCdkoho", "images_largescale/imagenet_v2", "ImageNet-V2"
    ),
    "openood_imagenet_c": _openood(
        "1JeXL9YH4BO8gCJ631c5BHbaSsl-lekHt", "images_largescale/imagenet_c", "ImageNet-C"
    ),
    "openood_imagenet_r": _openood(
        "1EzjMN2gq-bVV7lg-MEAdeuBuz-7jbGYU", "images_largescale/imagenet_r", "ImageNet-R"
    ),
}
"""Name -> download."""

_SAME = ("places365", "inaturalist", "sun", "places", "ssb_hard", "ninco", "openimage_o")
_CIFAR = {f"{name}{split}": name for name in ("cifar10", "cifar100") for split in ("", "_train")}
_SHIFTED = {
    **{name: name for name in ("cifar10_c", "cifar100_c")},
    **{name: f"openood_{name}" for name in ("imagenet_v2", "imagenet_c", "imagenet_r")},
}
BRINGS = {
    "published": {
        **_CIFAR,
        **_SHIFTED,
        "tiny_imagenet": "tiny_imagenet_crop",
        **{name: name for name in ("svhn", "lsun", "lsun_resize", "isun", "textures")},
        "tiny_imagenet_resize": "tiny_imagenet_resize",
        **{name: f"openood_{name}" for name in _SAME},
    },
    "openood": {
        **{name: f"openood_{name}" for name in ("cifar10", "cifar100", "svhn", "mnist", *_SAME)},
        **{f"{name}_train": f"openood_{name}" for name in ("cifar10", "cifar100")},
        **_SHIFTED,
        "textures": "openood_texture",
        "tiny_imagenet": "openood_tin",
    },
}
"""Protocol -> set -> download."""
