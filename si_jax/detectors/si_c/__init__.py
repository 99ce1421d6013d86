"""S&I-C, the calibrated form of Splitting & Integrating, see `si_c`.

One forward pass, and one backward pass where gradients are asked for.

From images to readings (`readings`), to a fit (`fit`), to a score (`score`). Fit and score know
nothing of the network, so that readings taken once serve any number of fits.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from si_jax import activation
from si_jax.detectors.base import Inputs, Plan, State, computed
from si_jax.detectors.fitting import Batches
from si_jax.detectors.options import Count, Range
from si_jax.detectors.si_c import fit as si_c_fit
from si_jax.detectors.si_c.readings import canonical_components, reader
from si_jax.detectors.si_c.score import ALL, FORMS, apply
from si_jax.model import Model
from si_jax.taps import Taps

FORWARD = ("energy", "zero-deflation")
LEAST = Range(f"[{si_c_fit.LEAST_IMAGES}, inf)")


def si_c(
    model: Model,
    *,
    components: str | Sequence[str] = ALL,
    form: Annotated[str, FORMS] = "hinge",
    shrinkage: Annotated[float, Range("(0, 1]")] | Literal["ledoit-wolf"] = 0.1,
    max_channels: Count = 4096,
    max_calibration: Annotated[int, LEAST] = 5000,
    taps: Taps = None,
    inner: Taps = None,
    seed: Annotated[int, Range("[0, inf)")] = 0,
) -> Plan:
    """S&I calibrated: the confidence, less a penalty for the abnormal (this library, after S&I).

    The network's confidence, less a penalty where its activations are abnormal. Of an image with
    logits `f` of C classes and `p = softmax(f)`:

    - energy: `logsumexp(f)`;
    - channel-average: `log(outer^2) - log(mean_c v_c^2)`, minus the logarithm of S&I-A's
      abnormality with its parts averaged apart. `v` is the absolute mean over the positions of the
      gradient of the features' sum at the inner taps. `outer^2` is the mean over the features c of
      `|sum_j (1 - C p_j) W_cj| / positions`, with W the head's weights: S&I-A's outer part, for a
      linear head behind an average over the positions;
    - zero-deflation: `-0.5 log(u' S^-1 u)`, where `u` are the densities of all channels of the
      taps, standardised, and `S = (1 - shrinkage) Cov(u) + shrinkage I`.

    Each is standardised: less its median, divided by (95 % - 5 % quantile) / 3.29. `form="sum"`
    adds them up. The default, `form="hinge"`, is

        0.75 z(confidence) + 0.25 z(energy) - 0.6 h^2,  h = max(0, (m - s) / e),

    where `z` standardises in the same way, confidence is the log-odds of the predicted class, `s`
    is the components' sum, `m` its median and `e` the mean of `m - s` where `s < m`. It is nearly
    as good as the sum on far OOD and nearly as good as the confidence on near OOD; it was chosen on
    CIFAR networks, others may differ. Means and covariance are fitted on 70 % of the training
    images, medians and quantiles on the rest, without labels; see `si_jax.detectors.si_c.fit`.

    The density is the share of the positions at which the input of the activation behind the tap is
    positive, of a ReLU as of GELU, SiLU and their like, also of those whose output the tap is;
    tokens count as positions (engine `activation`). At a tap that none of these follows, it is the
    share at which the gradient of the largest logit is not zero (engine `gradient`, or `mixed` if
    there are other taps too; one backward pass more). Where all gradients vanish, the logarithm is
    that of 1e-30.

    Args:
        components: any of `energy`, `channel-average`, `zero-deflation`, as a sequence or one
            string with commas.
        form: `hinge` (default) or `sum`; see `si_jax.detectors.si_c.score.FORMS`.
        shrinkage: share of the identity in the covariance, in (0, 1], or `"ledoit-wolf"`.
        max_channels: most channels whose densities are used, drawn from each tap in proportion to
            its channels, at least one each. The fit takes `48 * max_channels^2` bytes, 0.8 GB by
            default, and leaves a twelfth of that.
        max_calibration: most images that medians and quantiles are taken of.
        taps: taps of zero-deflation, see `si_jax.taps.select`; None for the network's own.
        inner: taps of channel-average; None for the network's own.
        seed: seed of the draws of channels and of images.
    """
    options = {"components": components, "taps": taps, "inner": inner}
    return _plan(model, options, form, shrinkage, max_channels, max_calibration, seed)


def si_c_forward(
    model: Model,
    *,
    components: str | Sequence[str] = FORWARD,
    form: Annotated[str, FORMS] = "hinge",
    shrinkage: Annotated[float, Range("(0, 1]")] | Literal["ledoit-wolf"] = 0.1,
    max_channels: Count = 4096,
    max_calibration: Annotated[int, LEAST] = 5000,
    taps: Taps = None,
    seed: Annotated[int, Range("[0, inf)")] = 0,
) -> Plan:
    """S&I-C without a gradient: energy and zero-deflation (this library, after S&I).

    One forward pass, and an activation behind every tap; see `si_c`.
    """
    components = canonical_components(components, FORWARD)
    options = {"components": components, "taps": taps, "inner": None}
    plan = _plan(model, options, form, shrinkage, max_channels, max_calibration, seed)
    missing = activation.without_activation(model, plan.settings.get("taps", ()))
    if missing:
        raise ValueError(
            "si-c-forward needs a ReLU, GELU, SiLU or their like behind every tap; there is none"
            f" behind {activation.listed(missing)}: name others by taps, or use si-c, which reads"
            " the gradient there"
        )
    return plan


def _plan(model, options, form, shrinkage, max_channels, max_calibration, seed) -> Plan:
    reading = reader(model, max_channels=max_channels, seed=seed, **options)
    fitting = {"shrinkage": shrinkage, "max_calibration": max_calibration, "seed": seed}

    def fit(batches: Batches) -> State:
        parts = (readings for readings, _ in computed(batches, reading.read))
        return si_c_fit.fit(parts, reading.channels, components=reading.components, **fitting)

    def compute(inputs: Inputs, state: State):
        return apply(state, reading.read(inputs), components=reading.components, form=form)

    settings: dict[str, Any] = {"components": list(reading.components)}
    if reading.channels:
        settings |= {"engine": reading.engine, "taps": list(reading.channels.taps)}
    if reading.inner:
        settings["inner"] = list(reading.inner)
    return Plan(compute, settings, shared_forward=False, fit=fit)
