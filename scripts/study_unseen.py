"""Whether another form of S&I-C is better on networks and sets that did not choose it.

python scripts/study_unseen.py --network digits=digits --network cifar100=cifar100_resnet20 \
  --network cifar100=CHECKPOINT --network cifar10=CHECKPOINT --data-dir DIR --ood-root DIR

Every candidate differs from the default in one or two things. For each network and each set, the
candidate is chosen that is best on the other networks without that set, and its result there is
reported. Values are computed once and kept below --out.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression

import si_jax
from si_jax import cli
from si_jax.batching import Batched
from si_jax.data import benchmarks, digits, synthetic
from si_jax.data.files import write_atomically
from si_jax.data.image_set import ImageSet, fingerprint_of, subset, take
from si_jax.data.preprocessing import Preprocessing
from si_jax.detectors import Method, Plan, register_detector
from si_jax.detectors.base import Inputs, State
from si_jax.detectors.fitting import Batches
from si_jax.detectors.si_c import fit as si_c_fit
from si_jax.detectors.si_c.readings import reader
from si_jax.detectors.si_c.score import ENERGY_SHARE, HINGE_WEIGHT, LIMIT, component_values
from si_jax.evaluation import metrics
from si_jax.evaluation.metrics import METRICS
from si_jax.reporting.report import text_table
from study import cases
from study.comparison import MEASURED

CALIBRATION = "calibration"
HELD_OUT = 0.3  # of the fitting images: what components are standardised on
SHIFTED = 300  # images of each synthetic shift
PRIOR = 10  # images that a class's mean density counts less than
DEVIATIONS = si_c_fit.DEVIATIONS

Values = Mapping[str, np.ndarray]
"""Component -> (n,) values, of one set."""

Measured = Mapping[str, Mapping["Candidate", Mapping[str, np.ndarray]]]
"""Network -> candidate -> set -> metrics."""


def class_wise(model: si_jax.Model) -> Plan:
    """S&I-C's zero-deflation of densities less the mean of the predicted class."""
    reading = reader(model, components=("zero-deflation",))

    def read(inputs: Inputs) -> dict[str, Any]:
        found = reading.read(inputs)
        return found | {"class": jnp.argmax(inputs.forward.logits, axis=-1)}

    def fit(batches: Batches) -> State:
        run = Batched(lambda variables, x: read(Inputs(model, variables, x)), model.replicated)
        parts = [found for found, _ in batches.each(run)]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        mean = rows["density"].mean(axis=0)
        centre = np.tile(PRIOR * mean, (model.num_classes, 1))
        np.add.at(centre, rows["class"], rows["density"])
        count = np.bincount(rows["class"], minlength=model.num_classes)
        centre /= (count + PRIOR)[:, None]
        rows["density"] = rows["density"] - centre[rows["class"]]
        state = si_c_fit.fit([rows], reading.channels, components=reading.components)
        return {**state, "centre": centre.astype(np.float32)}

    def compute(inputs: Inputs, state: State) -> dict[str, Any]:
        found = read(inputs)
        less = {"density": found["density"] - state["centre"][found["class"]]}
        return {"score": component_values(state, less, reading.components)[:, 0]}

    return Plan(compute, shared_forward=False, fit=fit)


CLASS_WISE = Method(class_wise, "zero-deflation by class", "this study", version=1, needs=("fit",))

DETECTORS: dict[str, Any] = {
    name: name
    for name in (
        "si-c", "msp", "energy", "ash-s", "entropy", "mcm", "fdbd", "relation", "nac", "gram",
        "class-wise",
    )
} | {"lts": ("lts", {"percentile": 85.0})}  # fmt: skip
"""What is computed of every image."""

BASELINES = ("msp", "energy", "ash-s")

