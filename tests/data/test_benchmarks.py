import itertools
from pathlib import Path

import numpy as np
import pytest
from pictures import idents, labels, noise, put

from si_jax.data import tfds_sets
from si_jax.data.benchmarks import BENCHMARKS, resolve
from si_jax.data.datasets import DATASETS
from si_jax.data.image_set import MissingSet, subset
from si_jax.data.pipeline import batches
from si_jax.data.preprocessing import PREPROCESSING, PROTOCOLS

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
IMAGES = noise(5, 40, 40, 3)


@pytest.fixture
def ood_root(tmp_path, monkeypatch):
    """A root with an in-distribution set of ten classes and every set of `published`."""
    monkeypatch.setattr(tfds_sets.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    root = tmp_path / "root"
    for label in range(10):
        put(root / f"cifar10/test/{label}", IMAGES[:1])
    put(root / "cifar100/test/00", IMAGES[:1])
    for name in ("svhn", "LSUN", "tiny_imagenet", "places365/test_subset", "dtd/images/banded"):
        put(root / name, IMAGES[:2])
    return root


def names(resolved, group):
    return [found.name for found in resolved.ood if found.group == group]


def test_tables_are_consistent():
    for benchmark, protocol in itertools.product(BENCHMARKS.values(), PROTOCOLS):
        groups = benchmark.ood[protocol]
        assert (protocol, benchmark.size) in PREPROCESSING
        assert set(groups) <= {"far", "near", "extra"}
        specs = [benchmark.test, *(spec for group in groups.values() for spec in group)]
        assert len({spec.name for spec in specs}) == len(specs)
        for spec in (*specs, benchmark.train, *benchmark.shifted):
            assert spec.sources or spec.list_files or spec.make, spec.name
            assert DATASETS[spec.name].lists == spec.lists


def test_digits_needs_nothing():
    specs = BENCHMARKS["digits"].specs("published")
    assert [(group, spec.name) for group, spec in specs] == [
        *(("test", "digits"), ("train", "digits_train")),
        *(("far", name) for name in ("photos", "shuffled", "noise")),
        ("near", "letters"),
    ]
    assert all(spec.make for _, spec in specs)


def test_published_cifar10_in_one_folder(ood_root, monkeypatch):
    monkeypatch.setenv("SI_JAX_DATA", str(ood_root))
    for places in ({}, {"data_dir": ood_root}, {"ood_root": ood_root}):
        found = resolve("cifar10", **places)
        assert names(found, "far") == ["svhn", "lsun", "tiny_imagenet", "places365", "textures"]
        assert (names(found, "near"), names(found, "extra")) == (["cifar100"], [])
        assert [found.test.load(index)[1] for index in (0, 9)] == [0, 9] and found.absent == ()
        assert found.train is None and "cifar10/train" in found.train_absent
        assert str(found.preprocessing) == "no resize, centre crop 32x32"


def test_optional_sets_are_used_where_they_are_and_openood_has_other_sets(ood_root):
    for name in ("LSUN_resize", "iSUN", "mnist"):
        put(ood_root / name, IMAGES[:2])
    for label in range(100):
        put(ood_root / f"cifar100/test/{label:02d}", IMAGES[:1])
    put(ood_root / "Imagenet/test", IMAGES[:3])  # the crops, which openood does not take
    found = resolve("cifar100", "published", ood_root=ood_root)
    assert names(found, "extra") == ["lsun_resize", "isun"]  # and the third is not missed
    assert names(found, "near") == ["cifar10"] and found.absent == ()
    other = resolve("cifar10", "openood", ood_root=ood_root)
    assert names(other, "far") == ["mnist", "svhn", "textures", "places365"]
    assert names(other, "near") == ["cifar100", "tiny_imagenet"]
    for sets, count in ((found, 3), (other, 2)):
        assert [len(i.images) for i in sets.ood if i.name == "tiny_imagenet"] == [count]


def write_list(root, file, lines):
    path = root / "benchmark_imglist" / f"{file}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def test_openood_takes_exactly_the_listed_images(ood_root):
    put(ood_root / "mnist", IMAGES[:2])
    whole = resolve("cifar10", "openood", ood_root=ood_root)
    assert len(whole.unlisted) == 7 and whole.incomplete == ("far", "near")
    assert "OpenOOD's lists are not used for cifar10, mnist, svhn" in whole.notes[-1]
    assert resolve("cifar10", "published", ood_root=ood_root).incomplete == ()

    put(ood_root / "images_classic/tin/val/n01", IMAGES[:5])
    write_list(ood_root, "cifar10/test_tin", ["tin/val/n01/4.png -1", "tin/val/n01/2.png -1"])
    for label in (3, 1):
        put(ood_root / f"images_classic/cifar10/test/{label}", IMAGES[:2])
    ids = ["cifar10/test/3/1.png 3", "cifar10/test/1/0.png 1"]
    write_list(ood_root, "cifar10/test_cifar10", ids)
    found = resolve("cifar10", "openood", ood_root=ood_root)
    tin = next(item.images for item in found.ood if item.name == "tiny_imagenet")
    assert idents(tin) == ["tin/val/n01/4.png", "tin/val/n01/2.png"]
    assert labels(found.test) == [3, 1]
    assert "cifar10" not in found.unlisted and "tiny_imagenet" not in found.unlisted
    assert found.incomplete == ("far", "near")  # the other near set is still taken whole

    write_list(ood_root, "cifar10/test_tin", ["tin/val/n01/4.png -1", "tin/val/n01/lost.png -1"])
    again = resolve("cifar10", "openood", ood_root=ood_root)
    assert "tiny_imagenet" in again.unlisted
    write_list(ood_root, "cifar10/test_cifar10", ["cifar10/test/3/1.png 10"])
    with pytest.raises(ValueError, match="labels from 10 to 10 where the classifier has 10"):
        resolve("cifar10", "openood", ood_root=ood_root)


def test_imagenet200_is_what_the_lists_say(tmp_path):
    put(tmp_path / "images_largescale/imagenet_1k/val/n01443537", IMAGES[:2])
    write_list(tmp_path, "imagenet200/test_imagenet200", ["imagenet_1k/val/n01443537/1.png 7"])
    put(tmp_path / "images_largescale/ninco/a", IMAGES[:3])
    write_list(tmp_path, "imagenet/test_ninco", ["ninco/a/2.png -1"])
    found = resolve("imagenet200", "openood", tmp_path, allow_missing=True, fetch=False)
    assert found.test.load(0)[1] == 7 and found.benchmark == "imagenet200"
    assert [len(item.images) for item in found.ood if item.name == "ninco"] == [1]


def test_the_full_spectrum_of_cifar(ood_root):
    assert resolve("cifar10", ood_root=ood_root).shifted == ()
    with pytest.raises(MissingSet, match=r"cifar10_c: run si-jax prepare-data; or save"):
        resolve("cifar10", ood_root=ood_root, shifted=True)
    without = resolve("cifar10", ood_root=ood_root, shifted=True, allow_missing=True)
    assert without.shifted == () and [item.name for item in without.absent] == ["cifar10_c"]
    (ood_root / "CIFAR-10-C").mkdir()
    np.save(ood_root / "CIFAR-10-C/fog.npy", np.zeros((20, 32, 32, 3), np.uint8))
    np.save(ood_root / "CIFAR-10-C/labels.npy", np.arange(20) % 10)
    for protocol in PROTOCOLS:
        found = resolve("cifar10", protocol, ood_root, shifted=True, allow_missing=True)
        (images,) = found.shifted
        assert (images.name, len(images), images.load(13)[1]) == ("cifar10_c", 20, 3)
        assert "cifar10_c" not in {item.name for item in found.ood}


def test_the_full_spectrum_of_imagenet(tmp_path):
    put(tmp_path / "images_largescale/imagenet_1k/val/n01443537", IMAGES[:2])
    for name in ("imagenet", "imagenet200"):
        write_list(tmp_path, f"{name}/test_{name}", ["imagenet_1k/val/n01443537/1.png 1"])
    for name in ("imagenet_c", "imagenet_r"):
        put(tmp_path / f"images_largescale/{name}/n01443537", IMAGES[:3])
    write_list(tmp_path, "imagenet/test_imagenet_r", ["imagenet_r/n01443537/2.png 1"])
    write_list(tmp_path, "imagenet200/test_imagenet_r", ["imagenet_r/n01443537/0.png 0"])
    options = {"allow_missing": True, "shifted": True}
    found = resolve("imagenet", "openood", tmp_path, **options)
    assert [(s.name, len(s), s.load(0)[1]) for s in found.shifted] == [
        ("imagenet_c", 3, -1),  # which class its one folder is cannot be told
        ("imagenet_r", 1, 1),
    ]
    assert "imagenet_v2" in {item.name for item in found.absent}
    assert "imagenet_c" in found.unlisted
    given = {"imagenet_r": None, "imagenet_c": tmp_path / "images_largescale/imagenet_c"}
    given["mine"] = tmp_path / "images_largescale/imagenet_r"
    found = resolve("imagenet", "openood", tmp_path, **{**options, "shifted": given})
    assert [(s.name, len(s), s.load(0)[1]) for s in found.shifted] == [
        ("imagenet_r", 1, 1),
        ("imagenet_c", 3, -1),
        ("mine", 3, -1),
    ]
    found = resolve("imagenet200", "openood", tmp_path, **options)
    assert [(s.name, len(s), s.load(0)[1]) for s in found.shifted] == [("imagenet_r", 1, 0)]


def test_absent_sets_are_all_listed(ood_root, tmp_path):
    for folder in (ood_root / "svhn", ood_root / "LSUN"):
        folder.rename(folder.with_name(f"moved_{folder.name}"))
    with pytest.raises(MissingSet) as caught:
        resolve("cifar10", "published", ood_root=ood_root, fetch=True)
    message = str(caught.value)
    assert "lacks 2 of its sets" in message
    assert "svhn: svhn_cropped is not prepared in" in message
    assert 'pip install "si-jax[tfds]"' in message
    assert f"  lsun: run si-jax prepare-data; or save it below {ood_root} as LSUN (or" in message
    assert "ood={NAME: PATH}" in message and "allow_missing=True" in message

    (ood_root / "LSUN").mkdir()
    found = resolve("cifar10", "published", ood_root=ood_root, allow_missing=True)
    assert [item.name for item in found.absent] == ["svhn", "lsun"]
    assert f"{ood_root / 'LSUN'} holds no images" in found.absent[1].what_to_do
    assert found.incomplete == ("far",)
    assert names(found, "far") == ["tiny_imagenet", "places365", "textures"]


def test_sets_of_the_users_own(ood_root, tmp_path):
    put(tmp_path / "mine", IMAGES[:3])
    put(tmp_path / "my_svhn", IMAGES[:4])
    extra = {"mine": tmp_path / "mine", "svhn": tmp_path / "my_svhn"}
    found = resolve("cifar10", "published", ood_root=ood_root, extra=extra)
    assert names(found, "extra") == ["mine"]
    (svhn,) = [item for item in found.ood if item.name == "svhn"]
    assert (len(svhn.images), svhn.group) == (4, "far")


def test_imagenet_needs_all_classes_or_a_table(tmp_path):
    put(tmp_path / "imagenet/val/n01440764", IMAGES[:2])
    with pytest.raises(ValueError, match=r"has 1 class folders.*1000.*wnid_to_index\.json"):
        resolve("imagenet", data_dir=tmp_path)
    (tmp_path / "imagenet/val.wnid_to_index.json").write_text('{"n01440764": 5}')
    found = resolve("imagenet", data_dir=tmp_path, allow_missing=True)
    assert found.test.load(0)[1] == 5
    assert found.preprocessing(found.test.load(0)[0]).shape == (480, 480, 3)
    assert {item.name for item in found.absent} == {"inaturalist", "sun", "places", "textures"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"benchmark": "cifar"}, r"benchmark \(='cifar'\) must be one of digits, cifar10"),
        ({"protocol": "other"}, r"protocol \(='other'\)"),
        ({"shifted": True}, "digits has no shifted sets of its own; these have: cifar10, "),
        ({"benchmark": "imagenet200"}, "OpenOOD's lists to benchmark_imgl"),
        ({"benchmark": "cifar10", "ood_root": "nowhere"}, "cifar10 cannot be left out"),
        ({"benchmark": "cifar10", "extra": {"mine": "nowhere"}}, "nowhere is not a folder"),
        ({"benchmark": "cifar10", "extra": {"svhn": "nowhere"}}, "nowhere is not a folder"),
        ({"benchmark": "cifar10", "extra": {"cifar10_train": "no"}}, "no is not a folder"),
    ],
)
def test_mistakes(given, message, ood_root):
    with pytest.raises(ValueError, match=message):
        resolve(**{"benchmark": "digits", "ood_root": ood_root, "allow_missing": True, **given})


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: no real CIFAR to read")
def test_real_cifar100():
    folders = SHARED / "folders"
    ood = {"textures": folders / "textures224", "places365": folders / "places128"}
    found = resolve("cifar100", "openood", SHARED / "tfds", extra=ood, allow_missing=True)
    assert (len(found.test), len(found.train)) == (10_000, 50_000)
    near = next(item for item in found.ood if item.name == "cifar10")
    assert (near.group, len(near.images)) == ("near", 10_000)
    assert {"places365", "textures"} <= set(names(found, "far"))
    (batch,) = batches(subset(found.test, 1000), found.preprocessing, 1000)
    assert np.bincount(batch.labels, minlength=100).min() > 0
    means = batch.images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, (0.507, 0.487, 0.441), atol=0.02)
    for item in found.ood:
        (batch,) = batches(subset(item.images, 20), found.preprocessing, 20)
        assert batch.images.shape == (20, 32, 32, 3) and batch.mask.all()
