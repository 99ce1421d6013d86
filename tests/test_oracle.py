"""Zero-deflation and channel-average on random networks, against `jax.grad` of a plain function.

Nothing here is shared with the engines: a network is a function whose tapped values can be
replaced, and every gradient is taken by `jax.grad` at the replaced value, step by step, tap by tap.

    python tests/test_oracle.py 300          # as many networks as one likes, from seed 0 on
"""

import functools
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from small_networks import CONSTANTS, Written

import si_jax

SIZE = 10
FORMS = ("function", "linen")
"""How random networks are given to the library, in turn."""

SETTINGS = ((1, "add"), (2, "add"), (3, "add"), (2, "multiply"), (3, "multiply"))
COMBINE = {"add": jnp.add, "multiply": jnp.multiply}
SEEDS = (0, 5, 12, 18)
ENGINES = ("auto", "activation", "gradient", "closed")
TAKEN: Counter = Counter()
"""(steps, combine, engine) -> on how many networks `auto` took that engine."""


class Draw:
    """A random network: `network(weights, images, mark)`, with `mark(name, value)` at each tap."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.weights: dict[str, np.ndarray] = {}
        self.steps, self.taps = [], []
        self.shape = (SIZE, SIZE, 3)
        self.convolution()
        for _ in range(self.pick(1, 2, 3)):
            self.block()
        self.end = self.pick(*ENDS)
        features = jax.eval_shape(self.end, jax.ShapeDtypeStruct((1, *self.shape), jnp.float32))
        self.weight("head", (features.shape[-1], 4))
        self.weight("bias", (4,))

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def chance(self, share):
        return self.rng.random() < share

    def weight(self, name, shape, *, pruned=False):
        value = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]) or 1)
        if pruned:
            value *= self.rng.random(shape) < 0.4
        self.weights[name] = value.astype(np.float32)
        return name

    def new_weight(self, shape, **options):
        return self.weight(f"w{len(self.weights)}", shape, **options)

    def add(self, step):
        """Append a step, a function of (weights, x, mark)."""
        x = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
        self.shape = jax.eval_shape(lambda x: step(self.weights, x, lambda _, x: x), x).shape[1:]
        self.steps.append(step)

    def mark(self):
        name = f"tap{len(self.taps)}"
        self.taps.append(name)
        self.add(lambda w, x, mark: mark(name, x))

    def block(self):
        kind = self.pick("plain", "plain", "plain", "residual A", "residual B", "se", "concat")
        if self.chance(0.3):
            self.mark()
        if kind == "plain":
            self.convolution()
            self.norm()
            self.mark()
        elif kind == "se":
            self.squeeze()
        else:
            self.branch(kind)
        self.activation()
        if self.chance(0.15):
            self.mark()
        for more in (self.pool, self.odd):
            if self.chance(0.35):
                more()

    def branch(self, kind):
        outer, self.steps, before = self.steps, [], self.shape
        if self.chance(0.3):  # the shortcut reads its input
            self.mark()
        if self.chance(0.5):  # as networks with norms first have it
            self.norm()
            self.activation()
        self.convolution(kernel=3, padding=((1, 1), (1, 1)), stride=1 if kind == "concat" else None)
        self.norm()
        self.mark()
        inner, self.steps, after = self.steps, outer, self.shape
        self.shape = before
        stride, more = -(-before[0] // after[0]), after[-1] - before[-1]
        projection = self.new_weight((1, 1, before[-1], after[-1]))

        def run(w, x, mark):
            y = x
            for step in inner:
                y = step(w, y, mark)
            if kind == "concat":
                return jnp.concatenate([x, y], axis=-1)
            x = x[:, ::stride, ::stride]
            if kind == "residual B":
                return y + convolve(x, w[projection])
            return y + jnp.pad(x, ((0, 0),) * 3 + ((0, max(more, 0)),))[..., : after[-1]]

        self.add(run)

    def squeeze(self):
        channels = self.shape[-1]
        down, up = self.new_weight((channels, 3)), self.new_weight((3, channels))
        gate = self.pick(jax.nn.sigmoid, jax.nn.hard_sigmoid)

        def run(w, x, mark):
            squeezed = jax.nn.relu(x.mean((1, 2)) @ w[down])
            return x * gate(2 * squeezed @ w[up])[:, None, None]

        self.add(run)

    def convolution(self, *, kernel=None, stride=None, padding=None):
        height, _, before = self.shape
        after = self.pick(4, 6, 8)
        kernel = kernel or self.pick(1, 2, 3)
        stride = stride or self.pick(1, 1, 2)
        dilation, groups = 1, 1
        if padding is None:
            padding = "SAME"
            if height > 5:
                padding, dilation = self.pick("SAME", "VALID", ((1, 0), (0, 1))), self.pick(1, 1, 2)
            if self.chance(0.3):
                groups = self.pick(before, 2 if before % 2 == 0 else 1)
                after = before * self.pick(1, 1, 2)
        shape = (kernel, kernel, before // groups, after)
        name, bias = self.new_weight(shape, pruned=self.chance(0.1)), self.new_weight((after,))
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        self.add(lambda w, x, mark: convolve(x, w[name], **options) + 0.3 * w[bias])

    def norm(self):
        kind, channels = self.pick("batch", "batch", "batch", "group", "layer"), self.shape[-1]
        scale = self.new_weight((channels,), pruned=self.chance(0.1))
        shift = self.new_weight((channels,))

        def run(w, x, mark):
            if kind == "group":
                groups = 2 if channels % 2 == 0 else 1
                y = x.reshape(*x.shape[:-1], groups, -1)
                mean, var = y.mean((1, 2, 4), keepdims=True), y.var((1, 2, 4), keepdims=True)
                x = ((y - mean) * lax.rsqrt(var + 1e-5)).reshape(x.shape)
            if kind == "layer":
                x = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
            return x * w[scale] * 2 + w[shift]

        self.add(run)

    def activation(self):
        name = self.pick(*ACTIVATIONS, *["relu"] * 5)
        odd = self.shape[-1] % 2 == 1  # of which maxout makes no pairs
        function = ACTIVATIONS["relu" if name == "maxout" and odd else name]
        self.add(lambda w, x, mark: function(x))

    def pool(self):
        if min(self.shape[:2]) < 4:
            return
        function, window, stride, padding = self.pick(
            (nn.max_pool, 2, 2, "VALID"), (nn.max_pool, 3, 2, "SAME"), (nn.max_pool, 3, 1, "VALID"),
            (nn.avg_pool, 2, 2, "VALID"), (nn.avg_pool, 3, 3, "VALID"),
        )  # fmt: skip
        self.add(lambda w, x, mark: function(x, (window,) * 2, (stride,) * 2, padding))

    def odd(self):
        kind = self.pick("crop", "stride", "mask", "top", "sort", "roll", "scale")
        if kind in ("crop", "stride") and min(self.shape[:2]) <= 5:
            return
        kept = 1.0
        if kind == "mask":
            kept = (self.rng.random((*self.shape[:2], 1)) < 0.7).astype(np.float32)
        function = {
            "crop": lambda x: x[:, 1:-1, 1:-1],
            "stride": lambda x: x[:, ::2, ::2],
            "mask": lambda x: x * kept,
            "top": lambda x: jnp.where(x > lax.top_k(x, 3)[0][..., 1:].mean(-1)[..., None], x, 0),
            "sort": lambda x: jnp.sort(x, axis=1),
            "roll": lambda x: jnp.roll(x, 1, axis=2),
            "scale": lambda x: x * 1.5,
        }[kind]
        self.add(lambda w, x, mark: function(x))

    def network(self, w, x, mark):
        for step in self.steps:
            x = step(w, x, mark)
        features = mark("head", self.end(x))
        return features @ w["head"] + w["bias"]


def convolve(x, kernel, *, stride=1, padding="VALID", dilation=1, groups=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def attended(x):
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    weights = jax.nn.softmax(tokens @ jnp.cos(jnp.arange(x.shape[-1], dtype=jnp.float32)))
    return jnp.einsum("bt,btc->bc", weights, tokens)


ENDS = (
    lambda x: x.mean((1, 2)),
    lambda x: x.mean((1, 2)),
    lambda x: x.max((1, 2)),
    lambda x: x.reshape(x.shape[0], -1),
    attended,
)

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "relu6": lambda x: jax.nn.relu6(4 * x),
    "capped": lambda x: jnp.minimum(jax.nn.relu(x), 0.7),
    "clip": lambda x: jnp.clip(x, -0.5, 0.8),
    "leaky": jax.nn.leaky_relu,
    "hard swish": lambda x: jax.nn.hard_swish(3 * x),
    "gelu": jax.nn.gelu,
    "maxout": lambda x: jnp.maximum(x[..., ::2], x[..., 1::2]),
    "crelu": lambda x: jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1),
}


class Linen(nn.Module):
    """A draw as a Linen module, in which a tap is a sub-module that returns its input."""

    draw: Draw

    @nn.compact
    def __call__(self, x):
        shapes = {k: v for k, v in self.draw.weights.items() if k not in ("head", "bias")}
        w = {k: self.param(k, lambda key, v=v: jnp.asarray(v)) for k, v in shapes.items()}
        for step in self.draw.steps:
            x = step(w, x, lambda name, x: Written(lambda x: x, name=name)(x))
        return nn.Dense(4, name="head")(self.draw.end(x))


def model_of(draw: Draw, form: str):
    params = {k: v for k, v in draw.weights.items() if k not in ("head", "bias")}
    params["head"] = {"kernel": draw.weights["head"], "bias": draw.weights["bias"]}

    def network(variables, x):
        head = variables["params"]["head"]
        weights = {**variables["params"], "head": head["kernel"], "bias": head["bias"]}
        return draw.network(weights, x, lambda name, x: si_jax.tap(x, name))

    made = network if form == "function" else Linen(draw)
    return si_jax.Model(made, {"params": params}, SIZE, head="head", **CONSTANTS)


def gradients(draw, images, tap, alpha):
    """Target -> its gradients at a tap at each of three steps, by `jax.grad`."""

    def outputs(z):
        seen = {}

        def mark(name, value):
            seen[name] = value if z is None or name != tap else z
            return seen[name]

        return draw.network(draw.weights, images, mark), seen

    logits, seen = outputs(None)
    label, rows = jnp.argmax(logits, axis=-1), jnp.arange(len(images))
    columns = draw.weights["head"].sum(axis=-1)
    selected = np.isin(np.arange(len(columns)), np.argsort(-columns)[: int(0.9 * len(columns))])
    targets = {
        "largest": lambda logits, h: logits.max(axis=-1),
        "features": lambda logits, h: h.sum(axis=-1),
        "selected": lambda logits, h: (h * selected).sum(axis=-1),
        "log-softmax": lambda logits, h: jax.nn.log_softmax(logits).sum(axis=-1),
        "loss": lambda logits, h: -jax.nn.log_softmax(logits)[rows, label],
    }

    def total(z, target):
        logits, seen = outputs(z)
        return target(logits, seen["head"]).sum()

    @jax.jit
    def step(z):
        return {name: jax.grad(total)(z, target) for name, target in targets.items()}

    z, found = seen[tap], []
    for _ in range(3):
        found.append(step(z))
        z = z + np.float32(alpha) * jnp.sign(found[-1]["loss"])
    return {name: [np.asarray(g[name]) for g in found] for name in targets}


def densities(draw, by_tap):
    """(steps, combine) -> (images, taps) at how many positions integrated gradients are not 0."""
    found = {}
    for steps, combine in SETTINGS:
        totals = [
            functools.reduce(COMBINE[combine], by_tap[t]["largest"][:steps]) for t in draw.taps
        ]
        counts = [np.sum(a != 0, axis=tuple(range(1, a.ndim))) for a in totals]
        found[steps, combine] = np.stack(counts, axis=-1)
    return found


def channel_average(draw, by_tap, steps, combine):
    """Scores of si-a, or with one step of gaia-a, as the paper defines them."""

    def average(tap, target):
        total = functools.reduce(COMBINE[combine], by_tap[tap][target][:steps])
        return np.abs(np.mean(total, axis=tuple(range(1, total.ndim - 1))))

    outer = np.sqrt(np.mean(average("head", "log-softmax"), axis=-1, keepdims=True))
    target = "features" if steps == 1 else "selected"
    inner = [average(tap, target) / outer for tap in draw.taps]
    return -np.mean(np.concatenate(inner, axis=-1) ** 2, axis=-1)


def compare(seed: int, form: str, *, engines=("auto",), count: int = 4) -> list[str]:
    """What is wrong on one random network, by the engine that `auto` takes, and by others."""
    draw = Draw(seed)
    if not draw.taps:
        return []
    images = np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    model = model_of(draw, form)
    alpha = [0.001, 1 / 255, 0.1, 1.0][seed % 4]
    with jax.default_matmul_precision("highest"):
        x = jax.jit(model.normalise)(images)
        # an image in which the last bit decides says nothing: two more of each, nearly the same
        noise = np.random.default_rng(seed).choice([-1e-6, 1e-6], (2, *x.shape))
        three = jnp.concatenate([x, *(x * np.float32(1 + e) for e in noise)])
        by_tap = {tap: gradients(draw, three, tap, alpha) for tap in (*draw.taps, "head")}
    sizes = {call.path: np.prod(call.shape) for call in model.calls}
    sizes = np.array([sizes[tap] for tap in draw.taps])
    faults = []

    def detector(letter, steps, combine, **options):
        if steps > 1:
            options |= {"steps": steps, "combine": combine, "step_size": alpha}
        name = f"{'gaia' if steps == 1 else 'si'}-{letter}"
        return si_jax.make_detector(name, model, taps=draw.taps, **options)

    def fault(*what):
        faults.append(f"seed {seed}, {form}, steps of {alpha:.3g}: {what}")

    for (steps, combine), counts in densities(draw, by_tap).items():
        if steps == 3 and alpha == 1:  # the last bit decides nearly everywhere
            continue
        right, *nearly = np.split(counts, 3)
        sure = np.all([(n == right).all(-1) for n in nearly], axis=0)
        asked = None
        for engine in engines:
            try:
                found = detector("z", steps, combine, engine=engine)
            except ValueError as error:
                if "no ReLU lies behind" in str(error):
                    return faults
                if engine == "auto" or "does not serve" not in str(error):
                    raise
                continue
            if engine == "auto":
                asked = found.settings["engine"]
                TAKEN[steps, combine, asked] += 1
            elif engine == asked:
                continue
            got = found.details(images, progress=False)["tap_density"] * sizes
            if np.abs(got - right)[sure].max(initial=0) > 0.5:
                off = np.abs(got - right)[sure].max(0)
                fault(found.name, steps, combine, found.settings["engine"], off, sizes)
    for steps, combine in SETTINGS[:2] + SETTINGS[3:4]:
        found = detector("a", steps, combine, outer="(features)")
        got = found.score(images, progress=False)
        right, *nearly = np.split(channel_average(draw, by_tap, steps, combine), 3)
        near = np.ptp([right, *nearly], axis=0)  # by how much the last bit moves it
        if not (np.abs(got - right) <= 2e-3 * np.abs(right) + 10 * near).all():
            fault(found.name, steps, combine, got, right)
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_scores_of_random_networks_are_those_of_the_definition(seed):
    assert not compare(seed, FORMS[seed % 2])


if __name__ == "__main__":
    bad = 0
    first, last = (int(n) for n in (*sys.argv[1:], "0", "40")[:2])
    for seed in range(first, last):
        for fault in compare(seed, FORMS[seed % 2], engines=ENGINES):
            print(fault, flush=True)
            bad += 1
    print(f"{last - first} networks, {bad} faults; engines taken: {dict(TAKEN)}")
