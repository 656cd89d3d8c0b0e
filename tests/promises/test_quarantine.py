"""Promise 9, quarantine: a head that turns NaN or infinite stays at its last finite state, and nobody else notices.

Nine heads, each with rows of its own; in each run every head but the last is spoiled once, in one of six ways. What a
head keeps must be, bit for bit, what it was at that step in a run in which nothing is spoiled.
"""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hydrax as hx
from hydrax.datamodules import ArrayDataModule
from hydrax.errors import ArgumentError, NonFiniteError

# In 40 steps of 2 rows each no head comes to the end of its 80 rows: each row is met once.
HEADS, ROWS, B, STEPS, NEVER = 9, 720, 2, 40, 10_000
WHEN = (0, 1, 37)
IN_PROGRAM = ("loss", "gradient", "parameter", "opt_state")
KINDS = (*IN_PROGRAM, "input row", "label")
LEAVES = dict(
    zip(KINDS, ["loss", "gradient['w']", "parameter['w']", "opt_state[1]['extra']", "loss", "loss"], strict=True)
)
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
CASES = [(kind, step) for kind in KINDS for step in WHEN]


@jax.custom_vjp
def poisoned(x, bad):
    """x itself, with a gradient that is NaN where `bad`."""
    return x


poisoned.defvjp(lambda x, bad: (x, bad), lambda bad, g: (jnp.where(bad, jnp.nan, g), None))


def spoiling(kind, when):
    """Spoils updates, or state of its own, in one step."""

    def update(updates, state, params=None):
        hit = state["count"] == when
        spoiled = hit & (kind == IN_PROGRAM.index("parameter"))
        extra = jnp.where(hit & (kind == IN_PROGRAM.index("opt_state")), jnp.inf, state["extra"])
        updates = updates | {"w": jnp.where(spoiled, jnp.nan, updates["w"])}
        return updates, {"count": state["count"] + 1, "extra": extra}

    return optax.GradientTransformation(lambda _: {"count": jnp.int32(0), "extra": jnp.float32(0)}, update)


class Regression(hx.HydraModule):
    def __init__(self, kind: Any, when: Any) -> None:
        self.save_hyperparameters()

    def configure_model(self, key):
        return {"b": jnp.zeros(()), "w": jax.random.normal(key, (40,)) * 0.1}

    def configure_optimizers(self):
        return optax.chain(optax.adam(0.01), spoiling(self.hparams.kind, self.hparams.when))

    def training_step(self, model, batch, ctx):
        hit = ctx.step == self.hparams.when
        w = poisoned(model["w"], hit & (self.hparams.kind == IN_PROGRAM.index("gradient")))
        losses = (batch["x"] @ w + model["b"] - batch["y"]) ** 2
        return losses + jnp.where(hit & (self.hparams.kind == IN_PROGRAM.index("loss")), jnp.nan, 0)

    def validation_step(self, model, batch, ctx):
        return (batch["x"] @ model["w"] + model["b"] - batch["y"]) ** 2


class Watch(hx.Callback):
    """Keeps all heads, as NumPy, as they are after some steps; and the losses."""

    def __init__(self, steps=WHEN):
        self.steps, self.heads, self.losses, self.live = steps, {}, [], []

    def next_due(self, step):
        return min((due for due in self.steps if due > step), default=None)

    def on_fit_start(self, event):
        self.heads[0] = jax.tree.map(np.asarray, dict(event.trainer.heads.trainable))

    def on_train_steps_end(self, event):
        self.losses.append(event.metrics["train_loss"])
        self.live.append(event.live)
        if event.step in self.steps:
            self.heads[event.step] = jax.tree.map(np.asarray, dict(event.trainer.heads.trainable))


def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 40)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] + rng.normal(size=ROWS)).astype(np.float32)}


def fit(spoiled=(), callbacks=(), ckpt_path=None, slices=None, **how):
    """Trains nine heads; `spoiled` gives head, kind and step."""
    kinds, when, rows = np.full(HEADS, -1), np.full(HEADS, NEVER), arrays()
    slices = slices or hx.Slices.partition_by(np.arange(ROWS) % HEADS)
    make = functools.partial(ArrayDataModule, slices=slices, batch_size=B, check_finite="off", val=arrays())
    batches = make(rows).index_dataset(seed=0)
    for head, kind, step in spoiled:
        if kind in IN_PROGRAM:
            kinds[head], when[head] = IN_PROGRAM.index(kind), step
        else:
            rows["x" if kind == "input row" else "y"][batches[step]["rows"][head][1]] = np.nan
    trainer = hx.Trainer(callbacks=list(callbacks), **{**QUIET, "max_steps": STEPS, "chunk": 4, **how})
    module = Regression(hx.PerHead(kinds), hx.PerHead(when))
    return trainer, trainer.fit(module, make(rows), ckpt_path)


