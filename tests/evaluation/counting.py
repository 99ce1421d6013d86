"""Scoring without a network: images and a scorer that remember what was asked of them."""

import numpy as np

from si_jax.data.image_set import ImageSet, UnreadableImage
from si_jax.detectors import make_detector
from si_jax.evaluation import scoring


class Counting(scoring.Scorer):
    """Scores without a network: the mean pixel; remembers what it was asked for."""

    def __init__(self, model, names=("energy", "msp"), bad=None):
        super().__init__({name: make_detector(name, model) for name in names})
        self.calls = []
        self.bad = bad  # the pixel value that gives no finite score

    def start(self, images, wanted=None, *, few=False):
        self.calls.append((sorted(wanted), images[:, 0, 0, 0].tolist()))
        means = images.mean(axis=(1, 2, 3)).astype(np.float32)
        means[images[:, 0, 0, 0] == self.bad] = np.nan
        return lambda: {name: {"score": means + k} for k, name in enumerate(self.detectors)}

    @property
    def computed(self):
        """detector -> the images that it was asked for, by their pixel."""
        found = {name: [] for name in self.detectors}
        for wanted, images in self.calls:
            for name in wanted:
                found[name] += images
        return found


class Images:
    """Image k is filled with k; some cannot be read, and one may end the run."""

    def __init__(self, size=20, unreadable=(), name="made", error=None, at=None):
        self.unreadable = set(unreadable)
        self.error, self.at = error, at
        self.loaded = []
        self.set = ImageSet(name, size, f"{name}{size}", self.load, lambda k: f"{name}/{k}.png")

    def load(self, index):
        self.loaded.append(index)
        if index == self.at and self.error is not None:
            raise self.error
        if index in self.unreadable:
            raise UnreadableImage(f"{self.set.ident(index)} cannot be decoded")
        return np.full((8, 8, 3), index, np.uint8), index % 5


def score(model, directory, images, *, scorer=None, facts=None, **options):
    scorer = scorer or Counting(model)
    options = {"batch_size": 4, "workers": 1, **options}
    facts = facts or {"protocol": "published"}
    found = scoring.score_set(
        scorer, images.set, lambda x: x, facts=facts, directory=directory, **options
    )
    return found, scorer


def indices(found):
    rows = {name: arrays["index"].tolist() for name, arrays in found.arrays.items()}
    for name, arrays in found.arrays.items():
        shift = list(found.arrays).index(name)
        np.testing.assert_array_equal(arrays["score"], arrays["index"] + shift)
        np.testing.assert_array_equal(arrays["label"], arrays["index"] % 5)
    (first, *others) = rows.values()
    assert all(other == first for other in others)
    return first


def files(directory):
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
