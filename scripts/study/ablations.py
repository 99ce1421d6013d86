"""What each part of S&I-C is worth, from readings alone: components, images, and options."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from si_jax.detectors.base import State
from si_jax.detectors.si_c import FORWARD
from si_jax.detectors.si_c import fit as si_c_fit
from si_jax.detectors.si_c import score as si_c_score
from si_jax.detectors.si_c.score import COMPONENTS
from study.comparison import FORMS, MEASURED, Scores, group_means
from study.readings import CaseReadings, Readings, by_tap, fewer_channels

ALL = tuple(COMPONENTS)
LETTERS = {"energy": "E", "channel-average": "A", "zero-deflation": "M"}
OPTIONS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "images": ("images", (50, 100, 200, 500, 1000, 2000, 5000)),
    "shrinkage": ("shrinkage", (0.01, 0.03, 0.1, 0.3, "ledoit-wolf")),
    "channels": ("max_channels", (64, 128, 256, None)),
}
"""Table -> field of `Fit`, and its values."""

SMALL = 1000
"""Below so many channels, threads wait for each other longer than they help."""

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


def plan(seeds: int) -> list[Row]:
    """All rows of all tables, with `seeds` calibration draws."""
    subsets = [c for n in range(1, len(ALL) + 1) for c in itertools.combinations(ALL, n)]
    rows = [
        Row("components", letters(chosen), form, (Fit(chosen),))
        for chosen in subsets
        for form in reversed(FORMS)
    ]
    for components, form in itertools.product((ALL, FORWARD), FORMS):
        name = letters(components)
        every = tuple(Fit(components, k) for k in range(seeds))
        rows += [Row("seeds", f"{name}, draw {fit.draw}", form, (fit,)) for fit in every]
        rows.append(Row("seeds", f"{name}, mean", form, every))
        for table, (option, values) in OPTIONS.items():
            draws = seeds if table == "images" else 1
            for value in values:
                fits = tuple(Fit(components, k, **{option: value}) for k in range(draws))
                rows.append(Row(table, f"{name}, {value or 'all'}", form, fits))
    return rows


def letters(components: Sequence[str]) -> str:
    """`("energy", "zero-deflation")` -> `"E+M"`."""
    return "+".join(LETTERS[name] for name in components)


def run(
    readings: CaseReadings, groups: Mapping[str, str], rows: Sequence[Row], title: str
) -> list[dict[str, Any]]:
    """The ablations' values.

    Args:
        readings: of the case.
        groups: set -> group.
        rows: what is wanted, see `plan`.
        title: of the progress bar.

    Returns:
        For each row a dictionary: `table`, `label`, `form`, `components` (in letters), `images`,
        `channels`, `shrinkage`, `draws`; `mean` and, over several draws, `sd` (of the sample):
        group -> metric -> fraction; and `failure`, the reason why there is no value, or None.
    """
    wanted: dict[Fit, set[str]] = {}
    for row in rows:
        for fit in row.fits:
            wanted.setdefault(fit, set()).add(row.form)
    measured: dict[tuple[Fit, str], dict[str, Any]] = {}
    small = len(readings.channels.index) < SMALL
    with threadpool_limits(1 if small else None, user_api="blas"):
        for fit, forms in tqdm(wanted.items(), desc=f"{title}: ablations", unit="fit"):
            try:
                values = _measured(readings, groups, fit, forms)
            except ValueError as error:
                values = {form: {"failure": str(error)} for form in forms}
            measured |= {(fit, form): row for form, row in values.items()}
    return [_joined(row, [measured[fit, row.form] for fit in row.fits]) for row in rows]


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

    options: dict[str, Any] = {"components": fit.components, "shrinkage": fit.shrinkage}
    return si_c_fit.fit([cut(table)], channels, seed=fit.draw, **options), cut


def scores(
    readings: CaseReadings, fit: Fit, forms: Iterable[str]
) -> tuple[State, dict[str, Scores]]:
    """The fit's state, and form -> scores of each test set; raises as `fitted`."""
    state, cut = fitted(readings, fit)

    def score(some: Readings, form: str) -> np.ndarray:
        result = si_c_score.apply(state, cut(some), components=fit.components, form=form)
        return np.asarray(result["score"])

    return state, {
        form: {name: score(some, form) for name, some in readings.sets.items()} for form in forms
    }


def layers(readings: CaseReadings) -> dict[str, Any]:
    """What the layers say: mean densities, and how often a p-value is small.

    Returns:
        `taps`; `density`: set (`"in-distribution"` first) -> (taps,) mean density; `band`: (2,
        taps), the middle 90 % of the in-distribution images; `rejected`: set -> (taps,) share of
        images with p < 0.05, empty where S&I-C cannot be fitted. As lists.
    """
    first, *others = readings.sets
    sets = {"in-distribution": readings.sets[first], **{n: readings.sets[n] for n in others}}
    density = {name: by_tap(rows["density"], readings.channels) for name, rows in sets.items()}
    rejected = {}
    try:
        state, cut = fitted(readings, Fit())
        for name, rows in sets.items():
            pvalue = si_c_score.apply(state, cut(rows), components=ALL, form="sum")["tap_pvalue"]
            rejected[name] = (pvalue < LEVEL).mean(axis=0).tolist()
    except ValueError:
        rejected = {}
    return {
        "taps": list(readings.channels.taps),
        "density": {name: values.mean(axis=0).tolist() for name, values in density.items()},
        "band": np.percentile(density["in-distribution"], (5, 95), axis=0).tolist(),
        "rejected": rejected,
    }


def _measured(readings: CaseReadings, groups, fit: Fit, forms) -> dict[str, dict[str, Any]]:
    """Form -> the row's values."""
    state, by_form = scores(readings, fit, forms)
    row: dict[str, Any] = {"images": fit.images or len(readings.draws[0]["energy"])}
    if "scale" in state:
        row |= {"channels": len(state["scale"]), "shrinkage": float(state["shrinkage"])}
    return {form: row | {"mean": group_means(sets, groups)} for form, sets in by_form.items()}


def _joined(row: Row, values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    result = {
        "table": row.table,
        "label": row.label,
        "form": row.form,
        "components": letters(row.fits[0].components),
        "draws": len(values),
        "images": row.fits[0].images,
        "failure": next((v["failure"] for v in values if "failure" in v), None),
    }
    if result["failure"]:
        return result
    result |= values[0]

    def over_draws(statistic):
        return {
            group: {m: float(statistic([v["mean"][group][m] for v in values])) for m in MEASURED}
            for group in values[0]["mean"]
        }

    result["mean"] = over_draws(np.mean)
    if len(values) > 1:
        result["sd"] = over_draws(lambda x: np.std(x, ddof=1))
    return result