@pytest.fixture(scope="module")
def sound():
    """A run in which nothing is spoiled: the heads after 0, 1, 37 and all steps."""
    watch = Watch()
    _, result = fit(callbacks=[watch])
    return watch.heads | {STEPS: jax.tree.map(np.asarray, dict(result.heads.trainable))}


def spoils(number):
    """Each head but the last in another case; over eighteen runs every head meets every case."""
    return [(head, *CASES[(number + 2 * head) % len(CASES)]) for head in range(HEADS - 1)]


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[] if n in (0, 1) else pytest.mark.slow) for n in range(len(CASES))]
)
def test_a_lost_head_keeps_its_last_finite_state_and_the_others_every_bit(number, sound):
    trainer, result = fit(spoils(number))
    assert dict(trainer.quarantined) == {head: (step, LEAVES[kind]) for head, kind, step in spoils(number)}
    ends = [*(step for _, _, step in spoils(number)), STEPS]
    expected = {name: np.stack([sound[end][name][head] for head, end in enumerate(ends)]) for name in ("b", "w")}
    found = jax.tree.map(np.asarray, dict(result.heads.trainable))
    np.testing.assert_array_equal(found["w"], expected["w"])
    np.testing.assert_array_equal(found["b"], expected["b"])
    assert [row["status"] for row in result.ledger] == ["quarantined"] * (HEADS - 1) + ["ok"]


@pytest.fixture(scope="module")
def one_lost():
    watch = Watch(steps=())
    trainer, result = fit([(3, "gradient", 17)], callbacks=[watch], steps_per_call=10)
    return watch, trainer, result


def test_metrics_of_a_lost_head_are_nan_from_its_step_on(one_lost):
    losses = np.concatenate(one_lost[0].losses)
    expected = np.ones((STEPS, HEADS), bool)
    expected[17:, 3] = False
    np.testing.assert_array_equal(np.isfinite(losses), expected)


def test_validation_leaves_a_lost_head_out(one_lost):
    np.testing.assert_array_equal(np.isfinite(one_lost[2].metrics["val_loss"]), np.arange(HEADS) != 3)


def test_a_lost_head_is_not_live(one_lost):
    np.testing.assert_array_equal(one_lost[2].live, np.arange(HEADS) != 3)
    np.testing.assert_array_equal(one_lost[0].live[-1], np.arange(HEADS) != 3)


def test_one_message_names_head_step_and_array(caplog):
    with caplog.at_level(logging.WARNING, "hydrax"):
        fit([(3, "opt_state", 17)], steps_per_call=10)
    messages = [record.getMessage() for record in caplog.records if "NaN" in record.getMessage()]
    assert len(messages) == 1
    assert "head 3 at step 17: opt_state[1]['extra']" in messages[0]


@pytest.mark.parametrize(
    "how",
    [
        {"steps_per_call": 7},
        *(pytest.param(how, marks=pytest.mark.slow) for how in ({"steps_per_call": 1}, {"devices": 1})),
    ],
)
def test_what_is_kept_depends_on_no_cut_into_supersteps_and_no_device(how, sound):
    _, result = fit([(head, "parameter", 37) for head in range(HEADS - 1)], **how)
    np.testing.assert_array_equal(result.heads.trainable["w"][:-1], sound[37]["w"][:-1])


def test_the_same_holds_with_shared_sampling():
    watch, how = Watch(), {"sampling": "shared", "slices": hx.Slices.full(HEADS, ROWS)}
    fit(callbacks=[watch], **how)
    _, result = fit([(head, "parameter", 37) for head in range(HEADS - 1)], **how)
    np.testing.assert_array_equal(result.heads.trainable["w"][:-1], watch.heads[37]["w"][:-1])


def test_the_end_of_all_heads_is_an_error():
    with pytest.raises(NonFiniteError, match=r"All heads became NaN.*head 0 at step 3: loss.*and 4 more"):
        fit([(head, "loss", 3) for head in range(HEADS)])


