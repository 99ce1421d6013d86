import re

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from si_jax.commands import prepare_data
from si_jax.data import sources
from si_jax.data.imagenet import order_by_class

WNIDS = ["n01440764", "n01443537", "n01484850"]
TRUTH = [2, 0, 2, 1]  # of the four images, as positions among the wnids
NAMES = [f"ILSVRC2012_val_{k:08d}" for k in range(1, 5)]


@pytest.fixture
def flat(tmp_path):
    folder = tmp_path / "ILSVRC2012_img_val"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        image = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(image).save(folder / f"{name}.JPEG", "PNG")
    (folder / "val.txt").write_text("a file that is no image")
    return folder


def write_labels(folder, form):
    wnids = [WNIDS[k] for k in TRUTH]
    lines = {
        "val.txt": [f"{n}.JPEG {k}" for n, k in zip(NAMES, TRUTH, strict=True)][::-1],
        "wnids.txt": [f"{n}.JPEG {w}" for n, w in zip(NAMES, wnids, strict=True)],
        "synset_labels.txt": wnids,
        "LOC_val_solution.csv": [
            "ImageId,PredictionString",
            *(f"{n},{w} 1 2 3 4 {w} 5 6 7 8" for n, w in zip(NAMES, wnids, strict=True)),
        ],
        "ILSVRC2012_validation_ground_truth.txt": [str(10 * (3 - k)) for k in TRUTH],
    }[form]
    path = folder / form
    path.write_text("\n".join(lines) + "\n")
    if "ground_truth" in form:
        kind = [("ILSVRC2012_ID", "f8"), ("WNID", object)]
        rows = np.array([(10 * (3 - k), wnid) for k, wnid in enumerate(WNIDS)], kind)
        savemat(folder / "meta.mat", {"synsets": rows.reshape(-1, 1)})
    return path


@pytest.mark.parametrize(
    "form",
    ["val.txt", "wnids.txt", "synset_labels.txt", "LOC_val_solution.csv",
     "ILSVRC2012_validation_ground_truth.txt"],
)  # fmt: skip
def test_every_form_of_labels(flat, tmp_path, form):
    labels = write_labels(tmp_path, form)
    target = tmp_path / "data/imagenet/val"
    assert order_by_class(flat, labels, target) == (4, 3)
    found = sources.from_folder(target, num_classes=3)
    truth = {found.load(k)[0][0, 0, 0]: found.load(k)[1] for k in range(4)}
    assert [truth[k] for k in range(4)] == TRUTH
    assert all(p.is_symlink() for p in target.glob("*/*"))
    with pytest.raises(FileExistsError, match="is there already"):
        order_by_class(flat, labels, target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ILSVRC2012_val_00000001.JPEG 1\n", "has no label for 3 of the 4 images"),
        ("n01440764\n", "has 1 labels where there are 4 images"),
        ("ILSVRC2012_val_00000001.JPEG cat\n", "neither a wnid nor a number"),
        ("1\n2\n3\n4\n", r"devkit's own numbers of classes, and .*meta\.mat"),
        ("a\nb\nc\nd\n", "no form of a file of labels"),
        ("", "has no label for|no form"),
    ],
)
def test_labels_of_others_are_told(flat, tmp_path, content, message):
    (tmp_path / "labels").write_text(content)
    with pytest.raises(ValueError, match=message):
        order_by_class(flat, tmp_path / "labels", tmp_path / "val")
    assert not (tmp_path / "val").exists()


def test_the_command(flat, tmp_path, capsys):
    labels = write_labels(tmp_path, "val.txt")
    options = ["--order", str(flat), "--data-dir", str(tmp_path / "data")]
    with pytest.raises(ValueError, match=r"--order needs --labels FILE.*LOC_val_solution\.csv"):
        prepare_data.main(options)
    prepare_data.main([*options, "--labels", str(labels)])
    assert re.search(r"imagenet/val: links to 4 images in 3 class folders", capsys.readouterr().out)
