"""Where data lies on this machine."""

import os
from pathlib import Path


def default_data_dir() -> Path:
    """Give the folder of all data: $SI_JAX_DATA, or else ~/.cache/si_jax/data."""
    return Path(os.environ.get("SI_JAX_DATA") or "~/.cache/si_jax/data").expanduser()


def tfds_dirs(data_dir: str | os.PathLike | None = None) -> tuple[Path, ...]:
    """Give the folders that may hold TFDS's sets; what is prepared anew goes to the first.

    Args:
        data_dir: the only one; or None for the folder of all data and then TFDS's own, which is
            $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    if data_dir is not None:
        return (Path(data_dir).expanduser(),)
    own = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    return (default_data_dir(), own)


def folders_root(
    data_dir: str | os.PathLike | None = None, ood_root: str | os.PathLike | None = None
) -> Path:
    """Give the folder that holds folders of images: `ood_root`, else the folder of all data."""
    chosen = data_dir if ood_root is None else ood_root
    return default_data_dir() if chosen is None else Path(chosen).expanduser()
