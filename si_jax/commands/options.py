"""Options that several commands take, declared once, and how their texts are read."""

import argparse
import contextlib
import json
import re
from collections.abc import Iterable

from si_jax.data import benchmarks
from si_jax.evaluation import defaults
from si_jax.evaluation.store import check_distinct
from si_jax.model import Model


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """`--dataset` and `--protocol`."""
    known = ", ".join(benchmarks.BENCHMARKS)
    parser.add_argument("--dataset", default="digits", help=f"benchmark: {known}; or a folder of"
        " your own with val, train and ood/NAME in it; default digits")  # fmt: skip
    add_protocol(parser)


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """`--protocol`."""
    parser.add_argument("--protocol", default="published", help="published (default) or openood")


def add_network(parser: argparse.ArgumentParser) -> None:
    """`--checkpoint`, `--model`, `--precision` and what a file needs; see `network`."""
    add = parser.add_argument
    add("--checkpoint", help="bundled name, checkpoint directory, or (with --model) a file of"
        " another framework; 'random' for fresh weights; default: the bundled one that was"
        " trained on the benchmark")  # fmt: skip
    add("--model", help="architecture, for --checkpoint FILE or --checkpoint random")
    add("--normalisation", help="of a FILE's network: cifar10, cifar100, imagenet or half;"
        " default: the architecture's")  # fmt: skip
    add_file_options(parser)
    add_precision(parser)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """`--precision`."""
    parser.add_argument("--precision", default="highest", help="of matrix products: highest"
        " (default), high or default")  # fmt: skip


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """`--mean`, `--std` and `--part`, of a file of another framework."""
    add = parser.add_argument
    add("--mean", type=float, nargs="+", help="mean of each channel in [0, 1] units, in place of"
        " --normalisation")  # fmt: skip
    add("--std", type=float, nargs="+", help="standard deviation of each channel, likewise")
    add("--part", help="which of several networks in a FILE: a key, or a prefix of names")


def add_places(parser: argparse.ArgumentParser) -> None:
    """`--data-dir` and `--ood-root`."""
    add_data_dir(parser)
    parser.add_argument(
        "--ood-root", help="folder that holds folders of images; default: that of all data"
    )


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """`--data-dir`."""
    parser.add_argument("--data-dir", help="folder of all data; default: $SI_JAX_DATA, or else"
        " ~/.cache/si_jax/data, where TFDS's own folder is looked into as well")  # fmt: skip


def add_allow_missing(parser: argparse.ArgumentParser) -> None:
    """`--allow-missing`."""
    parser.add_argument(
        "--allow-missing", action="store_true", help="go on without the sets that are absent"
    )


def add_seed(parser: argparse.ArgumentParser, of: str) -> None:
    """`--seed`, 0 by default.

    Args:
        parser: it gets the option.
        of: what is drawn with it.
    """
    parser.add_argument("--seed", type=int, default=0, help=f"seed of {of}; default 0")


def add_ood(parser: argparse.ArgumentParser, text: str) -> None:
    """`--ood NAME=PATH ...`, which may be given several times; see `pairs`."""
    parser.add_argument(
        "--ood", nargs="+", action="extend", default=[], metavar="NAME=PATH", help=text
    )


def add_batch_size(
    parser: argparse.ArgumentParser, default: int | None = None, text: str = "each detector's own"
) -> None:
    """`--batch-size`.

    Args:
        parser: it gets the option.
        default: images per batch where the user says nothing.
        text: what the help calls the default where it is None.
    """
    shown = text if default is None else default
    parser.add_argument(
        "--batch-size", type=int, default=default, help=f"images per batch; default: {shown}"
    )


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Refuse options below so much, where they are given: `check_least(args, batch_size=1)`."""
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least {smallest}")


def check_network(args: argparse.Namespace) -> None:
    """Refuse what can be seen of `add_network`'s options before the network is loaded."""
    if not args.model and args.checkpoint == "random":
        raise ValueError("--checkpoint random needs --model NAME")
    defaults.which_checkpoint(args.dataset, args.checkpoint, args.model)


def network(args: argparse.Namespace) -> tuple[Model, str]:
    """The network that `add_network`'s options name, and what a report calls its checkpoint."""
    check_network(args)
    return defaults.benchmark_model(
        args.dataset,
        args.checkpoint,
        architecture=args.model,
        normalisation=args.normalisation,
        mean=args.mean,
        std=args.std,
        part=args.part,
        seed=args.seed,
        precision=args.precision,
    )


def pair(text: str, option: str, form: str) -> tuple[str, str]:
    """The two sides of the first `=`."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"{option} {text}: write it as {form}")
    return name, value


def pairs(texts: Iterable[str], option: str, form: str = "NAME=PATH") -> dict[str, str]:
    """`["a=x", "b=y"]` -> {"a": "x", "b": "y"}; a name that is given twice is refused."""
    values: dict[str, str] = {}
    for text in texts:
        name, value = pair(text, option, form)
        if name in values:
            raise ValueError(f"{option}: {name} is given twice: {values[name]} and {value}")
        values[name] = value
    return values


def detector_options(texts: Iterable[str]) -> dict[str, dict]:
    """`["si-z.steps=3"]` -> {"si-z": {"steps": 3}}."""
    form = "DETECTOR.OPTION=VALUE"
    options: dict[str, dict] = {}
    for name, value in pairs(texts, "--set", form).items():
        detector, dot, option = name.partition(".")
        if not dot:
            raise ValueError(f"--set {name}={value}: write it as {form}")
        key = option.replace("-", "_")
        if key in options.setdefault(detector, {}):
            raise ValueError(f"--set gives {name} twice: choose one")
        options[detector][key] = plain_value(value)
    return options


def labelled_detectors(texts: Iterable[str]) -> dict[str, tuple[str, dict]]:
    """`["msp", "a=knn:k=5"]` -> `{"msp": ("msp", {}), "a": ("knn", {"k": 5})}`."""
    form = "NAME or LABEL=NAME:OPTION=VALUE,OPTION=VALUE"
    detectors: list[tuple[str, tuple[str, dict]]] = []
    for text in texts:
        plain = not {"=", ":"} & set(text)
        label, value = (text, text) if plain else pair(text, "--detectors", form)
        if ":" in label:
            raise ValueError(f"--detectors {text}: write it as {form}")
        name, _, given = value.partition(":")
        # a comma that no further option follows belongs to the value
        values = pairs(re.split(r",(?=[\w-]+=)", given) if given else (), "--detectors", form)
        options = {key.replace("-", "_"): plain_value(one) for key, one in values.items()}
        detectors.append((label, (name, options)))
    check_distinct([label for label, _ in detectors], "detector")
    return dict(detectors)


def plain_value(text: str):
    """A number, `true`, `false`, `null` or a list as JSON writes it; any other text as it is."""
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(text)
    return text