# What a component's sum may be made of, and why.
PARTS = {
    "E+A+M": "the default",
    "A+M": "the energy is in the confidence already, and counts twice",
    "E+A+N": "coverage (nac) in the place of densities",
    "E+A+M+N": "coverage beside them",
    "E+A+M+R": "relation: a set of training images speaks for the image",
    "E+A+M+G": "gram: the range of the predicted class",
    "E+A+M+L": "lts, the best detector for far sets that is not S&I-C",
    "S+A+M": "ash-s in the place of the energy",
    "E+A+C": "densities less the mean of the predicted class",
}
LETTERS = {
    "E": "energy",
    "A": "channel_average",
    "M": "zero_deflation",
    "N": "nac",
    "R": "relation",
    "G": "gram",
    "L": "lts",
    "S": "ash-s",
    "C": "class-wise",
}


def _hinge(x: np.ndarray) -> np.ndarray:
    return HINGE_WEIGHT * x.clip(min=0) ** 2


# How the sum's shortfall is paid for, and why. 2 costs the same in each but `softplus`.
PENALTIES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "hinge": (_hinge, "the default"),
    "softplus": (lambda x: HINGE_WEIGHT * np.logaddexp(0, x) ** 2, "no kink at the median"),
    "cubic": (lambda x: HINGE_WEIGHT / 2 * x.clip(min=0) ** 3, "less near, more far"),
    "late": (lambda x: HINGE_WEIGHT / 0.75**2 * (x - 0.5).clip(min=0) ** 2, "nothing if usual"),
    "capped": (lambda x: _hinge(x.clip(max=3)), "beyond 3 the confidence decides again"),
    "linear": (lambda x: 2 * HINGE_WEIGHT * x.clip(min=0), "more near, less far"),
    "apart": (_hinge, "each component pays for itself: none makes up for another"),
}

# What the penalty is taken from: component -> weight, and why.
BASES: dict[str, tuple[dict[str, float], str]] = {
    "confidence": ({"confidence": 1 - ENERGY_SHARE, "energy": ENERGY_SHARE}, "the default"),
    "fdbd": ({"confidence": 0.5, "energy": 0.25, "fdbd": 0.25}, "good near"),
    "entropy": ({"entropy": 0.75, "energy": 0.25}, "the best near on CIFAR-100"),
    "mcm": ({"confidence": 0.5, "energy": 0.25, "mcm": 0.25}, "good near"),
    "ash-s": ({"confidence": 0.75, "ash-s": 0.25}, "ash-s in the place of the energy"),
}

WEIGHTS = {
    "equal": "the default",
    "shifts": "components weigh by how well they separate synthetic shifts of fitting images",
}


@dataclass(frozen=True)
class Candidate:
    """A form of S&I-C."""

    parts: str = "E+A+M"
    penalty: str = "hinge"
    base: str = "confidence"
    weights: str = "equal"

    @property
    def changes(self) -> dict[str, str]:
        """What differs from the default."""
        return {k: v for k, v in vars(self).items() if v != getattr(Candidate, k)}

    def __str__(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self.changes.items()) or "default"


LEARNT = Candidate(weights="logistic")
"""All weights by a logistic regression of synthetic shifts; no penalty."""


def candidates(changes: int) -> list[Candidate]:
    """The default, and what differs from it in at most so many things."""
    product = itertools.product(PARTS, PENALTIES, BASES, WEIGHTS)
    some = [c for c in itertools.starmap(Candidate, product) if len(c.changes) <= changes]
    return [*sorted(some, key=lambda c: len(c.changes)), LEARNT]


@dataclass(frozen=True)
class Network:
    """A network's values: set -> component -> (n,), and its test sets' groups."""

    values: Mapping[str, Values]
    groups: Mapping[str, str]

    @property
    def shifts(self) -> list[str]:
        """The synthetic sets."""
        return [name for name in self.values if name.startswith("shift-")]


def pixels(images: ImageSet, transform: Preprocessing) -> np.ndarray:
    """All images of a set, as the network takes them."""
    return np.stack([transform(images.load(i)[0]) for i in range(len(images))])


