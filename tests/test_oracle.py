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

import si_jax

SIZE = 10
FORMS = ("function", "linen")
"""How a random network is given to the library."""

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
        if kind in ("crop", "stride"):
            if min(self.shape[:2]) > 5:
                cut = slice(1, -1) if kind == "crop" else slice(None, None, 2)
                self.add(lambda w, x, mark: x[:, cut, cut])
        elif kind == "mask":
            kept = (self.rng.random((*self.shape[:2], 1)) < 0.7).astype(np.float32)
            self.add(lambda w, x, mark: x * kept)
        elif kind == "top":
            self.add(
                lambda w, x, mark: jnp.where(
                    x > lax.top_k(x, 3)[0][..., 1:].mean(-1, keepdims=True), x, 0
                )
            )
        elif kind == "sort":
            self.add(lambda w, x, mark: jnp.sort(x, axis=1))
        elif kind == "roll":
            self.add(lambda w, x, mark: jnp.roll(x, 1, axis=2))
        else:
            self.add(lambda w, x, mark: x * 1.5)

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


def flattened(x):
    return x.reshape(x.shape[0], -1)


def attended(x):
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    weights = jax.nn.softmax(tokens @ jnp.cos(jnp.arange(x.shape[-1], dtype=jnp.float32)))
    return jnp.einsum("bt,btc->bc", weights, tokens)


