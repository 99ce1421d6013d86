"""What is told of a run beside its numbers: sentences, and facts by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from si_jax.reporting.tables import percent


def full_spectrum(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same run with shifted sets counted as in-distribution; None where there are none."""
    if not report.get("full_spectrum"):
        return None
    id_sets = [report["in_distribution"], *report["shifted"]]
    changed = {"in_distribution": ", ".join(id_sets), "intervals": {}, "average_intervals": {}}
    return {**report, **changed, **report["full_spectrum"], "full_spectrum": {}}


def tie_notes(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each detector whose scores tie at the threshold of FPR95, where it matters."""
    shown = []
    for detector, sets in report.get("ties", {}).items():
        if _constant(report, detector, sets):
            shown.append(
                f"{detector} gives every image of every set the same score: it tells nothing on"
                " this network, and its FPR95 means nothing. Use another detector."
            )
            continue
        shares = ", ".join(f"{100 * n / report['counts'][s]:.0f} % of {s}" for s, n in sets.items())
        shown.append(
            f"{detector}: {shares} have the very score of the threshold at which 95 % of the"
            " in-distribution images are kept. FPR95 in the published convention counts them as"
            " rejected; if they were kept, it would be higher by as much."
        )
    return shown


def _constant(report: Mapping[str, Any], detector: str, tied: Mapping[str, int]) -> bool:
    """Whether all scores are the same: all tie, with those in distribution too."""
    return all(
        tied.get(name) == report["counts"][name] and row["auroc"] == 0.5
        for name, row in report["results"][detector].items()
    )


def heading(report: Mapping[str, Any]) -> str:
    """What was evaluated, in a few lines."""
    model, counts = report["model"], report["counts"]
    id_set = report["in_distribution"]
    accuracy = report["accuracy"]
    lines = [
        f"benchmark {report['benchmark']}, protocol {report['protocol']}, seed {report['seed']}",
        f"model {model['name']} ({model['parameters']:,} parameters, checkpoint"
        f" {report['checkpoint']})",
        f"in-distribution {id_set}: {counts[id_set]} images, accuracy "
        + ("unknown (no labels)" if accuracy is None else f"{accuracy:.2%}"),
    ]
    for name, share in report.get("shifted", {}).items():
        told = "unknown (no labels)" if share is None else f"{share:.2%}"
        lines.append(f"shifted {name}: {counts[name]} images, accuracy {told}")
    if errors := report.get("calibration_error"):
        told = ", ".join(f"{name} {error:.2%}" for name, error in errors.items())
        lines.append(f"expected calibration error: {told}")
    for name, images in report.get("unreadable", {}).items():
        lines.append(f"left out of {name}: {_left_out(images)}")
    for name, stand_in in report.get("absent", {}).items():
        lines.append(f"absent: {name}" + (f"; {stand_in} stands in" if stand_in else ""))
    lines += [f"note: {note}" for note in report.get("notes", ())]
    if report.get("incomplete"):
        lines.append(f"so there is no average of the benchmark: {', '.join(report['incomplete'])}")
    return "\n".join(lines)


def fact_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a reader must know of a run, in order."""
    model, counts, accuracy = report["model"], report["counts"], report["accuracy"]
    size = " x ".join(map(str, model.get("input_size", ())))
    names = (report["in_distribution"], *report["groups"], *report.get("shifted", ()))
    images = ", ".join(f"{name} {counts[name]:,}" for name in names)
    seconds = report.get("seconds", {}).get("total")
    versions = report.get("versions", {})
    facts = {
        "benchmark": f"{report['benchmark']}, protocol {report['protocol']}",
        "in-distribution set": report["in_distribution"],
        "accuracy there": "unknown (no labels)" if accuracy is None else f"{accuracy:.2%}",
        "accuracy on shifted images": ", ".join(
            f"{name} {'unknown' if share is None else format(share, '.2%')}"
            for name, share in report.get("shifted", {}).items()
        ),
        "expected calibration error": ", ".join(
            f"{name} {error:.2%}" for name, error in report.get("calibration_error", {}).items()
        ),
        "model": f"{model['name']}, {model['parameters']:,} parameters"
        + (f", {model['classes']} classes" if "classes" in model else ""),
        "checkpoint": report["checkpoint"],
        "weights (SHA-256)": model.get("weights_sha256", ""),
        "preprocessing": report["preprocessing"],
        "input": f"{size} pixels",
        "normalisation": f"mean {listed(model.get('mean'))}, std {listed(model.get('std'))}",
        "images": images,
        "at most per set": "" if report.get("limit") is None else f"{report['limit']:,} (subset)",
        "unreadable": "; ".join(
            f"{name}: {_left_out(idents)}" for name, idents in report.get("unreadable", {}).items()
        ),
        "absent sets": ", ".join(_absent(report)),
        "seed": str(report["seed"]),
        "device": report.get("device", ""),
        "matrix products": f"{model['precision']} precision" if "precision" in model else "",
        "seconds": "" if seconds is None else f"{seconds:.1f} (scores already stored take none)",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "command": report.get("command", ""),
    }
    return [(name, value) for name, value in facts.items() if value]


def notes(report: Mapping[str, Any]) -> list[str]:
    """Sentences that belong beside the tables."""
    sentences = [
        "A higher score means that an image looks more in-distribution. Best values in bold."
    ]
    if draws := report.get("bootstrap"):
        sentences.append(
            "In brackets: 95 % confidence intervals by bootstrap over images"
            f" ({draws['resamples']} resamples, seed {draws['seed']})."
        )
    if full := full_spectrum(report):
        sentences.append(
            f"Full spectrum: {full['in_distribution']} are all counted as in-distribution, so that"
            " a shift of style or quality alone is to be accepted."
        )
    sentences += tie_notes(report)
    sentences += report.get("notes", ())
    return sentences


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Sentences that a reader must see before the numbers."""
    shown = []
    if warning := report.get("warning"):
        shown.append(f"{warning}.")
    if missing := report.get("incomplete"):
        groups = " and ".join(missing)
        absent = ", ".join(_absent(report))
        shown.append(
            f"Sets of the benchmark are absent, so means over the {groups} sets are not the"
            f" benchmark's averages: {absent}."
            if absent
            else f"Means over the {groups} sets are not the benchmark's averages, since sets were"
            " taken otherwise than it lists them."
        )
    return shown


def answer(report: Mapping[str, Any]) -> str:
    """The result in a sentence or two: which detector is best on which group of sets."""
    best: dict[str, list[str]] = {}
    for group in dict.fromkeys(report["groups"].values()):
        members = [name for name, its in report["groups"].items() if its == group]
        first = max(report["averages"], key=lambda d: report["averages"][d][group]["auroc"])
        row = report["averages"][first][group]
        sets = f"the {len(members)} {group} sets" if len(members) > 1 else f"{members[0]} ({group})"
        values = f"AUROC {percent(row['auroc'])} %, FPR95 {percent(row['fpr95'])} %"
        best.setdefault(first, []).append(f"on {sets} ({values})")
    id_set, count = report["in_distribution"], len(report["results"])
    if not best:
        return f"{id_set} was scored; there is no out-of-distribution set to tell it from."
    told = "; ".join(
        f"{name} {'is best' if count > 1 else 'was evaluated'} {' and '.join(places)}"
        for name, places in best.items()
    )
    lead = f"Of {count} detectors, " if count > 1 else ""
    return f"{lead}{told}. In-distribution is {id_set}."


def setting_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(detector, its settings) of each detector."""
    return [
        (name, ", ".join(f"{k}={listed(v)}" for k, v in report["settings"].get(name, {}).items()))
        for name in report["results"]
    ]


def _left_out(images: Sequence[str]) -> str:
    shown = ", ".join(images[:3]) + (", ..." if len(images) > 3 else "")
    return f"{len(images)} unreadable images ({shown})"


def _absent(report: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} ({stand_in} stands in)" if stand_in else name
        for name, stand_in in report.get("absent", {}).items()
    ]


def listed(value: Any) -> str:
    """A setting's value as text."""
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)


def title(report: Mapping[str, Any]) -> str:
    """A run in a few words."""
    return (
        f"Out-of-distribution detection: {report['benchmark']} ({report['protocol']}),"
        f" {report['model']['name']}"
    )
