"""Make a detector of a network: fit it, set its threshold, and save all as one directory.

si-jax calibrate CHECKPOINT --images HELD_OUT --out my_detector
si-jax calibrate CHECKPOINT --detector si-c --fit TRAIN --images HELD_OUT --out my_detector

CHECKPOINT is a bundled name or a checkpoint's directory. TRAIN and HELD_OUT are folders of images
(with one folder a class, where the detector needs labels), .npz files, or digits/train and
digits/test. The network must not have learnt from HELD_OUT, and the detector is not fitted on it.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from si_jax import cli
from si_jax.commands.options import add_seed, detector_options
from si_jax.data import digits, pipeline, sources
from si_jax.data.directories import check_new
from si_jax.data.image_set import ImageSet
from si_jax.detectors import Detector, make_detector
from si_jax.detectors.fitting import Batches
from si_jax.detectors.predictions import check_calibrated
from si_jax.weights.checkpoint import load_model


def main(argv: list[str] | None = None) -> None:
    """Fit, calibrate, save and print."""
    parser = cli.parser("calibrate", __doc__)
    add = parser.add_argument
    add("checkpoint", help="bundled name or checkpoint directory")
    add("--detector", default="si-c", help="default: si-c; si-jax evaluate --list-detectors")
    add("--set", nargs="+", default=[], metavar="OPTION=VALUE", help="the detector's options")
    add("--fit", metavar="TRAIN", help="training images, for the detectors that learn from some")
    add("--fit-limit", type=int, default=10_000, help="at most so many, drawn at random")
    add("--images", required=True, metavar="HELD_OUT", help="held-out in-distribution images")
    add("--limit", type=int, help="at most so many of them, drawn at random")
    add("--tpr", type=float, default=0.95, help="share of them to accept; default 0.95")
    add("--keep-images", type=int, default=0, metavar="N",
        help="keep thumbnails of so many, for --explain to show; default none")  # fmt: skip
    add("--classes", nargs="+", metavar="NAME", help="names of the classes, in order")
    add_seed(parser, "the draws")
    add("--out", required=True, metavar="DIR", help="directory to write")
    args = parser.parse_args(argv)
    check_new(args.out)
    model = load_model(args.checkpoint)
    if args.classes:
        if len(args.classes) != model.num_classes:
            raise ValueError(
                f"--classes names {len(args.classes)}, but the network has {model.num_classes}"
            )
        model = dataclasses.replace(model, card={**model.card, "classes": args.classes})
    options = detector_options([f"{args.detector}.{text}" for text in args.set])
    detector = make_detector(args.detector, model, **options.get(args.detector, {}))
    if detector.needs_fit and not args.fit:
        raise ValueError(
            f"detector {args.detector!r} learns from training images: give --fit TRAIN"
        )
    held_out = sources.subset(opened(args.images), args.limit, args.seed)
    facts = {"calibration": {"set": held_out.name, "images": len(held_out)}}
    if detector.needs_fit:
        train = sources.subset(opened(args.fit), args.fit_limit, args.seed)
        detector.fit_batches(Batches(lambda: stream(detector, train, "fitting"), model))
        facts["fit"] = {"set": train.name, "images": len(train)}
    images = (part for part, _ in stream(detector, held_out, "calibrating"))
    detector.calibrate(images, tpr=args.tpr, keep_images=args.keep_images)
    prepared = str(detector.preprocessing)
    detector.threshold = dataclasses.replace(check_calibrated(detector), preprocessing=prepared)
    detector.card |= {
        **facts,
        "command": cli.command_line("calibrate", argv),
        "seed": args.seed,
    }
    path = detector.save(args.out)
    accepted = detector.threshold
    print(f"detector    {detector.name} on {model.name}, {model.num_classes} classes")
    print(f"images      prepared by: {detector.preprocessing}")
    print(f"decision    {accepted}")
    print(f"saved       {path}")


def opened(text: str) -> ImageSet:
    """A set of images by the command line's word for it."""
    if text in ("digits/train", "digits/test"):
        return sources.from_arrays(text, *digits.load(text.partition("/")[2]))
    return sources.from_path(text, upright=True)


def stream(
    detector: Detector, image_set: ImageSet, what: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of (images, labels), as the detector prepares files, with a progress bar."""
    made = pipeline.batches(image_set, detector.preprocessing, detector.batch_size)
    return (batch.readable for batch in pipeline.shown(made, image_set, what))