ENDS = (
    lambda x: x.mean((1, 2)),
    lambda x: x.mean((1, 2)),
    lambda x: x.max((1, 2)),
    flattened,
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


class Written:
    """In PyTorch, and written out as a `Draw` is: a max-pool and a stride behind ReLUs."""

    taps = ("first", "second")

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        shapes = {"first": (3, 3, 3, 6), "second": (3, 3, 6, 8), "head": (8, 4), "bias": (4,)}
        self.weights = {
            name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
            for name, shape in shapes.items()
        }

    def network(self, w, x, mark):
        x = jax.nn.relu(mark("first", convolve(x, w["first"], padding="SAME")))
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = convolve(x, w["second"], stride=2, padding=((1, 1), (1, 1)))
        x = jax.nn.relu(mark("second", x)).mean((1, 2))
        return mark("head", x) @ w["head"] + w["bias"]

    def module(self):
        torch = pytest.importorskip("torch")
        pytest.importorskip("torchax")
        layers = torch.nn.Sequential()
        layers.first = torch.nn.Conv2d(3, 6, 3, padding=1, bias=False)
        layers.relu1, layers.pool = torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(3, 2)
        layers.second = torch.nn.Conv2d(6, 8, 3, 2, padding=1, bias=False)
        layers.relu2, layers.mean = torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
        layers.flat, layers.head = torch.nn.Flatten(), torch.nn.Linear(8, 4)
        names = {"first": "first.weight", "second": "second.weight", "head": "head.weight"}
        state = {name: self.weights[k].T for k, name in names.items()}
        state = {k: x.swapaxes(-1, -2) if x.ndim == 4 else x for k, x in state.items()}
        state["head.bias"] = self.weights["bias"]
        layers.load_state_dict({k: torch.from_numpy(x.copy()) for k, x in state.items()})
        return layers


class Mark(nn.Module):
    """Its input, as a sub-module's output."""

    @nn.compact
    def __call__(self, x):
        return x


class Linen(nn.Module):
    """A draw as a Linen module."""

    draw: Draw

    @nn.compact
    def __call__(self, x):
        shapes = {k: v for k, v in self.draw.weights.items() if k not in ("head", "bias")}
        w = {k: self.param(k, lambda key, v=v: jnp.asarray(v)) for k, v in shapes.items()}
        for step in self.draw.steps:
            x = step(w, x, lambda name, x: Mark(name=name)(x))
        return nn.Dense(4, name="head")(self.draw.end(x))


def model_of(draw: Draw | Written, form: str):
    options = {"input_size": SIZE, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    w = draw.weights
    if form == "torch":
        return si_jax.Model(draw.module(), **options)
    if form == "function":

        def network(variables, x):
            weights = {**variables["rest"], "head": variables["head"]["kernel"], "bias": 0}
            logits = draw.network(weights, x, lambda name, x: si_jax.tap(x, name))
            return logits + variables["head"]["bias"]

        rest = {k: v for k, v in w.items() if k not in ("head", "bias")}
        variables = {"rest": rest, "head": {"kernel": w["head"], "bias": w["bias"]}}
        return si_jax.Model(network, variables, head="head", **options)
    params = {k: v for k, v in w.items() if k not in ("head", "bias")}
    params["head"] = {"kernel": w["head"], "bias": w["bias"]}
    return si_jax.Model(Linen(draw), {"params": params}, head="head", **options)


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
    draw = Written(seed) if form == "torch" else Draw(seed)
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
    positions = {key: np.split(n, 3) for key, n in densities(draw, by_tap).items()}
    sizes = {call.path: np.prod(call.shape) for call in model.calls}
    sizes = np.array([sizes[tap] for tap in draw.taps])
    faults = []
    for steps, combine in SETTINGS:
        if steps == 3 and alpha == 1:  # the last bit decides nearly everywhere
            continue
        right, *nearly = positions[steps, combine]
        sure = np.all([(n == right).all(-1) for n in nearly], axis=0)
        name = "gaia-z" if steps == 1 else "si-z"
        options = {"steps": steps, "combine": combine, "step_size": alpha} if steps > 1 else {}
        for engine in engines:
            options |= {"taps": draw.taps, "engine": engine}
            try:
                detector = si_jax.make_detector(name, model, **options)
            except ValueError as error:
                if "no ReLU lies behind" in str(error):
                    return faults
                if engine == "auto" or "does not serve" not in str(error):
                    raise
                continue
            if engine == "auto":
                TAKEN[steps, combine, detector.settings["engine"]] += 1
            elif engine == asked:
                continue
            asked = detector.settings["engine"]
            got = detector.details(images, progress=False)["tap_density"] * sizes
            if np.abs(got - right)[sure].max(initial=0) > 0.5:
                faults.append(
                    f"seed {seed}, {form}, {name} with {steps} steps of {alpha:.3g}, {combine}, by"
                    f" {asked}: {np.abs(got - right)[sure].max(0)} of {sizes} positions"
                )
    for steps, combine in SETTINGS[:2] + SETTINGS[3:4]:
        name = "gaia-a" if steps == 1 else "si-a"
        options = {"steps": steps, "combine": combine, "step_size": alpha} if steps > 1 else {}
        detector = si_jax.make_detector(name, model, taps=draw.taps, outer="(features)", **options)
        got, right = (
            detector.score(images, progress=False),
            channel_average(draw, by_tap, steps, combine),
        )
        near = np.ptp(np.reshape(right, (3, -1)), axis=0)  # by how much the last bit moves it
        right = right[: len(got)]
        if not (np.abs(got - right) <= 2e-3 * np.abs(right) + 10 * near).all():
            faults.append(
                f"seed {seed}, {form}, {name} with {steps} steps, {combine}: {got}, {right}"
            )
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_scores_of_random_networks_are_those_of_the_definition(seed):
    assert not compare(seed, FORMS[seed % 2])


@pytest.mark.slow
def test_scores_of_a_pytorch_network_are_those_of_the_definition():
    assert not compare(2, "torch", engines=("auto", "general"))


if __name__ == "__main__":
    bad = 0
    first, last = (int(n) for n in (*sys.argv[1:], "0", "40")[:2])
    for seed in range(first, last):
        for fault in compare(seed, FORMS[seed % 2], engines=ENGINES):
            print(fault, flush=True)
            bad += 1
    print(f"{last - first} networks, {bad} faults; engines taken: {dict(TAKEN)}")
