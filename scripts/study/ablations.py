"""What each part of S&I-C is worth, from readings alone: components, images, and options."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from si_jax.data.files import write_atomically
from si_jax.detectors import DETECTORS
from si_jax.detectors.base import State
from si_jax.detectors.si_c import fit as si_c_fit
from si_jax.detectors.si_c import score as si_c_score
from si_jax.detectors.si_c.method import FORWARD
from si_jax.detectors.si_c.score import COMPONENTS
from si_jax.evaluation.keys import key_of
from study.measures import MEASURED, group_means
from study.readings import CaseReadings, Readings, by_tap, fewer_channels

ALL = tuple(COMPONENTS)
LETTERS = {"energy": "E", "channel-average": "A", "zero-deflation": "M"}
FORMS = ("sum", "hinge")
IMAGES = (50, 100, 200, 500, 1000, 2000, 5000)
SHRINKAGE = (0.01, 0.03, 0.1, 0.3, "ledoit-wolf")
CHANNELS = (64, 128, 256, None)
MAIN = tuple((components, form) for components in (ALL, FORWARD) for form in ("hinge", "sum"))
"""The main forms: components and form, with a gradient and without."""

SMALL = 1000
"""Below so many channels, threads wait for each other longer than they help."""

VERSION = 1
"""Of the values: raised when the same readings give other ones."""

LEVEL = 0.05
"""Below which p-value a tap counts as abnormal."""


@dataclass(frozen=True)
class Fit:
    """What is fitted on what.

    Attributes:
        components: keys of `COMPONENTS`, in its order.
        draw: number of the calibration set, and seed; where there are fewer sets, the first one
            is split and thinned by another seed.
        images: calibration images; None for all.
        shrinkage: as for `si_c`.
        max_channels: as for `si_c`; None for all that were read.
    """

    components: tuple[str, ...] = ALL
    draw: int = 0
    images: int | None = None
    shrinkage: float | str = 0.1
    max_channels: int | None = None


@dataclass(frozen=True)
class Row:
    """A row of an ablation's table: a form, and the fits that it is the mean over."""

    table: str
    label: str
    form: str
    fits: tuple[Fit, ...]


def plan(seeds: int, sizes: Sequence[int] = IMAGES) -> list[Row]:
    """All rows of all tables.

    Args:
        seeds: calibration draws.
        sizes: numbers of calibration images.
    """
    rows = []
    for count in range(1, len(ALL) + 1):
        for chosen in itertools.combinations(ALL, count):
            for form in FORMS:
                rows.append(Row("components", letters(chosen), form, (Fit(chosen),)))
    for components, form in MAIN:
        name = letters(components)
        for size in sizes:
            fits = tuple(Fit(components, k, size) for k in range(seeds))
            rows.append(Row("images", f"{name}, {size}", form, fits))
        for k in range(seeds):
            rows.append(Row("seeds", f"{name}, draw {k}", form, (Fit(components, k),)))
        every = tuple(Fit(components, k) for k in range(seeds))
        rows.append(Row("seeds", f"{name}, mean", form, every))
        for share in SHRINKAGE:
            fits = (Fit(components, shrinkage=share),)
            rows.append(Row("shrinkage", f"{name}, {share}", form, fits))
        for number in CHANNELS:
            fits = (Fit(components, max_channels=number),)
            rows.append(Row("channels", f"{name}, {number or 'all'}", form, fits))
    return rows


def letters(components: Sequence[str]) -> str:
    """`("energy", "zero-deflation")` -> `"E+M"`."""
    return "+".join(LETTERS[name] for name in components)