def shifts(images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Synthetic shifts of images: far ones, and a mixture of two, which is near."""
    rng = np.random.default_rng(seed)
    found = {
        name: np.stack([make(image, rng) for image in images[:SHIFTED]])
        for name, make in synthetic.KINDS.items()
    }
    found["inverted"] = 255 - images[:SHIFTED]
    pair = images[:SHIFTED].astype(np.uint16) + images[::-1][:SHIFTED]
    found["mixed"] = (pair // 2).astype(np.uint8)
    return {f"shift-{name}": made for name, made in found.items()}


def read(
    name: str, dataset: str, checkpoint: str, model: si_jax.Model, args: argparse.Namespace
) -> Network:
    """All values of a network, from a file where there is one of the same images and weights."""
    places = {"data_dir": args.data_dir, "ood_root": args.ood_root, "allow_missing": True}
    draw = {"calibration": args.calibration, "seeds": 1, "seed": args.seed}
    sets: dict[str, np.ndarray] = {}
    groups: dict[str, str] = {}
    for protocol in benchmarks.BENCHMARKS[dataset].ood:
        resolved = benchmarks.resolve(dataset, protocol, **places)
        case = cases.prepare(name, dataset, checkpoint, model, resolved, **draw)
        way = "crop" if resolved.preprocessing.resize is None else "resize"
        for item in resolved.ood:
            images = pixels(subset(item.images, args.limit, args.seed), resolved.preprocessing)
            if not any(np.array_equal(images, other) for other in sets.values()):
                sets[f"{item.name}-{way}"] = images
                groups[f"{item.name}-{way}"] = item.group
    if dataset != "digits":
        sets["handwriting"], groups["handwriting"] = digits.load("test")[0], "far"
    count = int(len(case.draws[0]) * (1 - HELD_OUT))
    # drawn are places in order, and a benchmark's images may lie class by class
    order = np.random.default_rng(args.seed).permutation(len(case.draws[0]))
    held = pixels(take(case.draws[0], order[count:]), resolved.preprocessing)
    sets |= {CALIBRATION: held, **shifts(held, args.seed)}
    versions = {label: si_jax.DETECTORS[label].version for label in DETECTORS}
    arrays = [*jax.tree.leaves(model.variables), *sets.values()]
    options = args.limit, args.calibration, args.seed, versions
    key = fingerprint_of(*options, *(np.asarray(x).tobytes() for x in arrays))
    path = Path(args.out) / f"{name}-{key[:12]}.npz"
    if path.exists():
        values: dict[str, dict[str, np.ndarray]] = {}
        with np.load(path) as stored:
            for label in stored.files:
                image_set, component = label.split("/")
                values.setdefault(image_set, {})[component] = stored[label]
        return Network(values, groups)
    run = si_jax.evaluate_benchmark(
        None,
        case.model,
        detectors=DETECTORS,
        id_set=dataclasses.replace(subset(case.test, args.limit, args.seed), name="test"),
        train_set=take(case.draws[0], order[:count]),
        ood=sets,
    )
    values = {label: of_set(found) for label, found in run.arrays.items()}
    flat = {f"{s}/{k}": x for s, found in values.items() for k, x in found.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **flat))
    return Network(values, groups)


def of_set(found: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Component -> values: scores, S&I-C's own components, and logarithms of what is skewed."""
    values = {label: np.asarray(found[label]["score"], np.float64) for label in DETECTORS}
    for name in ("confidence", "energy", "channel_average", "zero_deflation"):
        values[name] = np.asarray(found["si-c"][name], np.float64)
    values["gram"] = -np.log(np.maximum(-values["gram"], 1e-3))
    values["relation"] = np.log(np.maximum(values["relation"], 1e-3))
    return values


def standardised(network: Network) -> dict[str, dict[str, np.ndarray]]:
    """The values less their medians, in deviations, of the calibration images."""
    centre = {}
    for name, x in network.values[CALIBRATION].items():
        low, median, high = np.percentile(x, (5, 50, 95))
        centre[name] = median, (high - low) / DEVIATIONS
    return {
        name: {k: (x - centre[k][0]) / centre[k][1] for k, x in found.items()}
        for name, found in network.values.items()
    }


def scores(network: Network, chosen: Iterable[Candidate]) -> dict[Candidate, dict[str, np.ndarray]]:
    """Candidate -> set -> (n,) scores."""
    z = standardised(network)
    tested = ["test", *network.groups]
    found = {}
    for candidate in chosen:
        score = learnt(z, network.shifts) if candidate == LEARNT else form(candidate, z, network)
        found[candidate] = {name: score(z[name]) for name in tested}
    return found


def form(candidate: Candidate, z: Mapping[str, Values], network: Network) -> Callable:
    """A function of a set's standardised values."""
    names = [LETTERS[letter] for letter in candidate.parts.split("+")]
    weights = np.ones(len(names))
    if candidate.weights == "shifts":
        known = z[CALIBRATION]
        gains = [
            np.mean([metrics.auroc(known[k], z[s][k]) - 0.5 for s in network.shifts]) for k in names
        ]
        weights = np.maximum(gains, 0)
        weights *= len(names) / weights.sum()
    penalty, base = PENALTIES[candidate.penalty][0], BASES[candidate.base][0]

    def terms(values: Values) -> np.ndarray:
        """(n, 1) the sum, or (n, components) each of them."""
        columns = np.stack([values[k].clip(max=LIMIT) for k in names], axis=-1) * weights
        apart = candidate.penalty == "apart"
        return columns if apart else columns.sum(axis=-1, keepdims=True)

    usual = terms(z[CALIBRATION])
    median = np.median(usual, axis=0)
    below = median - usual
    shortfall = np.array([np.mean(column[column > 0]) for column in below.T])

    def score(values: Values) -> np.ndarray:
        paid = penalty((median - terms(values)) / shortfall).mean(axis=-1)
        return sum(weight * values[k] for k, weight in base.items()) - paid

    return score


def learnt(z: Mapping[str, Values], shifted: Iterable[str]) -> Callable:
    """The log-odds of a logistic regression of calibration images and synthetic shifts."""
    names = ("confidence", "energy", "channel_average", "zero_deflation")

    def table(values: Values) -> np.ndarray:
        return np.stack([values[k].clip(-LIMIT, LIMIT) for k in names], axis=-1)

    rows = [table(z[CALIBRATION]), *(table(z[name]) for name in shifted)]
    known = np.arange(sum(map(len, rows))) < len(rows[0])
    model = LogisticRegression(class_weight="balanced").fit(np.concatenate(rows), known)
    return lambda values: model.decision_function(table(values))


def measure(known: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The metrics `MEASURED`, fractions."""
    counts = metrics.count(known, other)
    return np.array([METRICS[name].of(counts) for name in MEASURED])


def kind(name: str) -> str:
    """A set's name without the way in which its images were cut."""
    return name.removesuffix("-crop").removesuffix("-resize")


def means(rows: Mapping[str, np.ndarray], groups: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Group -> mean of its sets' metrics."""
    return {
        group: np.mean([rows[name] for name in rows if groups[name] == group], axis=0)
        for group in dict.fromkeys(groups[name] for name in rows)
    }


def worth(rows: Mapping[str, np.ndarray], groups: Mapping[str, str]) -> float:
    """What candidates are chosen by: near AUROC, and half of far AUROC less far FPR95."""
    found = means(rows, groups)
    value = found["near"][0] if "near" in found else 0.0
    if "far" in found:
        value += (found["far"][0] - found["far"][1:].mean()) / 2
    return float(value)


def choose(
    measured: Measured,
    networks: Mapping[str, Network],
    *,
    network: str = "",
    image_set: str = "",
) -> Candidate:
    """The best candidate on all networks but one, and all sets but one."""

    def value(candidate: Candidate) -> float:
        return float(
            np.mean(
                [
                    worth(
                        {s: x for s, x in by[candidate].items() if kind(s) != kind(image_set)},
                        networks[name].groups,
                    )
                    for name, by in measured.items()
                    if name != network
                ]
            )
        )

    return max(next(iter(measured.values())), key=value)


def percent(row: np.ndarray) -> str:
    """AUROC / FPR95 / OpenOOD's FPR95."""
    return " / ".join(f"{100 * x:.1f}" for x in row)


def report(networks: Mapping[str, Network], changes: int, resamples: int) -> str:
    """The tables: what was held out, what was chosen, and each candidate less the default."""
    found = {name: scores(one, candidates(changes)) for name, one in networks.items()}
    measured = {
        name: {
            c: {s: measure(by["test"], by[s]) for s in networks[name].groups}
            for c, by in found[name].items()
        }
        for name in networks
    }
    best = choose(measured, networks)
    shown = dict.fromkeys([*candidates(1)[1:], best])
    rows, picks = [], []
    for name, network in networks.items():
        groups = network.groups
        chosen = {s: choose(measured, networks, network=name, image_set=s) for s in groups}
        shown |= dict.fromkeys(chosen.values())
        for candidate in dict.fromkeys(chosen.values()):
            sets = [s for s, c in chosen.items() if c == candidate]
            picks.append([name, str(candidate), ", ".join(sets)])
        results = [means({s: measured[name][c][s] for s, c in chosen.items()}, groups)]
        for label in ("si-c", *BASELINES):
            known = network.values["test"][label]
            by_set = {s: measure(known, network.values[s][label]) for s in groups}
            results.append(means(by_set, groups))
        for group in results[0]:
            less = difference(found[name], chosen, groups, group, resamples)
            rows.append([f"{name}, {group}", *(percent(r[group]) for r in results), less])
    head = ["held out", "chosen elsewhere", "si-c", *BASELINES, "chosen less default"]
    return "\n\n".join(
        [
            "AUROC / FPR95 / OpenOOD's FPR95, %; differences in points, with 95 % intervals",
            text_table(head, rows),
            text_table(["network", "chosen on the others", "and held out with it"], picks),
            "Less the default: far AUROC / FPR95 / OpenOOD's FPR95; near AUROC",
            against_default(measured, networks, shown),
            f"best on everything, which proves nothing: {best}",
        ]
    )


def against_default(
    measured: Measured, networks: Mapping[str, Network], shown: Iterable[Candidate]
) -> str:
    """A table of candidates, less the default on each network."""
    rows = []
    for candidate in shown:
        cells = []
        for name, by in measured.items():
            one, other = (means(by[c], networks[name].groups) for c in (candidate, Candidate()))
            less = {group: 100 * (one[group] - other[group]) for group in one}
            far, near = less.get("far", []), less.get("near", [])[:1]
            cells.append("; ".join(" / ".join(f"{x:+.1f}" for x in part) for part in (far, near)))
        rows.append([str(candidate), *cells])
    return text_table(["candidate", *networks], rows)


def difference(found, chosen, groups, group, resamples: int) -> str:
    """AUROC and FPR95s less the default's, with 95 % intervals over the same images."""
    parts = []
    for metric in MEASURED:
        drawn = []
        for name, candidate in chosen.items():
            if groups[name] == group:
                one, other = (
                    metrics.draws(by["test"], by[name], metrics=(metric,), resamples=resamples)[
                        metric
                    ]
                    for by in (found[candidate], found[Candidate()])
                )
                drawn.append(one - other)
        mean = 100 * np.mean(drawn, axis=0)
        low, high = metrics.interval(mean)
        parts.append(f"{mean.mean():+.1f} ({low:+.1f} to {high:+.1f})")
    return " / ".join(parts)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--network", action="append", required=True, metavar="DATASET=CHECKPOINT",
        help="a network and its benchmark; at least two")  # fmt: skip
    add("--limit", type=int, default=1000, help="images of each test set; default 1000")
    add("--calibration", type=int, default=5000, help="images to fit on; default 5000")
    add("--changes", type=int, default=2, help="in which candidates differ; default 2")
    add("--resamples", type=int, default=200, help="bootstrap draws; default 200")
    add("--seed", type=int, default=0, help="of all draws; default 0")
    add("--out", default="results/unseen", help="directory for the values")
    add("--data-dir", help="folder of all data; default: $SI_JAX_DATA or ~/.cache/si_jax/data")
    add("--ood-root", help="folder that holds folders of images; default: that of all data")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Compute what is absent, and print the tables."""
    args = parse(argv)
    loaded = cases.load_networks(args.network)
    if len(loaded) < 2:
        raise ValueError("network: give at least two, of which one can be held out")
    register_detector("class-wise", CLASS_WISE)
    networks = {name: read(name, *network, args) for name, network in loaded.items()}
    print(report(networks, args.changes, args.resamples))


if __name__ == "__main__":
    cli.run(main)
