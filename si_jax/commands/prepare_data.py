"""Download the public sets of a benchmark to this machine, where `si-jax evaluate` finds them.

si-jax prepare-data --dataset cifar100
si-jax prepare-data --dataset imagenet --protocol openood --data-dir /data
si-jax prepare-data --list

Nothing is asked. What is there stays; a download that was interrupted is resumed.
"""

import textwrap
from functools import partial

from si_jax.commands.options import command
from si_jax.data import downloads
from si_jax.data.benchmarks import SearchPaths
from si_jax.data.datasets import DATASETS, LISTS


@command("si-jax prepare-data", downloads.prepare, ood_root="")
def main(prepare: partial, *, dataset: str | None = None, list_: bool = False) -> None:
    """Download and report.

    Args:
        dataset: benchmark whose sets to download: cifar10, cifar100 or imagenet.
        list_: print every set with source and terms, and leave.
    """
    data_dir = prepare.keywords.get("data_dir")
    if list_:
        return list_downloads()
    if dataset is None:
        raise ValueError("--dataset says which benchmark's sets to download; --list shows all sets")
    print(f"data folder: {SearchPaths(data_dir).root}\n")
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
    if lacking := [one.name for one in outcomes if one.state in ("failed", "manually")]:
        raise ValueError(
            f"{len(lacking)} of {len(outcomes)} sets are lacking ({', '.join(lacking)}); the table"
            " says why. Run this again once that is mended; what has come is kept. Without them:"
            f" {evaluate} --allow-missing"
        )
    print(f"all is there; now: {evaluate}")


def list_downloads() -> None:
    """Print every file that can be downloaded."""
    files = [file for spec in DATASETS.values() for file in (spec.download, spec.openood)]
    for file in dict.fromkeys(filter(None, [*files, LISTS])):
        print(f"{file.folder}: {file.holds}; terms: {file.terms}")
        print(f"    from {file.url}; MD5 {file.md5 or 'recorded at the first download'}")
    others = (
        "Sets that TensorFlow Datasets has prepared are taken as they are. ImageNet has to be"
        " downloaded manually from https://image-net.org, after signing in."
    )
    print(textwrap.fill(others, 100))
