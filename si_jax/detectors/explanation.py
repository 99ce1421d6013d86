"""One picture of why a detector trusts an image, or does not; see `Detector.explain`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter

from si_jax import splitting
from si_jax.detectors import predictions
from si_jax.integration import max_logit
from si_jax.model import Model
from si_jax.taps import default_taps

NEAREST = 3
RARE = 0.05  # p-value below which a layer is called abnormal
ID_COLOUR, OOD_COLOUR, GREY, BAND = "#0072B2", "#D55E00", "#555555", "#DCE9F2"
LAYERS_NAMED = 40
SMOOTHING = 28  # the side of an image in deviations of the Gaussian
LIMIT = 4.0  # half ranges beyond which a layer is drawn at the edge


@dataclass(frozen=True)
class Explanation:
    """What is known of one image, to be drawn by `draw`."""

    image: UInt8[np.ndarray, "height width channels"]
    prediction: predictions.Predictions
    maps: Mapping[str, np.ndarray]  # of `attribution_maps`, by tap
    layers: Sequence[str]  # this and the next two are what `layer_positions` gives
    positions: Float[np.ndarray, "layers"]
    by_p_value: bool
    nearest: Sequence[np.ndarray]  # calibration images, where some are kept
    similarity: Sequence[float]  # cosines of their features with the image's
    classes: Sequence[str]
    top: Sequence[tuple[int, float]]  # (class, probability)

    @property
    def is_ood(self) -> bool:
        """The decision."""
        return bool(self.prediction.is_ood[0])

    def class_name(self, label: int) -> str:
        """A class as it is called."""
        return str(self.classes[label]) if label < len(self.classes) else f"class {label}"


def explanation(detector: Any, image: Any, scale: str | None = None) -> Explanation:
    """What the figure of one image shows."""
    threshold = predictions.check_calibrated(detector)
    model = detector.model
    batch, images, rows = next(detector.results(image, predictions=True, scale=scale, batch_size=2))
    if len(images) != 1:
        raise ValueError("images are several, where one picture explains one image: give one")
    if batch.transformed:
        predictions.check_preprocessing(detector)
    logits = model.logits(images, batch_size=1, scale="normalised")[0]
    probabilities = np.asarray(jax.nn.softmax(logits))
    top = np.argsort(-probabilities, kind="stable")[:5]
    layers, positions, by_p_value = layer_positions(detector, rows)
    nearest, similarity = [], []
    if threshold.examples is not None:
        cosine = threshold.example_features @ rows["features"][0]
        order = np.argsort(-cosine, kind="stable")[:NEAREST]
        nearest, similarity = list(threshold.examples[order]), cosine[order].tolist()
    return Explanation(
        predictions.as_uint8(detector, images[0]),
        detector.predict(images, scale="normalised"),
        attribution_maps(model, images),
        layers,
        positions,
        by_p_value,
        nearest,
        similarity,
        list(model.card.get("classes", ())),
        [(int(c), float(probabilities[c])) for c in top],
    )


def attribution_maps(model: Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Where the evidence for the predicted class lies, at each tap of S&I that has positions.

    The mean over the channels of the absolute gradient of the largest logit at the tap (S&I's
    attribution gradient of the first step), each map divided by its maximum.
    """
    shapes = {call.path: call.shape or () for call in model.calls}
    taps = [tap for tap in default_taps(model, "si-z") if tap != splitting.FEATURES]
    taps = [tap for tap in taps if len(shapes[tap]) == 3 and min(shapes[tap][:2]) > 1]
    if not taps:
        return {}
    slopes = _gradients(model, tuple(taps))(model.variables, images)
    maps = {tap: np.abs(np.asarray(slopes[tap][0], np.float32)).mean(axis=-1) for tap in taps}
    return {tap: values / max(float(values.max()), 1e-30) for tap, values in maps.items()}


@lru_cache(maxsize=1)
def _gradients(model: Model, taps: tuple[str, ...]) -> Callable[..., Mapping[str, jax.Array]]:
    """One program for all images of a network."""

    def gradients(variables, images):
        linear = splitting.linearise(model, variables, model.normalise(images), taps)
        return linear.gradient(max_logit)

    return jax.jit(gradients)


def layer_positions(detector: Any, rows: Mapping[str, np.ndarray]) -> tuple[list, np.ndarray, bool]:
    """Where each layer that the detector reads lies among the calibration images.

    Names of the layers; their p-values, where there are some, else their distance from the median
    in halves of the range from the 5 % to the 95 % quantile; and which of the two it is.
    """
    threshold = predictions.check_calibrated(detector)
    for name in threshold.layers:
        values = rows[name][0]
        key = "inner" if name == "tap_average" else "taps"
        layers = list(detector.settings.get(key, range(len(values))))
        if name == "tap_pvalue":
            return [str(layer) for layer in layers], values, True
        low, median, high = threshold.layers[name]
        half = np.maximum((high - low) / 2, 1e-12)
        return [str(layer) for layer in layers], (values - median) / half, False
    return [], np.zeros(0, np.float32), False