class StopsAll(hx.Callback):
    def on_train_epoch_end(self, event):
        return hx.Control(stop=event.live, reason="enough")


def test_the_closing_line_tells_heads_that_stopped_from_those_that_were_lost(caplog):
    with caplog.at_level(logging.INFO, "hydrax"):
        fit([(3, "loss", 5), (4, "gradient", 7)], callbacks=[StopsAll()])
    assert "no head is left: 7 stopped, 2 lost to NaN or infinity. 7 stopped: enough." in caplog.text


def test_the_closing_line_counts_lost_heads_where_others_learnt_to_the_end(caplog):
    with caplog.at_level(logging.INFO, "hydrax"):
        fit([(3, "loss", 5)])
    assert f"`max_steps={STEPS}` reached. 1 lost to NaN or infinity." in caplog.text


def test_raise_names_head_step_and_array():
    with pytest.raises(NonFiniteError, match=r"A head became NaN.*head 5 at step 11: gradient\['w'\]"):
        fit([(5, "gradient", 11)], on_nonfinite="raise")


def test_ignore_lets_a_head_go_on(caplog):
    trainer, result = fit([(5, "gradient", 11)], on_nonfinite="ignore")
    assert trainer.quarantined == {} and result.live.all()
    assert np.isnan(result.heads.trainable["w"][5]).all()
    assert [row["status"] for row in result.ledger][5] == "not finite"


def test_another_answer_is_refused():
    with pytest.raises(ArgumentError, match="on_nonfinite"):
        hx.Trainer(max_steps=1, on_nonfinite="stop")


def test_a_resumed_run_knows_its_lost_heads(tmp_path, sound):
    spoiled = [(3, "loss", 5), (4, "parameter", 30)]
    how = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    fit(spoiled, max_steps=20, **how)
    trainer, result = fit(spoiled, ckpt_path="last", **how)
    assert dict(trainer.quarantined) == {3: (5, "loss"), 4: (30, "parameter['w']")}
    unbroken = fit(spoiled)[1]
    np.testing.assert_array_equal(result.heads.trainable["w"], unbroken.heads.trainable["w"])
    np.testing.assert_array_equal(result.metrics["train_loss"], unbroken.metrics["train_loss"])


class Bare(Regression):
    """Plain gradient descent: no optimiser state, no model state."""

    def configure_optimizers(self):
        return optax.sgd(0.01)


def test_a_head_without_any_optimiser_state_is_watched_too():
    slices, rows = hx.Slices.partition_by(np.arange(ROWS) % HEADS), arrays()
    rows["y"][np.arange(ROWS) % HEADS == 3] = np.nan
    trainer = hx.Trainer(max_steps=3, chunk=4, **QUIET)
    module = Bare(hx.PerHead(np.full(HEADS, -1)), hx.PerHead(np.full(HEADS, NEVER)))
    trainer.fit(module, ArrayDataModule(rows, slices=slices, batch_size=B, check_finite="off"))
    assert dict(trainer.quarantined) == {3: (0, "loss")}


class FromTheStart(hx.HydraModule):
    """Heads whose model is NaN before the first step."""

    def __init__(self, bad: Any) -> None:
        self.save_hyperparameters()

    def configure_model(self, key):
        return {"w": jnp.where(self.hparams.bad, jnp.nan, 0.0)}

    def configure_optimizers(self):
        return optax.sgd(0.1)

    def training_step(self, model, batch, ctx):
        return (model["w"] - batch["y"]) ** 2


@pytest.fixture
def four_steps():
    data = ArrayDataModule({"y": np.ones(8, np.float32)}, slices=hx.Slices.full(2, 8), batch_size=8)
    trainer = hx.Trainer(max_steps=4, **QUIET)
    return trainer, lambda bad: trainer.fit(FromTheStart(hx.PerHead(bad)), data)


def test_a_model_that_is_nan_from_the_start_is_lost_at_the_first_step(four_steps):
    trainer, fit = four_steps
    result = fit([False, True])
    assert {head: (fault.step, fault.leaf) for head, fault in trainer.quarantined.items()} == {1: (0, "loss")}
    np.testing.assert_allclose(result.heads.trainable["w"], [1 - 0.8**4, np.nan], rtol=1e-6)
    with pytest.raises(NonFiniteError, match="All heads became NaN or infinite: training. Got head 0 at step 0: loss"):
        fit([True, True])
