"""Budget "passes": each head makes its own passes over its own slice and then rests, whatever the others still do."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, differing, rows_of, run, state_of

import hydrax as hx

PASSES, HEADS = 3, 5
LENGTHS = [3, 40, 17, 8, 25]
SLICES = hx.Slices.window([37, 0, 23, 5, 11], LENGTHS, NUM_ROWS).with_ids([4, 0, 9, 7, 2])
RATES = hx.PerHead([0.5, 0.1, 0.2, 0.3, 0.4])
# In batches of 8: three batches of 3 rows each; 120, 51, 24 and 75 slots.
OWN_STEPS = np.array([3, 15, 7, 3, 10])


class Counting(PlainClassifier):
    """Its state counts how often the head met each row."""

    def configure_model(self, key):
        return super().configure_model(key) | {"met": jnp.zeros(NUM_ROWS, jnp.int32)}

    def configure_optimizers(self):
        return optax.sgd(self.hparams.lr, momentum=0.9)

    def training_step(self, model, batch, ctx):
        logits = self.logits(model, batch["x"])
        self.log("accuracy", logits.argmax(-1) == batch["y"], on_step=True, on_epoch=True)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return {"loss": loss, "model": model | {"met": model["met"].at[ctx.rows].add(ctx.mask.astype(jnp.int32))}}

    def validation_step(self, model, batch, ctx):
        return optax.softmax_cross_entropy_with_integer_labels(self.logits(model, batch["x"]), batch["y"])


class Watch(hx.Callback):
    """Looks at the heads after every step, and at what an epoch's end tells."""

    def __init__(self):
        self.live, self.states, self.epochs = [], [], []

    def next_due(self, step):
        return step + 1

    def on_train_steps_end(self, event):
        self.live.append(event.live)
        self.states.append(state_of(event.trainer))

    def on_train_epoch_end(self, event):
        self.epochs.append(event.metrics["accuracy_epoch"])

    def states_of(self, head):
        """What stays of a head that rests: all but the accumulators, which are emptied where an epoch begins."""
        kept = [name for name in self.states[0] if not name.startswith("epoch.")]
        return [{name: state[name][[head]] for name in kept} for state in self.states]


def fit(slices=SLICES, rates=RATES, callbacks=(), ckpt_path=None, val=None, small_slices="mask", **how):
    data = data_of(slices, val=val, small_slices=small_slices)
    settings = {"max_epochs": PASSES, "budget": "passes", **how}
    return run(Counting("mlp", rates), data, ckpt_path, callbacks, **settings)


# The longest slice has 40 rows, hence 5 batches an epoch: windows of three batches end in one of two.
CASES = {
    "plain": ({}, 15),
    "wrapped": ({"small_slices": "wrap"}, 15),
    "accumulated": ({"accumulate_grad_batches": 3}, 6),
    "validated": ({"val": rows_of(num_rows=21, seed=1), "val_check_interval": 2}, 15),
    "shared rows": ({"sampling": "shared"}, 15),
    "with repeats": ({"slices": hx.Slices.bootstrap(HEADS, NUM_ROWS, LENGTHS, seed=1)}, 15),
    # 99 slots of the longest slice are 13 batches, not three epochs of 5.
    "a last epoch cut short": ({"slices": hx.Slices.prefix([3, 33, 17, 8, 25], NUM_ROWS)}, 13),
}


@functools.cache
def fitted(case="plain"):
    return fit(**CASES[case][0])


def rows_times_passes(slices):
    return PASSES * np.stack([np.bincount(slices.rows(head), minlength=NUM_ROWS) for head in range(HEADS)])


@pytest.mark.parametrize("case", CASES)
def test_each_head_meets_each_of_its_rows_so_many_times_and_no_other(case):
    expected = rows_times_passes(CASES[case][0].get("slices", SLICES))
    np.testing.assert_array_equal(fitted(case).arrays["state.met"], expected)


@pytest.mark.parametrize("case", CASES)
def test_a_fit_ends_when_the_last_head_is_through(case):
    assert fitted(case).result.step == CASES[case][1]


@pytest.mark.parametrize("case", CASES)
def test_a_head_that_is_through_is_neither_stopped_nor_broken(case):
    result = fitted(case).result
    assert result.live.all()
    assert [row["status"] for row in result.ledger] == ["ok"] * HEADS


@pytest.mark.parametrize("head", [0, 4])
def test_a_head_is_what_a_fit_of_it_alone_gives(head):
    alone = fit(SLICES[[head]], RATES[[head]])
    # What is told of an epoch differs: its length is that of the longest slice.
    own = [
        name for name in alone.arrays if name.startswith(("trainable.", "opt_state.", "state.", "latest.train_loss"))
    ]
    one, other = alone.arrays, fitted().of(head)
    assert {"trainable.kernel", "latest.train_loss"} <= {*own}
    assert differing({name: one[name] for name in own}, {name: other[name] for name in own}) == []
    assert alone.result.step == OWN_STEPS[head]


@pytest.fixture(scope="module")
def watched():
    watch = Watch()
    return watch, fit(callbacks=[watch])


