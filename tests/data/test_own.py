"""A folder of custom data, or its parts one by one."""

import numpy as np
import pytest
from pictures import idents, labels, noise, put

from si_jax.data.folders import from_folder
from si_jax.data.image_set import MissingSet, subset
from si_jax.data.own import resolve_own
from si_jax.data.preprocessing import Preprocessing
from si_jax.data.sources import from_arrays
from si_jax.data.synthetic import sets_of

SMALL = Preprocessing(resize=8, crop=(8, 8))
IMAGES = noise(6)


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            put(tmp_path / "pets" / split / name, noise(2, 12, 16, 3))
    return tmp_path / "pets"


def find(root, **options):
    return resolve_own(root, **{"num_classes": 3, "preprocessing": SMALL, **options})


def test_a_folder(root):
    put(root / "ood/cars", noise(3, 12, 16, 3))
    np.savez(root / "ood/noise.npz", images=IMAGES)
    found = find(root)
    assert (found.test.name, found.protocol, found.preprocessing) == ("pets", "own", SMALL)
    assert labels(found.test) == labels(found.train) == [0, 0, 1, 1, 2, 2]
    known = [(o.name, o.group, len(o.images)) for o in found.ood]
    assert known == [("cars", "ood", 3), ("noise", "ood", 6)]
    assert found.incomplete == () and found.absent == () and found.notes == ()
    more = find(root, ood={"mine": IMAGES, "cars": IMAGES})
    assert {o.name: len(o.images) for o in more.ood} == {"cars": 6, "noise": 6, "mine": 6}
    assert labels(find(root, classes=("cat", "dog", "ant", "bee")).test) == [2, 2, 3, 3, 0, 0]
    with pytest.raises(ValueError, match=r"class folder 'cat' \(1 such\), which the classifier's"):
        find(root, classes=("ant", "bee", "dog"))
    with pytest.raises(ValueError, match="3 class folders where the classifier has 4"):
        find(root, num_classes=4)


def test_synthetic_sets_where_there_is_none(root):
    found, again = find(root), find(root)
    kinds = ("noise", "shuffled", "blurred")
    assert [(o.name, o.group) for o in found.ood] == [(kind, "made") for kind in kinds]
    for one, two in zip(found.ood, again.ood, strict=True):
        image, label = one.images.load(3)
        assert (image.shape, label) == ((8, 10, 3), -1)
        assert SMALL(image).shape == (8, 8, 3)
        np.testing.assert_array_equal(image, two.images.load(3)[0])
        assert one.images.fingerprint == two.images.fingerprint
    assert len({o.images.fingerprint for o in found.ood}) == 3
    made = {name: s.load(0)[0] for name, s in sets_of(from_arrays("x", IMAGES), SMALL).items()}
    assert not np.array_equal(made["shuffled"], IMAGES[0])
    pixels = {name: sorted(map(tuple, image.reshape(-1, 3))) for name, image in made.items()}
    original = sorted(map(tuple, IMAGES[0].reshape(-1, 3)))
    assert pixels["shuffled"] == original and set(pixels["noise"]) <= set(original)
    assert made["blurred"].std() < IMAGES[0].std()


def test_sets_given_one_by_one(root, tmp_path):
    train, ood = (IMAGES, np.arange(6) % 3), {"x": list(IMAGES)}
    found = find(None, test=root / "val", train=train, ood=ood, name="mine")
    assert (found.test.name, found.train.name) == ("mine", "mine_train")
    assert labels(found.train) == [0, 1, 2, 0, 1, 2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingSet, match="has no folder val or test"):
        find(tmp_path / "empty")
    with pytest.raises(MissingSet, match="is not a folder"):
        find(tmp_path / "absent")


def test_numbers_are_taken_in_their_order_and_the_other_is_known(tmp_path):
    for name in ("0", "1", "2", "10"):
        put(tmp_path / "set" / name, IMAGES[:1])
    found = from_folder(tmp_path / "set", num_classes=4)
    assert idents(found) == ["0/0.png", "1/0.png", "10/0.png", "2/0.png"]
    assert labels(found) == [0, 1, 3, 2] and found.other_labels == (0, 1, 3, 2)
    assert subset(found, 2).other_labels == found.other_labels
    (tmp_path / "set/10").rename(tmp_path / "set/3")
    assert from_folder(tmp_path / "set").other_labels == ()
