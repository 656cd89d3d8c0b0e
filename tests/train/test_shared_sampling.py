"""Sampling "shared": all heads see the same rows, and each learns from those in its own slice."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads_under_test import NUM_ROWS, Classifier, PlainClassifier, data_of, differing, rows_of, run, state_of

import hydrax as hx
from hydrax.datamodules import ArrayDataModule
from hydrax.engine.engine import Engine
from hydrax.slices.rotation import index_batch

STEPS, BATCH, SEED, MOMENTUM = 50, 8, 5, 0.9
LENGTHS, IDS, RATES = np.array([2, 40, 23, 5, 33, 11]), np.array([7, 0, 3, 11, 2, 5]), np.geomspace(0.03, 0.3, 6)
HEADS = len(LENGTHS)
SLICES = hx.Slices.random_subset(LENGTHS, NUM_ROWS, seed=3).with_ids(IDS)
# Membership by hand: the rows of each head, marked.
MEMBERS = np.stack([np.isin(np.arange(NUM_ROWS), SLICES.rows(head)) for head in range(HEADS)])
ROWS = rows_of()
# What each batch meets, [batches, B], and whose it is, [batches, H, B].
MET = np.stack([index_batch(SLICES, t, batch_size=BATCH, seed=SEED, shared=True)[0] for t in range(3 * STEPS)])
LIVE = MEMBERS[:, MET].swapaxes(0, 1)


class Noting(PlainClassifier):
    """Notes in its state the rows and the mask of its last step, and how often it met each row."""

    def configure_model(self, key):
        last = {"rows": jnp.zeros(BATCH, jnp.int32), "mask": jnp.zeros(BATCH, bool)}
        return super().configure_model(key) | {"met": jnp.zeros(NUM_ROWS, jnp.int32), "last": last}

    def configure_optimizers(self):
        return optax.sgd(self.hparams.lr, momentum=MOMENTUM)

    def training_step(self, model, batch, ctx):
        logits = self.logits(model, batch["x"])
        self.log("accuracy", logits.argmax(-1) == batch["y"], on_step=True, on_epoch=True)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        met = model["met"].at[ctx.rows].add(ctx.mask.astype(jnp.int32))
        return {"loss": loss, "model": model | {"met": met, "last": {"rows": ctx.rows, "mask": ctx.mask}}}


class States(hx.Callback):
    """The heads after every step."""

    def __init__(self):
        self.states = []

    def next_due(self, step):
        return step + 1

    def on_train_steps_end(self, event):
        self.states.append(state_of(event.trainer))


def fit(who=slice(None), callbacks=(), ckpt_path=None, slices=SLICES, rates=RATES, val=None, **how):
    data = data_of(slices[who], val=val, batch_size=BATCH)
    settings = {"max_steps": STEPS, "seed": SEED, "sampling": "shared", **how}
    return run(Noting("mlp", hx.PerHead(np.asarray(rates)[who])), data, ckpt_path, callbacks, **settings)


@functools.cache
def together():
    return fit()


@pytest.fixture(scope="module")
def states():
    """Every array after each of the first ten steps, two epochs of five batches."""
    watch = States()
    fit(callbacks=[watch], max_steps=10)
    return {name: np.stack([state[name] for state in watch.states]) for name in watch.states[0]}


# ---- which rows, and whose


def test_all_heads_meet_the_same_rows_and_learn_from_their_own(states):
    # A head without a live slot keeps what it noted before.
    busy = LIVE[:10].any(axis=2)
    np.testing.assert_array_equal(
        states["state.last.rows"][busy], np.broadcast_to(MET[:10, None], LIVE[:10].shape)[busy]
    )
    np.testing.assert_array_equal(states["state.last.mask"][busy], LIVE[:10][busy])


@pytest.mark.parametrize("epoch", [1, 2])
def test_each_head_meets_each_row_of_its_own_once_in_a_pass_over_the_dataset(states, epoch):
    np.testing.assert_array_equal(states["state.met"][5 * epoch - 1], epoch * MEMBERS)


def test_a_head_without_a_live_slot_keeps_every_bit(states):
    idle = np.argwhere(~LIVE[:10].any(axis=2))  # pairs of a step and a head
    inside = idle[idle[:, 0] % 5 != 0]  # where an epoch begins, the accumulators of all heads are emptied
    after = {name: array[inside[:, 0], inside[:, 1]] for name, array in states.items()}
    before = {name: array[inside[:, 0] - 1, inside[:, 1]] for name, array in states.items()}
    assert len(inside) >= 5
    assert {"trainable.kernel", "opt_state.0.trace.kernel", "epoch.accuracy.weight", "live"} <= {*states}
    assert differing(after, before) == []


def test_a_head_with_a_live_slot_moves(states):
    moved = np.diff(states["trainable.kernel"], axis=0).any(axis=(2, 3))
    np.testing.assert_array_equal(moved, LIVE[1:10].any(axis=2))


# ---- what is learnt and told


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def fresh_kernel(head):
    """What `configure_model` gives for the documented key: that of the run, folded with the id and with 2**32 - 1."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), IDS[head]), np.uint32(2**32 - 1))
    return 0.1 * np.asarray(jax.random.uniform(key, (6, 3)), np.float64)