def upsampled(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map resized to (height, width), bilinear."""
    picture = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def draw(detector: Any, shown: Explanation, title: str = "") -> Figure:
    """A figure of what is known of one image; see `Detector.explain`."""
    figure = Figure(figsize=(12.8, 7.2), dpi=120, facecolor="white")
    _heading(figure, detector, shown, title)
    left = figure.add_gridspec(
        2, 4, left=0.03, right=0.585, top=0.795, bottom=0.04, height_ratios=(2.1, 1), hspace=0.16,
        wspace=0.06,
    )  # fmt: skip
    _picture(figure.add_subplot(left[0, :2]), shown.image, "what the network sees")
    evidence = mean_map(shown)
    _picture(figure.add_subplot(left[0, 2:]), shown.image, "where its evidence lies", evidence)
    main = [tap for tap in shown.maps if "shortcut" not in tap] or list(shown.maps)
    evenly = np.unique(np.linspace(0, len(main) - 1, 4).round().astype(int)) if main else ()
    for column, tap in enumerate(main[place] for place in evenly):
        axes = figure.add_subplot(left[1, column])
        _picture(axes, shown.image, _tail(tap, 24), shown.maps[tap])
    kept = bool(shown.nearest)
    right = figure.add_gridspec(
        2 + kept, 1, left=0.7, right=0.975, top=0.795, bottom=0.04 if kept else 0.09,
        hspace=0.85 if kept else 0.4, height_ratios=(1.2, 1.9, 1.15)[: 2 + kept],
    )  # fmt: skip
    _histogram(figure.add_subplot(right[0]), detector.threshold, shown)
    (_layers if shown.layers else _classes)(figure.add_subplot(right[1]), shown)
    if kept:
        places = right[2].subgridspec(1, len(shown.nearest), wspace=0.1)
        for k, image in enumerate(shown.nearest):
            _picture(figure.add_subplot(places[k]), image, f"{shown.similarity[k]:.2f}")
        axes = figure.axes[-len(shown.nearest)]
        title = "nearest calibration images (cosine)"
        axes.text(0, 1.3, title, fontsize=10, transform=axes.transAxes, fontweight="bold")
    return figure


def mean_map(shown: Explanation) -> np.ndarray:
    """Mean of all maps in the image's size, smoothed: strided convolutions leave a grid in them."""
    size = shown.image.shape[:2]
    maps = [upsampled(values, size) for values in shown.maps.values()]
    mean = np.mean(maps, axis=0) if maps else np.zeros(size, np.float32)
    return gaussian_filter(mean, max(size) / SMOOTHING)


def _heading(figure, detector, shown, title) -> None:
    prediction, threshold = shown.prediction, detector.threshold
    score, p_value = float(prediction.score[0]), float(prediction.p_value[0])
    verdict = "OUT-OF-DISTRIBUTION" if shown.is_ood else "IN-DISTRIBUTION"
    colour = OOD_COLOUR if shown.is_ood else ID_COLOUR
    name = shown.class_name(int(prediction.label[0]))
    advice = "do not trust it" if shown.is_ood else "nothing speaks against it"
    lower = round(p_value * (threshold.count + 1)) - 1
    sentence = (
        f"predicted {name} with {float(prediction.probability[0]):.1%}: {advice}.   Of"
        f" {threshold.count} calibration images {lower or 'none'} score as low"
        f" (p = {p_value:.3g})."
    )
    of = f"{detector.name} on {detector.model.name}   score {score:.3g}"
    black, right = "#222222", {"ha": "right", "va": "center"}
    figure.text(0.03, 0.925, verdict, size=24, weight="bold", va="center", color=colour)
    figure.text(0.03, 0.865, sentence, size=12, va="center", color=black)
    figure.text(0.975, 0.935, title, size=11, color=black, parse_math=False, **right)
    figure.text(0.975, 0.9, of, size=10, color=GREY, **right)


def _picture(axes, image: np.ndarray, title: str, values: np.ndarray | None = None) -> None:
    """An image, greyed under a map, if there is one: the more evidence, the more colour."""
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
    if values is None:
        axes.imshow(image, **grey)
    else:
        heat = upsampled(values, image.shape[:2])
        usual = float(np.percentile(heat, 40))  # what is everywhere explains nothing
        heat = np.clip((heat - usual) / max(float(heat.max()) - usual, 1e-30), 0, 1)
        axes.imshow(0.75 * image.astype(np.float32).mean(axis=-1), **grey)
        colours = {"cmap": "inferno", "vmin": -0.2, "vmax": 1, "alpha": 0.75 * heat**0.7}
        axes.imshow(heat, interpolation="bilinear", **colours)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#BBBBBB")
    axes.set_title(title, fontsize=10, color="#222222", pad=4, parse_math=False)


def _histogram(axes, threshold, shown: Explanation) -> None:
    """The calibration scores, the threshold, and this image's score."""
    scores = threshold.scores[np.isfinite(threshold.scores)]
    score = float(shown.prediction.score[0])
    low, high = np.percentile(scores, [1, 100])
    low = min(low, threshold.value)
    width = max(high - low, 1e-12)
    first, last = low - 0.8 * width, high + 0.15 * width
    clipped = np.clip(scores, first, last)
    accepted = clipped >= threshold.value
    parts, edges = [clipped[accepted], clipped[~accepted]], np.linspace(first, last, 56)
    axes.hist(parts, edges, stacked=True, color=[ID_COLOUR, "#9CC3DE"])
    axes.axvline(threshold.value, color="black", linewidth=1, linestyle="--")
    top = axes.get_ylim()[1] * 1.45
    axes.set_ylim(0, top)
    style = {"fontsize": 8.5, "va": "top", "ha": "right"}
    axes.text(threshold.value, top, f"threshold: accept {threshold.tpr:.4g} ", **style)
    colour = OOD_COLOUR if shown.is_ood else ID_COLOUR
    place = float(np.clip(score, first, last))
    if score < first:  # the arrow leads out of the axes
        end, start, align = (place, 0.45 * top), (first + 0.07 * width, 0.45 * top), "left"
    else:
        end, start, align = (place, 0), (place, 0.8 * top), "center"
    axes.annotate(
        f"this image: {score:.3g}", end, start, ha=align, va="center", color=colour, fontsize=9.5,
        fontweight="bold",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"},
        arrowprops={"arrowstyle": "-|>", "color": "#222222" if place > first else colour, "lw": 2},
    )  # fmt: skip
    axes.set_xlim(first, last)
    _chart(axes, "score among the calibration images")
    axes.set_yticks([])
    axes.set_xlabel("score: higher is more in-distribution", fontsize=8.5)


def _layers(axes, shown: Explanation) -> None:
    """How abnormal each layer is, the first at the top."""
    places = np.arange(len(shown.layers))
    if shown.by_p_value:
        values, start = np.maximum(shown.positions, 1e-6), 1.0
        axes.set_xscale("log")
        axes.set_xlim(min(1e-3, float(values.min()) * 0.6), 1.35)
        axes.axvspan(RARE, 1.35, color=BAND, zorder=0)
        abnormal = values < RARE
        axes.set_xlabel("share of in-distribution images as abnormal (shaded: usual)", fontsize=8.5)
    else:
        values, start = np.clip(shown.positions, -LIMIT, LIMIT), 0.0
        axes.set_xlim(-LIMIT - 0.3, LIMIT + 0.3)
        axes.axvspan(-1, 1, color=BAND, zorder=0)
        axes.axvline(0, color="#AAAAAA", linewidth=0.8)
        abnormal = np.abs(values) > 1
        axes.set_xlabel("reading; shaded: 5 % to 95 % of in-distribution images", fontsize=8.5)
        axes.set_xticks([-1, 0, 1], ["5 %", "median", "95 %"])
    axes.hlines(places, start, values, color="#999999", linewidth=1)
    colours = np.where(abnormal, OOD_COLOUR, ID_COLOUR)
    axes.scatter(values, places, c=colours, s=30, zorder=3)
    named = places[:: -(-len(places) // LAYERS_NAMED)]
    axes.set_yticks(named, [_tail(shown.layers[i], 20) for i in named], fontsize=8)
    axes.set_ylim(len(places) - 0.4, -0.6)
    _chart(axes, f"{int(abnormal.sum())} of {len(places)} layers are abnormal")


def _classes(axes, shown: Explanation) -> None:
    """The most probable classes, for a detector that reads no layers."""
    names = [shown.class_name(label) for label, _ in shown.top]
    axes.barh(range(len(names)), [p for _, p in shown.top], color=ID_COLOUR, height=0.6)
    for place, (_, p) in enumerate(shown.top):
        axes.text(min(p, 0.85) + 0.01, place, f"{p:.1%}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    _chart(axes, "most probable classes")


def _chart(axes, title: str) -> None:
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)


def _tail(name: str, length: int) -> str:
    """A path cut to a length at its beginning."""
    return name if len(name) <= length else f"…{name[1 - length :]}"
