"""Make a detector of a network: fit it, set its threshold, and save all as one directory.

si-jax calibrate CHECKPOINT --images HELD_OUT --out my_detector
si-jax calibrate net.pth --torch nets:make --images HELD_OUT --out my_detector
si-jax calibrate CHECKPOINT --detector si-c --fit TRAIN --images HELD_OUT --out my_detector

CHECKPOINT is a bundled name or a checkpoint's directory; with --torch, a file with the state dict
of that PyTorch network, which is code that runs. TRAIN and HELD_OUT are folders of images
(with one folder a class, where the detector needs labels), .npz files, or digits/train and
digits/test. The network must not have learnt from HELD_OUT, and the detector is not fitted on it.
"""

import dataclasses
from functools import partial

from si_jax.commands.options import command, detector_options
from si_jax.data import digits, sources
from si_jax.data.files import check_new
from si_jax.data.image_set import ImageSet, subset
from si_jax.detectors import Detector, make_detector
from si_jax.detectors.predictions import check_calibrated
from si_jax.weights.checkpoint import load_model
from si_jax.weights.torch_modules import torch_model


@command("si-jax calibrate", Detector.calibrate, torch_model, pretrained="")
def main(
    calibrate: partial,
    network: partial,
    checkpoint: str | None = None,
    /,
    *,
    torch: str | None = None,
    detector: str = "si-c",
    set_: list[str] | None = None,
    fit: str | None = None,
    fit_limit: int | None = 10_000,
    images: str,
    limit: int | None = None,
    classes: list[str] | None = None,
    seed: int = 0,
    out: str,
    command: str = "",
) -> None:
    """Fit, calibrate, save and print.

    Args:
        checkpoint: bundled name or checkpoint directory, or the file for --torch.
        torch: a PyTorch network: MODULE:FUNCTION, timm:NAME or transformers:NAME.
        detector: one of those that si-jax evaluate --list-detectors prints.
        set_: OPTION=VALUE: options of the detector.
        fit: training images, for the detectors that learn from some.
        fit_limit: at most so many, drawn at random.
        images: held-out in-distribution images.
        limit: at most so many of them, drawn at random; default: all.
        classes: names of the classes, in order; default: those on the checkpoint's card.
        seed: of the draws.
        out: directory to write.
    """
    check_new(out)
    if torch is None and checkpoint is None:
        raise ValueError("no network is named: give CHECKPOINT, or --torch NETWORK")
    model = network(torch, checkpoint) if torch else load_model(checkpoint or "")
    if classes:
        if len(classes) != model.num_classes:
            raise ValueError(f"--classes names {len(classes)} of {model.num_classes} classes")
        model = dataclasses.replace(model, card={**model.card, "classes": classes})
    options = detector_options([f"{detector}.{text}" for text in set_ or ()])
    made = make_detector(detector, model, **options.get(detector, {}))
    if made.needs_fit and not fit:
        raise ValueError(f"detector {detector!r} learns from training images: give --fit TRAIN")
    held_out = subset(opened(images), limit, seed)
    facts = {"calibration": {"set": held_out.name, "images": len(held_out)}}
    if made.needs_fit:
        named = tuple(model.card.get("classes", ()))
        train = subset(opened(fit or "", named), fit_limit, seed)
        made.fit(train)
        facts["fit"] = {"set": train.name, "images": len(train)}
    calibrate(made, held_out)
    prepared = str(made.preprocessing)
    made.threshold = dataclasses.replace(check_calibrated(made), preprocessing=prepared)
    made.card |= {**facts, "command": command, "seed": seed}
    path = made.save(out)
    print(f"detector    {made.name} on {model.name}, {model.num_classes} classes")
    print(f"images      prepared by: {made.preprocessing}")
    print(f"decision    {made.threshold}")
    print(f"saved       {path}")


def opened(text: str, classes: tuple[str, ...] = ()) -> ImageSet:
    """A set of images by the command line's word for it; class folders are found by name."""
    if text in ("digits/train", "digits/test"):
        return sources.from_arrays(text, *digits.load(text.partition("/")[2]))
    return sources.from_path(text, classes=classes)