def train_alone(head, windows):
    """One linear model in NumPy, by stochastic gradient descent with momentum; a window without a live row is skipped.

    Each of the windows lists the batches of one update, of which it takes the mean gradient. Losses of skipped steps
    are those of the step before, NaN at first.
    """
    weights = {"kernel": fresh_kernel(head), "bias": np.zeros(3)}
    trace = {name: np.zeros_like(value) for name, value in weights.items()}
    losses = []
    for window in windows:
        live = [MET[batch][LIVE[batch, head]] for batch in window]
        found = [loss_and_gradient(weights, rows) for rows in live if rows.size]
        losses.append(np.mean([loss for loss, _ in found]) if found else losses[-1] if losses else np.nan)
        for name in weights if found else ():
            trace[name] = np.mean([gradient[name] for _, gradient in found], axis=0) + MOMENTUM * trace[name]
            weights[name] = weights[name] - RATES[head] * trace[name]
    return weights, np.array(losses)


def loss_and_gradient(weights, rows):
    x, y = ROWS["x"][rows].astype(np.float64), np.eye(3)[ROWS["y"][rows]]
    found = softmax(x @ weights["kernel"] + weights["bias"])
    errors = (found - y) / len(rows)
    return -np.log((found * y).sum(axis=1)).mean(), {"kernel": x.T @ errors, "bias": errors.sum(axis=0)}


