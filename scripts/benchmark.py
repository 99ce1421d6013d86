"""Time the input pipeline and the detectors on this machine.

python scripts/benchmark.py data                       # images/s of the input pipeline alone
python scripts/benchmark.py data --folder PATH
python scripts/benchmark.py engines                    # detectors, in forward passes
python scripts/benchmark.py engines --quick            # a few of them, in two minutes
python scripts/benchmark.py engines --model resnet34 wrn_40_2 --out engines.json
python scripts/benchmark.py engines --model resnet34 --against torch
python scripts/benchmark.py memory                     # peak memory against a set's size
python scripts/benchmark.py overlap                    # decoding beside computing
python scripts/benchmark.py rounding                   # scores by batch size and devices
python scripts/benchmark.py ways                       # with and without YNNPACK, on a CPU
"""

import argparse
import json
from pathlib import Path

import jax

from benchmarks import memory as memory_use
from benchmarks import overlap as overlapping
from benchmarks import pipeline_speed, speed
from benchmarks import rounding as rounded
from benchmarks import ways as both_ways
from benchmarks.networks import NETWORKS
from si_jax import cli, models
from si_jax.data import preprocessing
from si_jax.data.files import write_text
from si_jax.detectors import DETECTORS
from si_jax.reporting.report import text_table


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="images/s of decoding, transforming and batching")
    add = data.add_argument
    add("--folder", help="a folder of images; default: small synthetic ones")
    add("--data-dir", help="folder of all data; default: $SI_JAX_DATA or ~/.cache/si_jax/data")
    add("--protocol", default="published", help="published (default) or openood")
    add("--size", default="small", help="small (default) or imagenet: the crop, for all sources")
    add("--workers", type=int, nargs="+", default=[1, 4], help="threads that decode")
    add("--limit", type=int, default=2000, help="images of each source")
    add("--batch-size", type=int, default=64, help="images per batch; default 64")
    engines = commands.add_parser("engines", help="cost of the detectors in forward passes")
    add = engines.add_argument
    names = ", ".join([*models.ARCHITECTURES, *NETWORKS])
    add("--model", nargs="+", default=["resnet20"], help=f"resnet20 by default; of {names}")
    add("--rows", nargs="+", help=f"what is timed, all by default: {'; '.join(speed.TIMED)}")
    add("--quick", action="store_true", help="few rows and repeats; for a first look")
    add("--against", choices=["torch"], help="time the same in PyTorch beside it")
    add("--input-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    add("--batch-size", type=int, default=16, help="images per batch; default 16")
    add("--precision", default="highest", help="of matrix products: highest, high or default")
    memory = commands.add_parser("memory", help="peak memory while sets of many sizes are scored")
    add = memory.add_argument
    add("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="of each set")
    add("--detectors", nargs="+", default=["si-z", "msp"], metavar="NAME")
    overlap = commands.add_parser("overlap", help="decoding and computing, each alone and together")
    add = overlap.add_argument
    add("--images", type=int, nargs=2, default=[4000, 160], help="of 32 and of 256 pixels a side")
    add("--model", default="resnet8", help="resnet8 by default")
    add("--workers", type=int, default=4, help="threads that decode")
    add("--batch-size", type=int, default=32, help="images per batch; default 32")
    rounding = commands.add_parser("rounding", help="scores by batch size and number of devices")
    add = rounding.add_argument
    add("--images", type=int, default=48, help="digits and letters that are scored")
    add("--detectors", nargs="+", default=list(DETECTORS), metavar="NAME", help="all by default")
    ways = commands.add_parser("ways", help="programs with YNNPACK and without, on a CPU")
    add = ways.add_argument
    add("--model", nargs="+", default=["resnet34", "mobilenet_v2"], help=f"of {names}")
    add("--detector", default="gaia-z", help="beside the forward pass; default gaia-z")
    add("--batch-size", type=int, default=4, help="images per batch; default 4")
    for command in (data, engines, overlap, ways):
        command.add_argument("--repeats", type=int, default=5, help="the median is over these")
    for command in (data, engines, memory, overlap, rounding, ways):
        command.add_argument("--out", type=Path, help="write the figures as JSON too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    args = parse(argv)
    if getattr(args, "repeats", 1) < 1:
        raise ValueError(f"--repeats {args.repeats}: at least one is needed")
    commands = (data, engines, memory, overlap, rounding, ways)
    figures = {command.__name__: command for command in commands}[args.command](args)
    if args.out:
        content = {**figures, "versions": cli.versions()}
        write_text(args.out, json.dumps(content, indent=2))
        print(f"saved {args.out}")


def data(args: argparse.Namespace) -> dict:
    """Print images/s of the input pipeline for each source and number of threads."""
    if (args.protocol, args.size) not in preprocessing.PREPROCESSING:
        known = ", ".join(f"{p} {s}" for p, s in preprocessing.PREPROCESSING)
        raise ValueError(f"no preprocessing {args.protocol} {args.size}: choose one of {known}")
    transform = preprocessing.PREPROCESSING[args.protocol, args.size]
    with pipeline_speed.image_sets(args.folder, args.data_dir) as sets:
        rows = pipeline_speed.time_pipeline(
            sets,
            transform,
            workers=args.workers,
            limit=args.limit,
            batch_size=args.batch_size,
            repeats=args.repeats,
        )
    threads = [f"{n} thread{'s' * (n > 1)}" for n in args.workers]
    print(f"input pipeline alone: {transform}, batches of {args.batch_size}, images/s\n")
    table = [
        [row["source"], str(row["images"]), *(f"{v:,.0f}" for v in row["images_per_second"])]
        for row in rows
    ]
    print(text_table(["source", "images", *threads], table))
    return {
        "preprocessing": str(transform),
        "batch_size": args.batch_size,
        "workers": args.workers,
        "repeats": args.repeats,
        "sources": rows,
    }


def engines(args: argparse.Namespace) -> dict:
    """Print what each detector costs in forward passes."""
    if unknown := [name for name in args.rows or () if name not in speed.TIMED]:
        known = "; ".join(speed.TIMED)
        raise ValueError(f"--rows: there is no {'; '.join(unknown)}: choose of {known}")
    names = args.rows or (list(speed.QUICK) if args.quick else None)
    results = [engines_of(args, name, names) for name in args.model]
    return {
        "batch_size": args.batch_size,
        "precision": args.precision,
        "repeats": repeats_of(args),
        "device": jax.devices()[0].device_kind,
        "hardware": speed.hardware(),
        "models": results,
    }


def repeats_of(args: argparse.Namespace) -> int:
    """Repetitions: those asked for, fewer where it is to be quick."""
    return min(args.repeats, 3) if args.quick else args.repeats


def engines_of(args: argparse.Namespace, name: str, names: list[str] | None) -> dict:
    """Time the detectors on one network and print the table."""
    size = tuple(args.input_size) if args.input_size else None
    model = speed.random_model(name, size, args.precision)
    others = {}
    if args.against == "torch":
        try:
            from benchmarks import speed_torch
        except ImportError:
            raise ValueError(
                '--against torch needs PyTorch: run `pip install "si-jax[torch]"`'
            ) from None
        others = speed_torch.programs(name, model.input_size, args.batch_size)
    rows = speed.time_detectors(
        model, batch_size=args.batch_size, repeats=repeats_of(args), names=names, others=others
    )
    height, width = model.input_size
    print(
        f"{model.name}, {model.num_parameters:,} parameters, {height}x{width}, batches of"
        f" {args.batch_size}, precision {model.precision}, on {speed.hardware()}\n"
        f"a forward pass takes {1000 * rows[0]['seconds_per_image']:.3f} ms an image\n"
    )
    header = ["forward passes:", "by FLOPs", "by time", "range", "images/s", "compile, s", "MiB"]
    print(text_table(header, [table_row(row) for row in rows]))
    print("\nMiB: what the compiled program says it needs, weights and images included\n")
    for row in rows:
        if "engine" in row:
            print(f"{row['name']}: {row['engine']}, {row['settled']:.0%} of the images")
    together = {row["name"]: row for row in rows}.get(speed.TOGETHER)
    return {
        "model": model.name,
        "input_size": list(model.input_size),
        "rows": [row for row in rows if row is not together],
        "together": together,
    }


def table_row(row: dict) -> list[str]:
    """One line of the table; a dash where a figure is not known."""
    memory, compilation, flops = (
        row[k] for k in ("memory_bytes", "compile_seconds", "flops_ratio")
    )
    return [
        row["name"],
        "-" if flops is None else f"{flops:.2f}",
        f"{row['ratio']:.2f}",
        f"{row['ratio_low']:.2f} - {row['ratio_high']:.2f}",
        f"{row['images_per_second']:,.0f}",
        "-" if compilation is None else f"{compilation:.1f}",
        "-" if memory is None else f"{memory / 2**20:,.1f}",
    ]


def memory(args: argparse.Namespace) -> dict:
    """Print the peak memory of processes that score sets of different sizes."""
    rows = memory_use.measure(args.images, args.detectors)
    print(
        f"one process a set, images of {memory_use.SIDE}x{memory_use.SIDE}, synthetic,"
        f" batches of {memory_use.BATCH}, a tiny ResNet, {' and '.join(args.detectors)}\n"
    )
    header = ["images", "at start, MiB", "peak, MiB", "files", "largest, KiB", "seconds"]
    table = [
        [
            f"{row['images']:,}",
            f"{row['start_bytes'] / 2**20:.0f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
            str(row["files"]),
            f"{row['largest_file_bytes'] / 2**10:.0f}",
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    print(text_table(header, table))
    return {"detectors": args.detectors, "sets": rows}


def overlap(args: argparse.Namespace) -> dict:
    """Print how long decoding and computing take, each alone and together."""
    given = {name: getattr(args, name) for name in ("images", "batch_size", "workers", "model")}
    rows = overlapping.measure(repeats=args.repeats, **given)
    print(
        f"seconds; {args.model}, batches of {args.batch_size}, {args.workers} threads that decode,"
        f" on one of {speed.hardware()}, JAX on another\n"
        "beside a loop: computing while the other core is busy with something else\n"
        "ratio: all / greater of decode and compute\n"
    )
    header = ["source", "images", "decode", "compute", "beside a loop", "all", "ratio", "range"]
    table = [
        [
            row["source"],
            str(row["images"]),
            *(f"{row[what]:.2f}" for what in ("decode", "compute", "beside", "all", "ratio")),
            f"{row['ratio_low']:.2f} - {row['ratio_high']:.2f}",
        ]
        for row in rows
    ]
    print(text_table(header, table))
    return {**given, "repeats": args.repeats, "hardware": speed.hardware(), "sources": rows}


def rounding(args: argparse.Namespace) -> dict:
    """Print how far scores differ with the batch size and the number of devices."""
    rows = rounded.measure(args.detectors, args.images)
    print(
        f"the digits network, {args.images} images; largest difference from one device and batches"
        " of 16,\nrelative to the score; and the largest of all, relative to the scores' spread\n"
    )
    table = [
        [row["name"], *(f"{row[way]:.0e}" for way in rounded.WAYS), f"{row['spread']:.0e}"]
        for row in rows
    ]
    print(text_table(["detector", *rounded.WAYS, "of the spread"], table))
    return {"images": args.images, "detectors": rows}


def ways(args: argparse.Namespace) -> dict:
    """Print the CPU time of programs that are compiled with YNNPACK and without."""
    rows = both_ways.measure(args.model, args.detector, args.batch_size, args.repeats)
    print(f"CPU time, ms an image, batches of {args.batch_size}, on {speed.hardware()}\n")
    header = ["network", "program", "without YNNPACK", "with it", "chosen", "of the faster"]
    table = [
        [
            row["model"],
            row["program"],
            *(f"{1000 * row[way]:.1f}" for way in ("without", "with")),
            row["chosen"],
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    print(text_table(header, table))
    return {"batch_size": args.batch_size, "hardware": speed.hardware(), "networks": rows}


if __name__ == "__main__":
    cli.run(main)
