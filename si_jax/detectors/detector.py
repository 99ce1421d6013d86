"""A method applied to a model: fitted, calibrated, and asked for scores and decisions."""

import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Shaped

from si_jax.batching import SMALL_BATCH, Batched, Replicated, progress_bar
from si_jax.data.image_set import ImageSet, ImageStream
from si_jax.data.opening import as_images
from si_jax.data.pipeline import Batch, batches
from si_jax.data.preprocessing import Preprocessing, preprocessing_for
from si_jax.detectors.base import Inputs, Plan, State
from si_jax.detectors.fitting import Batches
from si_jax.detectors.options import Count, convert
from si_jax.detectors.predictions import Predictions, calibrated, predicted, prediction_rows
from si_jax.detectors.threshold import Threshold
from si_jax.model import Model
from si_jax.networks.checking import SCALES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_TO_WARN = 10  # scores, of which one or two could be the same by chance


class Detector:
    """A detection method applied to a model. Made by `si_jax.make_detector`.

    Attributes:
        name: the method's name.
        model: the network.
        settings: every option's value, after presets and defaults.
        batch_size: images per batch; bounds the memory, and no score depends on it.
        shared_forward: whether it needs nothing but the one forward pass that such detectors share.
        needs_fit: whether it must be fitted before it can score.
        state: what it has learnt, name -> array; None before it is fitted.
        options: the options that it was made with, as given.
        version: the method's version, see `Method`; None if its scores are not to be stored.
        exact: computes the images that the method cannot be sure of, see `Plan`; None for none.
        threshold: what it decides by, a `si_jax.detectors.threshold.Threshold`; None before it is
            calibrated.
        card: what else is known of it, such as the data that it was calibrated on; saved with it.
        preprocessing: how image files are brought to the network's input size: as the network's
            card says, see `si_jax.data.preprocessing.preprocessing_for`; may be set.
    """

    def __init__(self, name: str, model: Model, plan: Plan, batch_size: int | np.integer | str):
        self.name = name
        self.model = model
        self.settings = dict(plan.settings)
        self.batch_size = convert(Count, "batch_size", batch_size)
        self.shared_forward = plan.shared_forward
        self.needs_fit = plan.fit is not None
        self.options: dict[str, Any] = {}
        self.version: int | None = None
        self.threshold: Threshold | None = None
        self.card: dict[str, Any] = {}
        self.preprocessing: Preprocessing = preprocessing_for(model.input_size, model.card)
        self.exact = plan.exact
        self._plan = plan
        self._fitted_on: np.dtype | None = None
        self.state: State | None = None
        if not self.needs_fit:
            self._set_state({})

    def __repr__(self) -> str:
        known = [f"{k}={v!r}" for k, v in self.settings.items() if k != "taps"]
        if self.needs_fit:
            known.append("not fitted" if self.state is None else "fitted")
        known.append("not calibrated" if self.threshold is None else "calibrated")
        return f"Detector({self.name!r}, {self.model.name}, {', '.join(known)})"

    def compute(
        self, inputs: Inputs, state: State, *, exact: bool = False
    ) -> dict[str, Shaped[Array, "batch ..."]]:
        """The method's arrays for a batch, traced; see `Compute`.

        With `exact`, by the method's `Plan.exact`. The score is float32, and NaN wherever a logit
        is not finite: what is read off a broken forward pass (a ReLU of NaN is off, as in a quiet
        network) is never a good score.
        """
        results = (self.exact if exact and self.exact else self._plan.compute)(inputs, state)
        if len(shape := results["score"].shape) != 1:
            raise ValueError(f"detector {self.name!r} must give one score an image, not {shape}")
        finite = jnp.all(jnp.isfinite(inputs.forward.logits), axis=-1)
        score = jnp.where(finite, results["score"].astype(jnp.float32), jnp.nan)
        return {**results, "score": score}

    def batched(self, state: Replicated, *, predictions: bool = False) -> Batched:
        """`compute` over batches of images, or what `prediction_rows` makes of it."""
        run = partial(self._rows, predictions=predictions)
        exact = partial(run, exact=True) if self.exact else None
        return Batched(run, self.model.replicated, state, exact=exact)

    def _rows(self, variables, state, images, *, predictions=False, exact=False):
        inputs = Inputs(self.model, variables, images)
        results = self.compute(inputs, state, exact=exact)
        return prediction_rows(inputs, results) if predictions else results

    def fit(
        self, images: Any, labels: Any = None, *, scale: str | None = None, progress: bool = True
    ) -> "Detector":
        """Learn from in-distribution training images what the detector needs; returns itself.

        Args:
            images: as for `score`; a folder's class folders are matched to the classes on the
                network's card, or taken in their order. A generator is gone through once.
            labels: (N,) class indices or (N, classes) one-hot, for the detectors that need them,
                where `images` do not come with their own.
            scale: as for `score`.
            progress: whether a bar on stderr shows how far it is, if it takes a while.

        Raises:
            ValueError: if the images do not fit the model, or labels are needed and missing.
        """
        source = training_images(self.model, images, labels)

        def stream():
            bar = f"{self.name}: fitting" * progress
            for batch in self._batches(source, self.batch_size, progress=bar):
                dtypes.setdefault(batch.images.dtype, None)
                yield batch.readable

        dtypes: dict[np.dtype, None] = {}
        once = isinstance(source, ImageStream)
        self.fit_batches(Batches(stream, self.model, keep=once, scale=scale))
        self._fitted_on = None if scale or self.model.scale else next(iter(dtypes), None)
        return self

    def fit_batches(self, batches: Batches) -> "Detector":
        """`fit` on a stream of batches, which is never held in memory as a whole."""
        if self._plan.fit is not None:
            self._set_state(self._plan.fit(batches))
        return self

    def load_state(self, state: State) -> None:
        """Take over a fit, such as one that was saved; a threshold does not outlive it.

        Raises:
            ValueError: if it is the state of another detector, of other options or of another
                network.
        """
        if not self.needs_fit and state:
            raise ValueError(f"detector {self.name!r} learns nothing: there is no state to load")
        image = jax.ShapeDtypeStruct((2, *self.model.image_shape), jnp.float32)
        try:
            if self.needs_fit:
                jax.eval_shape(self._rows, self.model.variables, dict(state), image)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(
                f"this is no state of detector {self.name!r} with these options on this network,"
                f" but holds {', '.join(map(str, state)) or 'nothing'} ({type(error).__name__});"
                " load what was fitted with the same ones"
            ) from None
        self._set_state(state)

    def _set_state(self, state: State) -> None:
        self.state = dict(state)
        self.threshold = None
        self._fitted_on = None
        placed = Replicated(self.state)
        self._run = self.batched(placed)
        self._predict_run = self.batched(placed, predictions=True)

    def calibrate(
        self,
        images: Any,
        *,
        tpr: float = 0.95,
        keep_images: int = 0,
        scale: str | None = None,
        progress: bool = True,
    ) -> "Detector":
        """Set the threshold by held-out in-distribution images; returns itself.

        Split-conformal: the floor((n + 1)(1 - tpr))-th smallest of their n scores, so that further
        in-distribution images are accepted at the rate `tpr` or more; the formula's source and
        what it promises stand in `si_jax.detectors.threshold.Threshold`. The images must be such as
        neither the network nor the detector has learnt from.

        Args:
            images: as for `score`.
            tpr: share of in-distribution images to accept.
            keep_images: how many of the images are kept as thumbnails, drawn at random, for
                `explain` to show the nearest of them. They are saved with the detector.
            scale: as for `score`.
            progress: as for `score`.

        Raises:
            ValueError: if the images do not fit the model, a score is NaN, or there are too few
                images for the rate.
        """
        options = {"scale": scale, "progress": f"{self.name}: calibrating" * progress}
        self.threshold = calibrated(self, images, tpr=tpr, keep_images=keep_images, **options)
        return self

    def predict(
        self, images: Any, *, scale: str | None = None, progress: bool = True
    ) -> Predictions:
        """The predicted classes, and whether to believe them.

        Args:
            images: as for `score`.
            scale: as for `score`.
            progress: as for `score`.

        Returns:
            Arrays: label, probability, score, is_ood (whether the score is below the threshold) and
            p_value.

        Raises:
            ValueError: if the detector is not calibrated, or the images do not fit the model.
        """
        bar = f"{self.name}: predicting" * progress
        parts, transformed = [], False
        for batch, rows in predicted(self, images, scale=scale, progress=bar):
            transformed |= batch.transformed
            parts.append(rows)
        table = {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}
        prepared = str(self.preprocessing) if transformed else ""
        return Predictions(**table, preprocessing=prepared)

    def explain(self, image: Any, *, title: str = "", scale: str | None = None) -> "Figure":
        """A picture of why one image is trusted, or not.

        The image, where the network's evidence lies, how abnormal each layer that the detector
        reads is among the calibration images, where the score lies among theirs, and the nearest of
        them, where some are kept.

        Args:
            image: one image, in any form that `score` takes.
            title: the image's name.
            scale: as for `score`.

        Returns:
            A matplotlib figure: `figure.savefig(path)`.

        Raises:
            ValueError: if the detector is not calibrated, or it is not one image.
        """
        from si_jax.detectors.explanation import draw, explanation

        return draw(self, explanation(self, image, scale), title)

    def save(self, directory: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write the detector to a directory, from which `si_jax.load_detector` reads it.

        The network's weights, the options, the fit, the threshold and the calibration scores, each
        with a hash: JSON and orbax, no pickle. The code of a network that is not this library's is
        not saved; it is given again at loading.

        Args:
            directory: written whole or not at all.
            overwrite: whether to replace a detector that lies there.

        Returns:
            The directory.

        Raises:
            ValueError: if the directory exists, or the detector is not fitted.
        """
        from si_jax.detectors.saving import save_detector

        return save_detector(directory, self, overwrite=overwrite)

    def score(
        self, images: Any, *, scale: str | None = None, progress: bool = True
    ) -> Float32[np.ndarray, "batch"]:
        """How in-distribution each image looks; higher is more in-distribution.

        Args:
            images: (N, height, width, channels) uint8, or float32 already normalised and in the
                model's input size; or images as people have them: paths, folders, globs, Pillow
                images, encoded bytes, lists of these, data sets, loaders, generators and more, see
                `si_jax.data.opening.as_images`. Files are turned upright by their EXIF and
                converted to RGB; they, and uint8 arrays of another size than the model's, are
                brought to size by `preprocessing`. Of a generator nothing is kept.
            scale: what the numbers in other arrays than uint8 mean: `"uint8"` for 0 to 255,
                `"unit"` for [0, 1], `"normalised"`; None for the model's `scale`, or by the dtype,
                as above.
            progress: whether a bar on stderr shows how far it is, if it takes a while.

        Returns:
            (N,) float32.

        Raises:
            ValueError: if the images do not fit the model or are of another dtype than those that
                the detector was fitted on with no scale said, a score is not finite, or the
                detector is not fitted.
        """
        return self.details(images, scale=scale, progress=progress)["score"]

    def details(
        self, images: Any, *, scale: str | None = None, progress: bool = True
    ) -> dict[str, np.ndarray]:
        """The scores and what they were made of; arguments as for `score`.

        Returns:
            `"score"` (N,), and for the gradient-based detectors more: zero-deflation gives
            `"tap_density"` (N, taps), the mean density at each tap; channel-average gives
            `"tap_average"` (N, taps), the mean of `v^2` at each inner tap, and `"outer"` (N,);
            S&I-C gives what `si_jax.detectors.si_c.score.apply` returns, with a p-value for each
            of `settings["taps"]`.
        """
        parts: list[dict[str, np.ndarray]] = []
        first, varied = None, False
        bar = f"{self.name}: scoring" * progress
        for _, batch, part in self.results(images, scale=scale, progress=bar):
            parts.append(part)
            first = batch[:1] if first is None else first
            varied = varied or bool((batch[:64] != first).any())
        results = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        scores = results["score"]
        if len(bad := np.flatnonzero(~np.isfinite(scores))):
            raise ValueError(
                f"detector {self.name!r} gives {len(bad)} of {len(scores)} images, image {bad[0]}"
                " the first, a NaN or infinite score: broken weights, or values that are too large"
            )
        if varied and len(scores) >= LEAST_TO_WARN and np.ptp(scores) == 0:
            warnings.warn(
                f"detector {self.name!r} gives all of {len(scores)} different images the same"
                f" score, {scores[0]:.6g}, so it is useless on this network: use another, such"
                " as 'energy' or 'knn' (zero-deflation needs ReLUs behind its taps)",
                stacklevel=3,
            )
        return results

    def results(
        self,
        images: Any,
        *,
        predictions: bool = False,
        scale: str | None = None,
        ahead: int = 1,
        batch_size: int = 0,
        **options: Any,
    ) -> Iterator[tuple[Batch, np.ndarray, Any]]:
        """What is computed of images of any form, batch by batch; nothing is kept.

        Yields the batch, its readable images as the model takes them, and what is computed of
        these: `prediction_rows`, or else `details`; None where no image can be read.
        `ahead` batches are decoded, and others computed, beside the one in use. Scores may be
        infinite or NaN. `options` are those of `_batches`.
        """
        self.check_fitted()
        size = batch_size or self.batch_size

        def parts():
            for batch in self._batches(images, size, prefetch=ahead, **options):
                found = batch.readable[0]
                said = scale or self.model.scale or batch.transformed
                if not said and self._fitted_on not in (None, found.dtype):
                    raise ValueError(
                        f"images (dtype {found.dtype}) are of another kind than those that detector"
                        f" {self.name!r} was fitted on ({self._fitted_on}): say what their numbers"
                        f" mean by scale=, one of {', '.join(map(repr, SCALES))}"
                    )
                found = self.model.prepare_images(found, scale)
                yield (batch, found), found, batch.is_all

        run = self._predict_run if predictions else self._run
        for (batch, found), results in run.over(parts(), batch_size=size, ahead=ahead):
            yield batch, found, results

    def _batches(
        self, images, size: int, *, progress: str = "", may_be_empty: bool = False, **options: Any
    ) -> Iterator[Batch]:
        """The one generator of batches: images of any form, as the detector prepares them."""
        shape = self.model.image_shape
        source = as_images(images, channels=shape[-1])
        made = batches(source, self.preprocessing, size, image_shape=shape, **options)
        total = len(source) if isinstance(source, ImageSet) else None
        empty = not may_be_empty
        with progress_bar(progress, total) as bar:
            for batch in made:
                empty = False
                yield batch
                bar.update(batch.size)
        if empty:
            raise ValueError("images is empty: there is nothing to compute")

    def warm_up(self, *, dtype: Any = None) -> "Detector":
        """Compile all that `score` can need, so that no later call waits for it; returns itself.

        Three programs: for one image, for a small batch and for a full one. And three for
        `predict`, where the detector is calibrated.

        Args:
            dtype: of the images that will come: uint8, as files have it too, or float32; None for
                that of the images that the detector was fitted on, or uint8.

        Raises:
            ValueError: if the detector is not fitted.
        """
        self.check_fitted()
        images = np.zeros((1, *self.model.image_shape), dtype or self._fitted_on or np.uint8)
        images = self.model.prepare_images(images)
        for run in (self._run, self._predict_run)[: 1 if self.threshold is None else 2]:
            for size in sorted({1, min(SMALL_BATCH, self.batch_size), self.batch_size}):
                run(images, batch_size=size)
        return self

    def check_fitted(self) -> State:
        """The state; raises a ValueError if the detector needs a fit that it does not have."""
        if self.state is None:
            raise ValueError(f"detector {self.name!r} must be fitted first, by fit(images, labels)")
        return self.state


def training_images(model: Model, images: Any, labels: Any) -> ImageSet | ImageStream:
    """Images to fit on; the class folders of a folder are the network's classes."""
    matching: dict[str, Any] = {}
    if labels is None and isinstance(images, str | os.PathLike):
        path, classes = Path(images).expanduser(), tuple(model.card.get("classes", ()))
        if path.is_dir() and any(sub.is_dir() for sub in path.glob("[!.]*")):
            matching = {"classes": classes} if classes else {"num_classes": model.num_classes}
    return as_images(images, labels=labels, channels=model.image_shape[-1], **matching)
