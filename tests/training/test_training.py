"""Training: it learns, it resumes to the bit, its options do what they say, mistakes are named."""

import contextlib
import csv
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_states import assert_same
from flax import linen as nn

import si_jax
from si_jax.training import training
from si_jax.training.training import augment
from si_jax.weights.checkpoint import abstract_variables, make_module

RECIPE = training.Recipe(epochs=4, batch_size=16, learning_rate=0.05, crop_padding=1)

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
NANS = functools.partial(jax.debug_nans, True)
pytestmark = pytest.mark.usefixtures("quick_to_compile")


class Small(nn.Module):
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype, name="bn")(x)
        return nn.Dense(3, dtype=self.dtype)(nn.relu(x).mean((1, 2)))


@pytest.fixture(scope="module")
def small():
    variables = Small().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return si_jax.Model(Small(), variables, 8, (0.5,) * 3, (0.2,) * 3)


@pytest.fixture(scope="module")
def coloured():
    """Images of noise whose brightest channel is their class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 64)
    images = rng.integers(0, 120, (64, 8, 8, 3))
    images[np.arange(64), :, :, labels] += 100
    return images.astype(np.uint8), labels


def interrupt(monkeypatch, after):
    """Make the next run stop once its loss has been looked at so often."""
    check, steps = training._check_loss, []

    def stop(*args):
        steps.append(args)
        if len(steps) > after:
            raise KeyboardInterrupt
        return check(*args)

    monkeypatch.setattr(training, "_check_loss", stop)


def test_it_learns(small, coloured):
    trained = training.train(small, *coloured, dataclasses.replace(RECIPE, epochs=30))
    assert training.accuracy(trained, *coloured) > 0.9 > training.accuracy(small, *coloured)


def test_an_interrupted_run_resumes_to_the_bit(small, coloured, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, ema=0.9, label_smoothing=0.1)
    held_out = (coloured[0][:10], coloured[1][:10])
    monkeypatch.setattr(training, "EVALUATION_BATCH", 6)
    whole = training.train(small, *coloured, recipe, held_out=held_out)
    directory = tmp_path / "run"
    monkeypatch.setattr(training, "REFRESH", 1)  # so that it is interrupted within an epoch
    with monkeypatch.context() as patch:
        interrupt(patch, after=2 * 5 + 2)  # two epochs of four steps and an evaluation, two steps
        with pytest.raises(KeyboardInterrupt):
            training.train(small, *coloured, recipe, held_out=held_out, directory=directory)
    assert len((directory / "log.csv").read_text().splitlines()) == 3
    resumed = training.train(small, *coloured, recipe, held_out=held_out, directory=directory)
    assert_same(whole, resumed)
    with (directory / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    logits = np.asarray(jax.nn.log_softmax(resumed.logits(held_out[0])))
    right = logits.argmax(-1) == held_out[1]
    assert float(rows[-1]["held_out_accuracy"]) == pytest.approx(right.mean())
    loss = -np.mean(logits[np.arange(10), held_out[1]])
    assert float(rows[-1]["held_out_loss"]) == pytest.approx(loss, rel=1e-4)
    # and once it is finished, there is nothing left to do
    again = training.train(small, *coloured, recipe, held_out=held_out, directory=directory)
    assert_same(resumed, again)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_epoch(
    small, coloured, tmp_path, monkeypatch
):
    directory = tmp_path / "run"
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, warmup=0.6)
    schedule = optax.join_schedules([optax.constant_schedule(0.01), lambda _: 1e38], [5])
    monkeypatch.setattr(optax, "warmup_cosine_decay_schedule", lambda *_: schedule)
    with pytest.raises(ValueError, match=r"loss became.*epoch 2: lower.*after epoch 1 are kept"):
        training.train(small, *coloured, recipe, directory=directory)
    run = training.Run(directory, small, recipe, coloured[0], coloured[1].astype(np.int32))
    optimiser = training._optimiser(recipe, 16)
    state = run.restore(training._initial_state(small, optimiser, recipe))
    assert len(run.log) == 1 and state["step"] == 4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.usefixtures("strict_promotion")
@pytest.mark.parametrize("modes", [[jax.checking_leaks, NANS], [jax.disable_jit]])
def test_it_trains_under_jaxs_strict_modes(modes, small, coloured):
    recipe = dataclasses.replace(RECIPE, epochs=1, batch_size=4, ema=0.5, label_smoothing=0.1)
    images, labels = coloured[0][:4], coloured[1][:4]
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode())
        trained = training.train(small, images, labels, recipe, held_out=(images, labels))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(trained.variables))


def test_devices_share_a_batch(small, coloured, one_device, monkeypatch):
    recipe = dataclasses.replace(RECIPE, epochs=1)
    alone = training.train(small, *coloured, recipe)
    monkeypatch.undo()
    assert len(jax.local_devices()) == 2
    together = training.train(small, *coloured, recipe)
    jax.tree.map(assert_close, alone.variables, together.variables)
    _, split = training._placements(15)  # as many devices as divide the batch
    assert split.mesh.size == 1


def test_only_kernels_decay():
    recipe = training.Recipe(epochs=1, learning_rate=1.0, weight_decay=0.5, momentum=0.0)
    optimiser = training._optimiser(recipe, steps=10)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2), "bias": jnp.ones(2)}
    state, zero = optimiser.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):  # the first step of the warm-up has a learning rate of zero
        changes, state = optimiser.update(zero, state, params)
        params = optax.apply_updates(params, changes)
    assert (params["kernel"] < 1).all()
    assert (params["scale"] == 1).all() and (params["bias"] == 1).all()


def one_step(model, recipe, images, labels):
    optimiser = training._optimiser(recipe, 100)
    state = training._initial_state(model, optimiser, recipe)
    state["step"] = np.int32(7)
    batch = np.arange(recipe.batch_size, dtype=np.int32)
    step = jax.jit(functools.partial(training._step, model, optimiser, recipe))
    return state, *step(state, np.zeros(2, np.float32), images, labels.astype(np.int32), batch)


def test_a_step_s_loss_and_average(small, coloured):
    recipe = dataclasses.replace(RECIPE, crop_padding=0, flip=False, label_smoothing=0.2, ema=0.75)
    images, labels = coloured
    before, after, totals = one_step(small, recipe, images, labels)
    logits, updates = small.module.apply(
        small.variables, small.normalise(jnp.asarray(images[:16])), train=True,
        mutable=["batch_stats"],
    )  # fmt: skip
    log_p = np.asarray(jax.nn.log_softmax(logits))
    targets = 0.8 * np.eye(3)[labels[:16]] + 0.2 / 3
    assert float(totals[0]) == pytest.approx(-np.mean(np.sum(targets * log_p, -1)), rel=1e-5)
    assert float(totals[1]) == np.sum(np.argmax(log_p, -1) == labels[:16])
    decay = min(0.75, 8 / 17)
    mean = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new, before["variables"], after["variables"]
    )
    jax.tree.map(functools.partial(assert_close, rtol=1e-5, atol=1e-7), after["average"], mean)
    found, expected = after["variables"]["batch_stats"], updates["batch_stats"]
    assert_close(found["bn"]["mean"], expected["bn"]["mean"])


def test_a_step_in_bfloat16_keeps_float32_weights(small, coloured):
    images, labels = coloured
    _, exact, _ = one_step(small, RECIPE, images, labels)
    _, rough, _ = one_step(small, dataclasses.replace(RECIPE, bfloat16=True), images, labels)
    for x, y in zip(jax.tree.leaves(exact), jax.tree.leaves(rough), strict=True):
        assert x.dtype == y.dtype
    momenta = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(state["optimiser"])])
        for state in (exact, rough)
    ]  # after one step, they are the gradients
    difference = np.linalg.norm(momenta[0] - momenta[1]) / np.linalg.norm(momenta[0])
    assert 1e-4 < difference < 0.3


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet8", {}), ("wrn_16_4", {"depth": 10}), ("bit_r50x1", {"units": (1, 1, 1, 1)})],
)
def test_every_network_computes_in_bfloat16(name, options):
    module = make_module(name, 10, options)
    variables = abstract_variables(module, (32, 32))
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    for dtype in (jnp.float32, jnp.bfloat16):
        apply = functools.partial(module.clone(dtype=dtype).apply, train=True)
        logits, _ = jax.eval_shape(
            functools.partial(apply, mutable=["batch_stats"]), variables, image
        )
        assert logits.dtype == dtype


def test_augmentation_crops_and_mirrors():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3) + 1
    same = augment(jnp.asarray(images), jax.random.key(0), 0, flip=False)
    np.testing.assert_array_equal(same, images)
    many = images.repeat(20, axis=0)
    flipped = augment(jnp.asarray(many), jax.random.key(0), 0, flip=True)
    mirrored = [np.array_equal(new, old[:, ::-1]) for new, old in zip(flipped, many, strict=True)]
    assert 5 < sum(mirrored) < 35
    cropped = np.asarray(augment(jnp.asarray(images), jax.random.key(1), 2, flip=False))
    assert cropped.shape == images.shape and set(np.unique(cropped)) <= {0, *np.unique(images)}


@pytest.mark.parametrize(
    ("labels", "recipe", "message"),
    [
        (np.full(64, 3), {}, "below 3"),
        (np.full(64, -1), {}, "below 3"),
        (np.zeros(63, int), {}, "one class index"),
        (np.zeros(64, int), {"batch_size": 65}, "batch_size"),
        (np.zeros(64, int), {"batch_size": 0}, r"batch_size \(=0\) must be at least 1"),
        (np.zeros(64, int), {"ema": 1.0}, r"ema \(=1.0\) must be in \[0, 1\)"),
        (np.zeros(64, int), {"learning_rate": 0.0}, "learning_rate .* must be positive"),
        (np.zeros(64, int), {"weight_decay": -1.0}, "weight_decay .* must not be negative"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes(small, coloured, labels, recipe, message):
    with pytest.raises(ValueError, match=message):
        training.train(small, coloured[0], labels, dataclasses.replace(RECIPE, **recipe))


def test_a_directory_that_holds_something_else(small, coloured, tmp_path):
    one = dataclasses.replace(RECIPE, epochs=1)
    directory = tmp_path / "run"
    training.train(small, *coloured, one, directory=directory)
    other = dataclasses.replace(one, learning_rate=0.01)
    with pytest.raises(ValueError, match=r"another run, which differs in learning_rate: choose"):
        training.train(small, *coloured, other, directory=directory)
    with pytest.raises(ValueError, match=r"another run, which differs in images: choose"):
        training.train(small, coloured[0][::-1], coloured[1], one, directory=directory)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("mine")
    with pytest.raises(ValueError, match="no training run"):
        training.train(small, *coloured, one, directory=tmp_path / "notes")
    assert [p.name for p in (directory / "state").iterdir()] == ["000001"]
    for file in (directory / "state").rglob("*"):
        content = file.read_bytes() if file.is_file() else None
        if content is not None:
            file.write_bytes(b"")
            with pytest.raises(ValueError, match=r"cannot be resumed .*: remove it to begin again"):
                training.train(small, *coloured, one, directory=directory)
            file.write_bytes(content)


def test_a_run_killed_before_its_first_epoch_can_begin_again(small, coloured, tmp_path):
    directory = tmp_path / "run"
    (directory / "state" / ".000001.abc").mkdir(parents=True)
    (directory / ".log.csv.abc").write_text("{")
    training.train(small, *coloured, dataclasses.replace(RECIPE, epochs=1), directory=directory)
    assert len((directory / "log.csv").read_text().splitlines()) == 2