# The dataset has 40 rows, hence 5 batches an epoch: windows of three batches end in one of two.
IN_THREES = [
    w for epoch in range(STEPS // 2) for w in (range(5 * epoch, 5 * epoch + 3), [5 * epoch + 3, 5 * epoch + 4])
]
WINDOWS = {1: [[step] for step in range(STEPS)], 3: IN_THREES}


@functools.cache
def accumulated(windows):
    return together() if windows == 1 else fit(accumulate_grad_batches=windows)


@pytest.mark.parametrize("accumulate", WINDOWS)
@pytest.mark.parametrize("head", range(HEADS))
def test_a_head_is_what_a_numpy_loop_over_its_live_rows_gives(head, accumulate):
    arrays = accumulated(accumulate).arrays
    expected, losses = train_alone(head, WINDOWS[accumulate])
    for_kernel, for_bias = (arrays[f"trainable.{name}"][head] for name in ("kernel", "bias"))
    # An entry near zero keeps the rounding of the values it was made from.
    np.testing.assert_allclose(for_kernel, expected["kernel"], rtol=1e-5, atol=1e-6 * np.abs(expected["kernel"]).max())
    np.testing.assert_allclose(for_bias, expected["bias"], rtol=1e-5, atol=1e-6 * np.abs(expected["bias"]).max())
    np.testing.assert_allclose(arrays["step.train_loss"][head], losses, rtol=1e-5, atol=1e-6)


def test_some_heads_of_that_loop_skip_steps_and_some_meet_few_rows():
    assert (~LIVE[:STEPS].any(axis=2)).sum(axis=0)[0] > STEPS // 2
    assert ((LIVE[:STEPS].sum(axis=2) > 0) & (LIVE[:STEPS].sum(axis=2) < BATCH)).any(axis=0).sum() == HEADS - 1


def test_an_epochs_mean_is_over_the_rows_of_each_head():
    # Each row is met once in an epoch: the mean over it is that of the right answers over the head's own rows.
    found = together().arrays["latest.accuracy"] * LENGTHS
    np.testing.assert_allclose(found, np.rint(found), atol=1e-4)


# ---- promises


WHO = {"alone": [2], "permuted": [3, 5, 0, 1, 4, 2], "one removed": [0, 1, 2, 4, 5]}


@pytest.mark.parametrize("who", WHO)
def test_a_head_has_the_same_bits_whatever_is_trained_beside_it(who):
    assert differing(fit(WHO[who]).arrays, together().of(WHO[who])) == []


@pytest.mark.parametrize("head", [4])
def test_changing_one_slice_changes_no_bit_of_the_others(head):
    others = np.delete(np.arange(HEADS), head)
    mask = MEMBERS.copy()
    mask[head] = np.arange(NUM_ROWS) % 2 == 0
    touched = fit(slices=hx.Slices.from_mask(mask).with_ids(IDS))
    assert differing(touched.of(others), together().of(others)) == []
    assert "trainable.kernel" in differing(touched.of(head), together().of(head))


def test_a_head_learns_the_same_however_its_rows_are_written_down():
    lists = hx.Slices.from_indices([np.flatnonzero(own)[::-1] for own in MEMBERS], NUM_ROWS).with_ids(IDS)
    assert differing(fit(slices=lists).arrays, together().arrays) == []


class SaveAt(hx.Callback):
    def __init__(self, folder):
        self.folder = folder

    def next_due(self, step):
        return 13

    def on_train_steps_end(self, event):
        [event.trainer.save_checkpoint(self.folder) for _ in range(event.step == 13)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    fit(callbacks=[SaveAt(folder)], max_steps=13)
    return folder / "13"


def test_a_resumed_fit_ends_as_one_that_was_not_interrupted(saved):
    resumed = fit(ckpt_path=saved)
    kept = [name for name in resumed.arrays if not name.startswith("step.")]
    one, other = resumed.arrays, together().arrays
    assert differing({name: one[name] for name in kept}, {name: other[name] for name in kept}) == []


def test_a_fit_does_not_resume_with_the_other_sampling(saved):
    with pytest.raises(hx.CheckpointError, match="sampling"):
        fit(ckpt_path=saved, sampling="own")


def test_fetched_rows_give_the_same_bits():
    data = data_of(SLICES, val=None, residence="host")
    fetched = run(Noting("mlp", hx.PerHead(RATES)), data, max_steps=STEPS, seed=SEED, sampling="shared")
    assert fetched.result.plan.residence == "host"
    assert differing(fetched.arrays, together().arrays) == []


# ---- the compiled program

SLOTS, COLUMNS, HIDDEN, CLASSES, CHUNK = 8, 11, 7, 6, 5


class TwoLayers(PlainClassifier):
    def configure_model(self, key):
        first, second = jax.random.split(key)
        shapes = {"first": (first, (COLUMNS, HIDDEN)), "second": (second, (HIDDEN, CLASSES))}
        return {name: jax.random.normal(key, shape) for name, (key, shape) in shapes.items()}

    def configure_optimizers(self):
        return optax.sgd(0.1)

    def logits(self, model, x):
        return jnp.tanh(x @ model["first"]) @ model["second"]


class Compiled(Exception):
    """Carries the text of a compiled program out of a fit, which ends there."""


def compile_superstep(self, *_):
    (program,) = self.programs["superstep"]._programs.values()
    raise Compiled(program.result().as_text())


@pytest.fixture
def matrix_products(monkeypatch):
    """Of the compiled superstep: the output shape of every matrix product, and whether it is batched."""
    monkeypatch.setattr(Engine, "superstep", compile_superstep)
    x = np.random.default_rng(0).normal(size=(NUM_ROWS, COLUMNS)).astype(np.float32)
    slices = hx.Slices.leave_one_out(NUM_ROWS)[: 2 * CHUNK]
    data = ArrayDataModule({"x": x, "y": np.arange(NUM_ROWS) % CLASSES}, slices=slices, batch_size=SLOTS)

    def found(**how):
        with pytest.raises(Compiled) as compiled:
            hx.Trainer(max_steps=1, chunk=CHUNK, barebones=True, **how).fit(TwoLayers(), data)
        products = re.findall(r"= f32\[([\d,]+)\]\S* dot\((.*)", str(compiled.value))
        return {(tuple(sorted(map(int, shape.split(",")))), "lhs_batch_dims" in how) for shape, how in products}

    return found


# Forward [B, D] x [D, C F], backward [D, B] x [B, C F]; shapes without regard to transposition.
WIDE = {((SLOTS, CHUNK * HIDDEN), False), ((COLUMNS, CHUNK * HIDDEN), False)}
BATCHED = {(tuple(sorted((CHUNK, SLOTS, HIDDEN))), True), (tuple(sorted((CHUNK, COLUMNS, HIDDEN))), True)}


@pytest.mark.cpu
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_layer_of_a_chunk_is_one_wide_matrix_product(matrix_products, accumulate):
    found = matrix_products(sampling="shared", accumulate_grad_batches=accumulate)
    assert found >= WIDE
    # None of the first layer's weights [C, D, F] is batched; what is, belongs to the second layer.
    assert not any(COLUMNS in shape for shape, batched in found if batched)
    assert (tuple(sorted((CHUNK, SLOTS, CLASSES))), True) in found


@pytest.mark.cpu
def test_with_own_sampling_the_first_layer_is_one_matrix_product_for_each_head(matrix_products):
    found = matrix_products(sampling="own")
    assert found >= BATCHED
    assert not found & WIDE


# ---- what it can be combined with


def test_a_scalar_loss_is_taken_where_all_heads_hold_all_rows():
    scalar = type("Scalar", (PlainClassifier,), {"training_step": lambda *a: PlainClassifier.training_step(*a).mean()})
    fitted = run(scalar(), data_of(hx.Slices.full(4, NUM_ROWS), val=None), max_steps=5, sampling="shared")
    assert np.isfinite(fitted.arrays["step.train_loss"]).all()


def test_the_rows_outside_a_slice_can_be_its_validation_set():
    slices = hx.Slices.leave_one_out(NUM_ROWS)[:4]
    data = data_of(slices, val=rows_of(), val_slices=slices.complement())
    fitted = run(PlainClassifier(), data, max_steps=5, sampling="shared")
    logits = [np.asarray(ROWS["x"][head] @ np.asarray(fitted.result.heads[head]["kernel"])) for head in range(4)]
    logits = [own + np.asarray(fitted.result.heads[head]["bias"]) for head, own in enumerate(logits)]
    losses = [-np.log(softmax(own[None])[0, ROWS["y"][head]]) for head, own in enumerate(logits)]
    np.testing.assert_allclose(fitted.result.metrics["val_loss"], losses, rtol=1e-5)


@pytest.mark.parametrize("model", ["nnx", "Linen variables"])
def test_a_model_with_batch_statistics_is_refused_as_they_would_tell_of_rows_outside_the_slice(model):
    linen = {"params": {"kernel": jnp.zeros((6, 3))}, "batch_stats": {"mean": jnp.zeros(6)}}
    modules = {"nnx": Classifier("norm_dropout"), "Linen variables": OfVariables(linen)}
    with pytest.raises(hx.ModuleError, match="Batch statistics would leak rows of other heads"):
        run(modules[model], data_of(SLICES), max_steps=1, sampling="shared")


class OfVariables(PlainClassifier):
    def __init__(self, variables):
        super().__init__("mlp")
        self.variables = variables

    def configure_model(self, key):
        return self.variables
