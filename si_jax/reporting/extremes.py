"""The images that look most and least in-distribution, kept small beside the scores.

With them a report shows images without having the sets at hand.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from si_jax.data.files import BROKEN, read_arrays, write_atomically
from si_jax.data.image_set import ImageSet

FILE = "thumbnails.npz"
COUNT = 6  # images at either end
SIDE = 96  # pixels, the longer side of a thumbnail
ENDS = ("most", "least")


@dataclass(frozen=True)
class Pick:
    """One image at one end of a set's scores.

    Attributes:
        image: (h, w, 3) thumbnail.
        ident: the image's name within its set.
        index: its place in the set.
        score: the detector's.
    """

    image: UInt8[np.ndarray, "h w 3"]
    ident: str
    index: int
    score: float


Extremes = Mapping[tuple[str, str, str], Sequence[Pick]]
"""(set, detector, `"most"` or `"least"`) -> the images, the most extreme one first."""


def save(
    directory: Path,
    arrays: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    image_sets: Sequence[ImageSet],
    transform: Callable[[np.ndarray], np.ndarray],
    detectors: Sequence[str],
    *,
    count: int = COUNT,
    side: int = SIDE,
) -> Path:
    """Write the thumbnails of every set's most and least in-distribution-looking images.

    An image that several detectors pick is decoded and kept once.

    Args:
        directory: the run's.
        arrays: set -> detector -> `"score"` (n,) and `"index"` (n,), as `evaluation.evaluate` gives
            them.
        image_sets: the sets that were scored.
        transform: what brought the images, (h, w, 3), to the model's input size.
        detectors: those to pick for.
        count: how many images at either end.
        side: the longer side of a thumbnail at most; smaller images are not enlarged.

    Returns:
        The file's path.
    """
    images: list[np.ndarray] = []
    names: list[str] = []
    picks: list[tuple[str, str, str, int, int, float]] = []
    for image_set in image_sets:
        chosen = {
            (detector, end): order
            for detector in detectors
            for end, order in _ends(arrays[image_set.name][detector]["score"], count).items()
        }
        rows: dict[int, int] = {}  # the image's place in the set -> in `images`
        for (detector, end), order in chosen.items():
            scored = arrays[image_set.name][detector]
            for place in order:
                index = int(scored["index"][place])
                if index not in rows:
                    rows[index] = len(images)
                    images.append(_thumbnail(transform(image_set.load(index)[0]), side))
                    names.append(image_set.ident(index))
                score = float(scored["score"][place])
                picks.append((image_set.name, detector, end, rows[index], index, score))
    fields = ("set", "detector", "end", "row", "index", "score")
    columns = zip(fields, zip(*picks, strict=True), strict=True)
    table: dict[str, Any] = {f"pick_{name}": np.array(values) for name, values in columns}
    path = Path(directory) / FILE
    write_atomically(
        path,
        lambda file: np.savez_compressed(
            file, image=np.stack(images), ident=np.array(names), **table
        ),
    )
    return path


def load(directory: Path) -> Extremes:
    """What `save` wrote; empty where there is no such file.

    Raises:
        ValueError: if the file is broken.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        return {}
    picks: dict[tuple[str, str, str], list[Pick]] = {}
    try:
        arrays = read_arrays(path)
        images, names = arrays["image"], arrays["ident"]
        fields = (arrays[f"pick_{k}"] for k in ("set", "detector", "end", "row", "index", "score"))
        for image_set, detector, end, row, index, score in zip(*fields, strict=True):
            pick = Pick(images[row], str(names[row]), int(index), float(score))
            picks.setdefault((str(image_set), str(detector), str(end)), []).append(pick)
    except BROKEN as error:
        raise ValueError(
            f"{path} is broken ({error}): delete it for a report without images, or evaluate again"
        ) from None
    return picks


def _ends(scores: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Places of the highest and of the lowest scores, ties in the set's order."""
    return {
        "most": np.argsort(-scores, kind="stable")[:count],
        "least": np.argsort(scores, kind="stable")[:count],
    }


def _thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    scale = min(1, side / max(height, width))
    if scale == 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
