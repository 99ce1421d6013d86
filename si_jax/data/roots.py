"""Where data, and what is kept to save time, lies on this machine."""

import os
from pathlib import Path


def home() -> Path:
    """The folder of all that is kept: $SI_JAX_CACHE, or else ~/.cache/si_jax."""
    folder = Path(os.path.expanduser(os.environ.get("SI_JAX_CACHE") or "~/.cache/si_jax"))
    if folder.parts[0].startswith("~"):
        raise OSError(f"{folder} is in an unknown home folder: set $SI_JAX_CACHE to a folder")
    return folder


def default_data_dir() -> Path:
    """The folder of all data: $SI_JAX_DATA, or else `data` in `home()`."""
    given = os.environ.get("SI_JAX_DATA")
    return Path(given).expanduser() if given else home() / "data"


def tfds_dirs(data_dir: str | os.PathLike | None = None) -> tuple[Path, ...]:
    """The folders that may hold TFDS's sets; what is prepared anew goes to the first."""
    if data_dir is not None:
        return (Path(data_dir).expanduser(),)
    tfds = os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    return (default_data_dir(), Path(tfds))


def folders_root(
    data_dir: str | os.PathLike | None = None, ood_root: str | os.PathLike | None = None
) -> Path:
    """The folder that holds folders of images: `ood_root`, else the folder of all data."""
    chosen = data_dir if ood_root is None else ood_root
    return default_data_dir() if chosen is None else Path(chosen).expanduser()