def run(
    readings: CaseReadings, groups: Mapping[str, str], rows: Sequence[Row], path: Path, title: str
) -> list[dict[str, Any]]:
    """The ablations' values; from their file where it is of the same readings and rows.

    Args:
        readings: of the case.
        groups: set -> group.
        rows: what is wanted, see `plan`.
        path: the file.
        title: of the progress bar.

    Returns:
        For each row a dictionary: `table`, `label`, `form`, `components` (in letters), `images`,
        `channels`, `shrinkage`, `draws`; `mean` and, over several draws, `sd` (of the sample):
        group -> metric -> fraction; and `failure`, the reason why there is no value, or None.
    """
    facts = {
        "readings": readings.key,
        "rows": [asdict(row) for row in rows],
        "groups": dict(groups),
        "version": [VERSION, DETECTORS["si-c"].version],
    }
    key = key_of(facts)
    try:
        stored = json.loads(path.read_text())
        if stored["key"] == key:
            return stored["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    wanted: dict[Fit, dict[str, None]] = {}
    for row in rows:
        for fit in row.fits:
            wanted.setdefault(fit, {})[row.form] = None
    measured: dict[tuple[Fit, str], Any] = {}
    small = len(readings.channels.index) < SMALL
    with threadpool_limits(1 if small else None, user_api="blas"):
        for fit, forms in tqdm(wanted.items(), desc=f"{title}: ablations", unit="fit"):
            measured |= {
                (fit, form): value for form, value in _values(readings, groups, fit, forms)
            }
    results = [_joined(row, [measured[fit, row.form] for fit in row.fits]) for row in rows]
    content = json.dumps({"key": key, "rows": results}, allow_nan=False).encode()
    write_atomically(path, lambda file: file.write(content))
    return results


def fitted(readings: CaseReadings, fit: Fit) -> tuple[State, Callable[[Readings], Readings]]:
    """The fit's state, and what cuts readings to its channels.

    Raises:
        ValueError: if there are not as many images, or they cannot be fitted on.
    """
    table = readings.draws[fit.draw if fit.draw < len(readings.draws) else 0]
    count = len(table["energy"])
    if fit.images is not None and fit.images > count:
        raise ValueError(f"images (={fit.images}): there are {count} to calibrate on")
    if fit.images is not None and fit.images < count:
        rng = np.random.default_rng([fit.draw, fit.images])
        chosen = np.sort(rng.choice(count, fit.images, replace=False))
        table = {name: values[chosen] for name, values in table.items()}
    channels = readings.channels
    places: np.ndarray | slice = slice(None)
    if fit.max_channels is not None:
        places, channels = fewer_channels(channels, fit.max_channels)

    def cut(some: Readings) -> Readings:
        return {**some, "density": some["density"][:, places]}

    state = si_c_fit.fit(
        [cut(table)],
        channels,
        components=fit.components,
        shrinkage=fit.shrinkage,
        seed=fit.draw,
    )
    return state, cut


def scores(readings: CaseReadings, fit: Fit, form: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores of the in-distribution images (n,), and of each set's.

    Raises:
        ValueError: as `fitted`.
    """
    state, cut = fitted(readings, fit)
    return _scores(readings, state, cut, fit.components, form)


def layers(readings: CaseReadings) -> dict[str, Any]:
    """What the layers tell: mean densities, and how often a p-value is small.

    Returns:
        `taps`; `density`: set (`"in-distribution"` first) -> (taps,) mean density; `band`: (2,
        taps), the middle 90 % of the in-distribution images; `rejected`: set -> (taps,) share of
        images with p < 0.05, empty where S&I-C cannot be fitted. As lists.
    """
    sets = {"in-distribution": readings.id, **readings.ood}
    density = {name: by_tap(rows["density"], readings.channels) for name, rows in sets.items()}
    band = np.percentile(density["in-distribution"], (5, 95), axis=0)
    rejected = {}
    try:
        state, cut = fitted(readings, Fit())
    except ValueError:
        state = None
    if state is not None:
        for name, rows in sets.items():
            pvalue = si_c_score.apply(state, cut(rows), components=ALL, form="sum")["tap_pvalue"]
            rejected[name] = (pvalue < LEVEL).mean(axis=0).tolist()
    return {
        "taps": list(readings.channels.taps),
        "density": {name: values.mean(axis=0).tolist() for name, values in density.items()},
        "band": band.tolist(),
        "rejected": rejected,
    }


def _scores(readings, state, cut, components, form):
    def one(some: Readings) -> np.ndarray:
        result = si_c_score.apply(state, cut(some), components=components, form=form)
        return np.asarray(result["score"])

    return one(readings.id), {name: one(some) for name, some in readings.ood.items()}


def _values(readings, groups, fit: Fit, forms):
    """(form, values or the reason why there are none) of a fit."""
    try:
        state, cut = fitted(readings, fit)
    except ValueError as error:
        return [(form, str(error)) for form in forms]
    facts: dict[str, Any] = {"images": _images(readings, fit)}
    if "scale" in state:
        facts |= {"channels": len(state["scale"]), "shrinkage": float(state["shrinkage"])}
    values: list[tuple[str, dict[str, Any] | str]] = []
    for form in forms:
        try:
            id_scores, ood_scores = _scores(readings, state, cut, fit.components, form)
            values.append((form, facts | {"mean": group_means(id_scores, ood_scores, groups)}))
        except ValueError as error:
            values.append((form, str(error)))
    return values


def _images(readings: CaseReadings, fit: Fit) -> int:
    return fit.images or len(readings.draws[0]["energy"])


def _joined(row: Row, values: Sequence[Any]) -> dict[str, Any]:
    result = {
        "table": row.table,
        "label": row.label,
        "form": row.form,
        "components": letters(row.fits[0].components),
        "draws": len(values),
        "images": row.fits[0].images,
        "failure": next((value for value in values if isinstance(value, str)), None),
    }
    if result["failure"]:
        return result
    result |= {name: value for name, value in values[0].items() if name != "mean"}
    for name, statistic in (("mean", np.mean), ("sd", lambda x: np.std(x, ddof=1))):
        if name == "mean" or len(values) > 1:
            result[name] = {
                group: {
                    m: float(statistic([v["mean"][group][m] for v in values])) for m in MEASURED
                }
                for group in values[0]["mean"]
            }
    return result
