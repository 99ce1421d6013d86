"""Bring the public sets of a benchmark to this machine, where `si-jax evaluate` finds them.

si-jax prepare-data --dataset cifar100
si-jax prepare-data --dataset imagenet --protocol openood --data-dir /data
si-jax prepare-data --list
si-jax prepare-data --order ILSVRC2012_img_val --labels val.txt      # into imagenet/val, by links

Nothing is asked. What is there stays; a download that was interrupted is resumed.
"""

import textwrap
from functools import partial

from si_jax.commands.options import command
from si_jax.data import downloads, roots
from si_jax.data.imagenet import LABEL_FILES, order_by_class


@command("si-jax prepare-data", downloads.prepare, ood_root="")
def main(
    prepare: partial,
    *,
    dataset: str | None = None,
    order: str | None = None,
    labels: str | None = None,
    list_: bool = False,
) -> None:
    """Bring and report.

    Args:
        prepare: brings.
        dataset: benchmark whose sets to bring: cifar10, cifar100 or imagenet.
        order: ImageNet's flat validation folder: bring it into imagenet/val of the data folder, a
            folder a class, by links.
        labels: the labels of --order, a file; without it, its forms are listed.
        list_: print every set with source and terms, and leave.
    """
    data_dir = prepare.keywords.get("data_dir")
    if list_:
        return list_downloads()
    if order is not None:
        return order_validation(order, labels, data_dir)
    if dataset is None:
        raise ValueError("--dataset says which benchmark's sets to bring; --list shows all sets")
    print(f"data folder: {roots.folders_root(data_dir)}\n")
    outcomes = []
    for outcome in prepare(dataset):
        outcomes.append(outcome)
        count = f"{outcome.images:6d} images" if outcome.images else " " * 13
        print(f"{outcome.name:22} {outcome.state:8} {count}  {outcome.detail}", flush=True)
    print()
    option = " --full-spectrum" * prepare.keywords.get("full_spectrum", False)
    option += f" --data-dir {data_dir}" if data_dir else ""
    protocol = prepare.keywords.get("protocol", "published")
    evaluate = f"si-jax evaluate --dataset {dataset} --protocol {protocol}{option}"
    if lacking := [outcome.name for outcome in outcomes if outcome.state in ("failed", "by hand")]:
        raise ValueError(
            f"{len(lacking)} of {len(outcomes)} sets are lacking ({', '.join(lacking)}); the table"
            " says why. Run this again once that is mended; what has come is kept. Without them:"
            f" {evaluate} --allow-missing"
        )
    print(f"all is there; now: {evaluate}")


def order_validation(folder: str, labels: str | None, data_dir: str | None) -> None:
    """Bring ImageNet's validation images into class folders."""
    if labels is None:
        forms = "; ".join(f"{name} ({what})" for name, what in LABEL_FILES.items())
        raise ValueError(f"--order needs --labels FILE, one of: {forms}")
    target = roots.folders_root(data_dir) / "imagenet/val"
    images, classes = order_by_class(folder, labels, target)
    print(f"{target}: links to {images} images in {classes} class folders")


def list_downloads() -> None:
    """Print every set that can be downloaded."""
    for name, download in downloads.DOWNLOADS.items():
        print(f"{name}: {download.holds}; terms: {download.terms}")
        print(f"    from {download.address}")
        print(f"    to   {download.folder}; MD5 {download.md5 or 'recorded at the first download'}")
    others = (
        "Sets that TensorFlow Datasets has prepared are taken as they are. ImageNet has to be"
        " fetched by hand from https://image-net.org, after signing in."
    )
    print(textwrap.fill(others, 100))
