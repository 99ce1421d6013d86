"""Flag out-of-distribution images, with the network's prediction of each.

si-jax predict digits IMAGE.png                       # the bundled detector
si-jax predict my_detector photos/ "more/**/*.jpg"    # folders, globs
find . -name "*.png" | si-jax predict my_detector -   # a list of paths, one a line
si-jax predict my_detector photos/ --json > out.jsonl
si-jax predict my_detector IMAGE.png --explain pictures/

Exit status 0; 1 if an image could not be read (it is named, the others go on); 2 for a mistake.
"""

import collections
import dataclasses
import glob
import hashlib
import itertools
import json as json_text
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from tqdm import tqdm

from si_jax.checks import check_least
from si_jax.commands.options import command
from si_jax.data.folders import left_out_note
from si_jax.decision.predictor import FilePrediction, find_images, predict_files
from si_jax.detectors import Detector
from si_jax.detectors.loading import find_detector, load_detector
from si_jax.detectors.predictions import check_calibrated, check_preprocessing
from si_jax.weights.checkpoint import CARD, INSIDE, Card
from si_jax.weights.saved import read_card
from si_jax.weights.torch_modules import torch_model

KINDS = ("in-distribution", "out-of-distribution", "unreadable")
HEADER = "verdict  p-value      score  class  probability  file"


@command("si-jax predict")
def main(
    detector: str,
    /,
    *paths: Annotated[str, Parameter(allow_leading_hyphen=True)],
    json: bool = False,
    torch: str | None = None,
    tpr: float | None = None,
    batch_size: int | None = None,
    explain: str | None = None,
) -> None:
    """Predict and print.

    Args:
        detector: a saved detector's directory, or a bundled one: digits.
        paths: images, folders or globs; - for a list on standard input.
        json: print one line of JSON for each image.
        torch: the PyTorch network of a detector that was saved with one: MODULE:FUNCTION, timm:NAME
            or transformers:NAME, which is code that runs; its weights are the detector's.
        tpr: share of in-distribution images to accept; default: as saved.
        batch_size: images per batch; default: as saved.
        explain: directory to write a picture to that explains each decision.
    """
    check_least(1, batch_size=batch_size)
    network = None
    if torch:  # with any weights, in whose place the detector's come
        card = read_card(find_detector(detector) / INSIDE / CARD, Card)
        size, mean, std = card.input_size, card.mean, card.std
        network = torch_model(torch, input_size=size, mean=mean, std=std, pretrained=False)
    loaded = load_detector(detector, model=network)
    threshold = check_calibrated(loaded)
    check_preprocessing(loaded)
    if tpr is not None:
        loaded.threshold = dataclasses.replace(threshold, tpr=tpr)
    if batch_size is not None:
        loaded.batch_size = batch_size
    if explain and Path(explain).exists() and not Path(explain).is_dir():
        raise ValueError(f"{explain} is a file: give a directory for the pictures")
    left_out: list[str] = []
    files = listed(paths, left_out)
    first = next(files, None)  # a path that does not exist is refused before anything is printed
    if first is None:
        raise ValueError("no image is named: give files or folders, or one path a line after -")
    if explain:
        Path(explain).mkdir(parents=True, exist_ok=True)
    out = sys.stderr if json else sys.stdout
    print(f"{loaded.name} on {loaded.model.name}: {loaded.threshold}", file=out)
    print(f"images are prepared by: {loaded.preprocessing}", file=out)
    if not json:
        print(f"\n{HEADER}")
    sys.stdout.flush()
    counts: collections.Counter[str] = collections.Counter()
    with tqdm(desc="images", unit="img", disable=None, delay=2) as bar:
        for row in predict_files(loaded, itertools.chain([first], files)):
            counts[KINDS[2 if row.error else bool(row.is_ood)]] += 1
            if row.error:
                bar.write(f"unreadable: {row.error}", file=sys.stderr)
            if json or not row.error:
                bar.write(json_text.dumps(row.as_dict()) if json else line(loaded, row))
            if explain and not row.error:
                write_explanation(loaded, row.file, Path(explain))
            bar.update()
    for note in left_out_note(left_out):
        print(note, file=sys.stderr)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    print(f"{counts.total()} images: {told}", file=sys.stderr)
    if counts["unreadable"]:
        sys.exit(1)


def line(detector: Detector, row: FilePrediction) -> str:
    """One image as a line of the table."""
    verdict = "OOD" if row.is_ood else "in"
    classes = detector.model.card.get("classes", ())
    name = row.label if row.label is None or row.label >= len(classes) else classes[row.label]
    return (
        f"{verdict:7}  {row.p_value:7.4f}  {row.score:9.4g}  {name!s:5}  {row.probability:11.1%}"
        f"  {row.file}"
    )


def write_explanation(detector: Detector, file: str, directory: Path) -> None:
    """Write the picture of one image, named after its path and a hash of it."""
    path = os.fsencode(file)
    name = re.sub(r"[^\w.-]+", "_", path.decode(errors="replace")).strip("_.")
    name = name.encode()[-150:].decode(errors="ignore").lstrip("_.")
    digest = hashlib.blake2b(path, digest_size=5).hexdigest()
    title = Path(file).name.encode(errors="backslashreplace").decode()
    detector.explain(file, title=title).savefig(directory / f"{digest}_{name}.png")


def listed(paths: tuple[str, ...], left_out: list[str]) -> Iterator[str]:
    """The images that the command line names, `-` standing for the lines of standard input."""
    for path in paths:
        if path != "-" and not glob.has_magic(path) and not Path(path).expanduser().exists():
            raise ValueError(f"{path} does not exist: give files or folders of images")
    for path in paths:
        if path != "-":
            yield from find_images([path], left_out)
            continue
        lines = getattr(sys.stdin, "buffer", sys.stdin)  # names need not be text
        for number, line in enumerate(lines):
            text = os.fsdecode(line).rstrip("\r\n")
            text = text.removeprefix("\ufeff") if not number else text
            if text:
                yield from find_images([text], left_out) if Path(text).is_dir() else [text]