@pytest.mark.parametrize("head", range(HEADS))
def test_a_head_that_is_through_is_frozen_bit_for_bit(watched, head):
    states, own = watched[0].states_of(head), OWN_STEPS[head]
    assert {"trainable.kernel", "opt_state.0.trace.kernel", "state.met", "live"} <= {*states[0]}
    assert [differing(state, states[own - 1]) for state in states[own - 1 :]] == [[]] * (16 - own)
    assert "trainable.kernel" in differing(states[own - 2], states[own - 1])


def test_callbacks_hear_which_heads_still_learn(watched):
    expected = OWN_STEPS[None] > np.arange(1, 16)[:, None]
    np.testing.assert_array_equal(watched[0].live, expected)


def test_looking_at_every_step_changes_no_bit(watched):
    assert differing(watched[1].arrays, fitted().arrays) == []


def test_what_the_steps_log_of_a_head_that_is_through_is_its_last_value(watched):
    for_steps = [watched[1].arrays[f"step.{name}"] for name in ("train_loss", "accuracy_step")]
    last = np.minimum(np.arange(15)[None], OWN_STEPS[:, None] - 1)
    assert [np.isfinite(values).all() for values in for_steps] == [True, True]
    assert [(values == np.take_along_axis(values, last, axis=1)).all() for values in for_steps] == [True, True]


def test_what_an_epoch_tells_of_a_head_that_was_through_before_it_is_what_it_was(watched):
    first, second, third = watched[0].epochs
    assert np.isfinite([first, second, third]).all()
    # Heads of 3 and 8 rows are through in the first epoch, of five steps; those of 17 and 25 in the second.
    np.testing.assert_array_equal(second[[0, 3]], first[[0, 3]])
    np.testing.assert_array_equal(third[[0, 2, 3, 4]], second[[0, 2, 3, 4]])
    assert (second[[1, 2, 4]] != first[[1, 2, 4]]).any()
    np.testing.assert_array_equal(watched[1].result.metrics["accuracy_epoch"], third)


def test_an_epochs_mean_of_a_head_that_came_through_in_it_is_over_its_own_rows():
    # Head 0 meets its three rows in each of three steps of the first epoch, and nothing after: the epoch's mean is that
    # of the three steps.
    arrays = fitted().arrays
    np.testing.assert_allclose(arrays["latest.accuracy"][0], arrays["step.accuracy_step"][0, :3].mean(), rtol=1e-6)


def test_a_head_that_is_through_is_still_validated():
    validated = fitted("validated").arrays
    assert np.isfinite(validated["latest.val_loss"]).all()
    assert differing({"kernel": validated["trainable.kernel"]}, {"kernel": fitted().arrays["trainable.kernel"]}) == []


class SaveAt(hx.Callback):
    """Saves at a step."""

    def __init__(self, folder, step):
        self.folder, self.step = folder, step

    def next_due(self, step):
        return self.step

    def on_train_steps_end(self, event):
        [event.trainer.save_checkpoint(self.folder) for _ in range(event.step == self.step)]


@pytest.fixture(scope="module", params=[("plain", 8), ("accumulated", 3)], ids=["plain", "accumulated"])
def saved(request, tmp_path_factory):
    """A case, and a checkpoint of it in the midst of an epoch, when some heads are through."""
    case, step = request.param
    folder = tmp_path_factory.mktemp("saved")
    fit(callbacks=[SaveAt(folder, step)], **CASES[case][0])
    return case, folder / str(step)


def test_a_resumed_fit_ends_as_one_that_was_not_interrupted(saved):
    case, path = saved
    resumed = fit(ckpt_path=path, **CASES[case][0])
    kept = [name for name in resumed.arrays if not name.startswith("step.")]
    one, other = resumed.arrays, fitted(case).arrays
    assert differing({name: one[name] for name in kept}, {name: other[name] for name in kept}) == []


def test_a_fit_does_not_resume_with_another_number_of_passes(saved):
    case, path = saved
    with pytest.raises(hx.CheckpointError, match="passes"):
        fit(ckpt_path=path, **CASES[case][0], max_epochs=PASSES + 1)


def test_nearer_steps_end_the_fit_first():
    cut = fit(max_steps=5)
    assert cut.result.step == 5
    np.testing.assert_array_equal(cut.arrays["state.met"][[0, 3]], rows_times_passes(SLICES)[[0, 3]])
    np.testing.assert_array_equal(cut.arrays["state.met"].sum(axis=1), [9, 40, 40, 24, 40])
    assert cut.result.live.all()


class StopLongest(hx.Callback):
    def next_due(self, step):
        return 6

    def on_train_steps_end(self, event):
        return hx.Control(stop=(np.arange(HEADS) == 1) & (event.step >= 6))


def test_a_fit_whose_longest_head_is_stopped_ends_with_the_last_of_the_others():
    stopped = fit(callbacks=[StopLongest()])
    assert stopped.result.step == 10
    assert [row["status"] for row in stopped.result.ledger] == ["ok", "stopped", "ok", "ok", "ok"]
    others = [0, 2, 3, 4]
    np.testing.assert_array_equal(stopped.arrays["state.met"][others], rows_times_passes(SLICES)[others])


def test_equal_slices_learn_the_same_from_passes_as_from_epochs():
    slices = hx.Slices.window(range(0, 25, 6), 16, NUM_ROWS)
    passes, steps = fit(slices), fit(slices, budget="steps")
    assert differing(passes.arrays, steps.arrays) == []
