"""Say of each image what it shows, and whether the network is to be trusted on it.

si-jax predict digits IMAGE.png                       # the bundled detector
si-jax predict my_detector photos/ "more/**/*.jpg"    # folders, globs
find . -name "*.png" | si-jax predict my_detector -   # a list of paths, one a line
si-jax predict my_detector photos/ --json > out.jsonl
si-jax predict my_detector IMAGE.png --explain pictures/

Exit status 0; 1 if an image could not be read (it is named, the others go on); 2 for a mistake.
"""

import argparse
import dataclasses
import glob
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from si_jax import cli
from si_jax.commands import options
from si_jax.decision.stream import FilePrediction, find_images, predict_files
from si_jax.detectors import Detector
from si_jax.detectors.loading import load_detector
from si_jax.detectors.predictions import check_calibrated, check_preprocessing

HEADER = "verdict  p-value      score  class  probability  file"


def main(argv: list[str] | None = None) -> None:
    """Predict and print."""
    parser = cli.parser("predict", __doc__)
    add = parser.add_argument
    add("detector", help="a saved detector's directory, or a bundled one: digits")
    add("paths", nargs="+", metavar="PATH", help="image, folder or glob; - for a list on stdin")
    add("--json", action="store_true", help="print one line of JSON for each image")
    add("--tpr", type=float, help="share of in-distribution images to accept; default: as saved")
    options.add_batch_size(parser, text="as saved")
    add("--explain", metavar="DIR", help="write a picture that explains each decision there")
    args = parser.parse_args(argv)
    detector = prepared(args)
    if args.explain and Path(args.explain).exists() and not Path(args.explain).is_dir():
        raise ValueError(f"{args.explain} is a file: give a directory for the pictures")
    files = listed(args.paths)
    first = next(files, None)  # a path that does not exist is told before anything is printed
    if first is None:
        raise ValueError("standard input names no image: give one path a line")
    out = sys.stderr if args.json else sys.stdout
    print(f"{detector.name} on {detector.model.name}: {detector.threshold}", file=out)
    print(f"images are prepared by: {detector.preprocessing}", file=out)
    if not args.json:
        print(f"\n{HEADER}")
    sys.stdout.flush()
    counts = show(detector, chained(first, files), args)
    print(
        "{images} images: {trusted} in-distribution, {ood} out-of-distribution,"
        " {unreadable} unreadable".format(**counts),
        file=sys.stderr,
    )
    if counts["unreadable"]:
        sys.exit(1)


def prepared(args: argparse.Namespace) -> Detector:
    """The detector as the command line asks for it."""
    options.check_least(args, batch_size=1)
    detector = load_detector(args.detector)
    threshold = check_calibrated(detector)
    check_preprocessing(detector)
    if args.tpr is not None:
        detector.threshold = dataclasses.replace(threshold, tpr=args.tpr)
    if args.batch_size is not None:
        detector.batch_size = args.batch_size
    return detector


def show(detector: Detector, files: Iterator[str], args: argparse.Namespace) -> dict[str, int]:
    """Predict, print and explain; returns how many images there were of each kind."""
    counts = {"images": 0, "trusted": 0, "ood": 0, "unreadable": 0}
    bar = tqdm(desc="images", unit="img", disable=None, delay=2)
    with bar:
        for row in predict_files(detector, files):
            counts["images"] += 1
            counts["unreadable" if row.error else "ood" if row.is_ood else "trusted"] += 1
            if row.error:
                bar.write(f"unreadable: {row.error}", file=sys.stderr)
            if args.json or not row.error:
                bar.write(json.dumps(row.as_dict()) if args.json else line(detector, row))
            if args.explain and not row.error:
                explain(detector, row.file, Path(args.explain))
            bar.update()
    return counts


def line(detector: Detector, row: FilePrediction) -> str:
    """One image as a line of the table."""
    verdict = "OOD" if row.is_ood else "in"
    name = "" if row.label is None else class_name(detector, row.label)
    return (
        f"{verdict:7}  {row.p_value:7.4f}  {row.score:9.4g}  {name:5}  {row.probability:11.1%}"
        f"  {row.file}"
    )


def class_name(detector: Detector, label: int) -> str:
    """What the network's card calls a class; its number without one."""
    classes = detector.model.card.get("classes", ())
    return str(classes[label]) if label < len(classes) else str(label)


def explain(detector: Detector, file: str, directory: Path) -> None:
    """Write the picture of one image, named after its path."""
    directory.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "_", str(Path(file))).strip("_.")
    detector.explain(file, title=Path(file).name).savefig(directory / f"{name}.png")


def listed(paths: list[str]) -> Iterator[str]:
    """The images that the command line names, `-` standing for the lines of standard input.

    A path on the command line that does not exist is an error before anything is computed; one on
    standard input is told as unreadable when its turn comes.
    """
    for path in paths:
        if path != "-" and not glob.has_magic(path) and not Path(path).expanduser().exists():
            raise ValueError(f"{path} does not exist: give files or folders of images")
    for path in paths:
        if path != "-":
            yield from find_images([path])
            continue
        for text in filter(None, (text.rstrip("\r\n") for text in sys.stdin)):
            yield from find_images([text]) if Path(text).is_dir() else [text]


def chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    """An iterator with an item put back before it."""
    yield first
    yield from rest
