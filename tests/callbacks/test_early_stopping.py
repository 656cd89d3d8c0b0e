"""EarlyStopping judges each head by its own scores: by hand on given ones, and in fits against fits of that length."""

import logging
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from heads_under_test import QUIET, PlainClassifier, data_of, rows_of

import hydrax as hx
from hydrax.callbacks import EarlyStopping, ModelCheckpoint
from hydrax.datamodules import ArrayDataModule
from hydrax.errors import ArgumentError

NAN = np.nan


def judged(scores, **how):
    """Returns the callback's answer to each row of scores [validations, H]; stopped heads are no longer live."""
    callback = EarlyStopping("score", **how)
    num_heads = len(scores[0])
    trainer = SimpleNamespace(num_heads=num_heads, validated=np.ones(num_heads, bool), interrupted=False)
    callback.on_train_start(hx.Event(trainer, "fit", 0, 0))
    live, answers = np.ones(num_heads, bool), []
    for number, row in enumerate(scores, 1):
        event = hx.Event(trainer, "fit", 10 * number, number, {"score": np.float32(row)}, live=live)
        control = callback.on_validation_end(event) or hx.Control()
        live = live if control.stop is None else live & ~control.stop
        answers.append(control)
    return answers


def stopped_at(scores, **how):
    """Returns the validation, from 1, at which each head stops; 0 if it never does."""
    stops = [np.zeros(len(scores[0]), bool) if c.stop is None else c.stop for c in judged(scores, **how)]
    return np.where(np.any(stops, axis=0), np.argmax(stops, axis=0) + 1, 0).tolist()


def columns(*heads):
    return np.array(heads).T.tolist()


def test_each_head_waits_for_itself():
    scores = columns([5, 4, 3, 2, 1], [1, 2, 2, 2, 2], [3, 2, 2, 2, 2], [3, 3, 3, 1, 3])
    assert stopped_at(scores, patience=2) == [0, 3, 4, 3]


def test_a_better_score_starts_the_count_again():
    assert stopped_at(columns([5, 6, 6, 4, 6, 6, 6]), patience=3) == [7]


def test_min_delta_is_what_a_score_must_gain():
    scores = columns([1.0, 0.95, 0.9, 0.85], [1.0, 0.8, 0.6, 0.4], [1.0, 0.9, 0.8, 0.7])
    # The first is never 0.125 below its best; the second always is, the third at its third check.
    assert stopped_at(scores, patience=2, min_delta=0.125) == [3, 0, 0]


def test_a_score_may_be_one_that_should_grow():
    assert stopped_at(columns([1, 2, 3], [3, 2, 1]), patience=1, mode="max") == [0, 2]


def test_a_threshold_stops_at_once():
    assert stopped_at(columns([3, 0.5, 1], [3, 2, 1]), stopping_threshold=1.0) == [2, 0]
    assert stopped_at(columns([3, 11, 1], [3, 2, 1]), divergence_threshold=10) == [2, 0]
    assert stopped_at(columns([0.5, 0.95], [0.5, 0.6]), mode="max", stopping_threshold=0.9) == [2, 0]


@pytest.mark.parametrize("value", [NAN, np.inf])
def test_a_score_that_is_not_finite_stops_or_counts_as_no_better(value):
    scores = columns([1, value, 0.5, 0.4], [value, value, value, value])
    assert stopped_at(scores, patience=3) == [2, 1]
    assert stopped_at(scores, patience=3, check_finite=False) == [0, 3]


def test_the_reason_is_the_first_that_holds():
    scores = columns([1, 2, 2], [1, 1, NAN], [1, 20, 1])
    answers = judged(scores, patience=2, divergence_threshold=9)
    assert [list(control.reason) for control in answers] == [
        [],
        ["", "", "score is worse than 9"],
        ["score did not improve in 2 validations", "score is NaN or infinite", ""],
    ]


def test_the_best_model_is_kept_when_it_comes_and_given_back_when_the_head_stops():
    answers = judged(columns([2, 1, 3, 4], [1, 2, 2, 2]), patience=2, restore_best_weights=True)
    assert [a.snapshot.tolist() for a in answers] == [[True, True], [True, False], [False, False], [False, False]]
    assert [a.restore.tolist() for a in answers] == [[False, False], [False, False], [False, True], [True, False]]


def test_the_check_before_training_does_not_count():
    callback = EarlyStopping("score", patience=1)
    trainer = SimpleNamespace(num_heads=1, validated=np.ones(1, bool))
    callback.on_train_start(hx.Event(trainer, "fit", 0, 0))
    first = hx.Event(trainer, "fit", 0, 0, {"score": np.float32([NAN])}, live=np.ones(1, bool))
    assert callback.on_validation_end(first) is None
    assert np.isnan(callback.best_scores).all()


def test_scores_and_counts_survive_a_resume_unless_another_metric_is_monitored():
    callback, trainer = EarlyStopping("score"), SimpleNamespace(num_heads=2, validated=np.ones(2, bool))
    callback.on_train_start(hx.Event(trainer, "fit", 0, 0))
    for step, scores in ((1, [1, 2]), (2, [2, 1])):
        event = hx.Event(trainer, "fit", step, 0, {"score": np.float32(scores)}, live=np.ones(2, bool))
        callback.on_validation_end(event)
    again, other = EarlyStopping("score"), EarlyStopping("score", mode="max")
    again.load_state_dict(callback.state_dict())
    other.load_state_dict(callback.state_dict())
    assert (again.best_scores.tolist(), again.wait_counts.tolist()) == ([1, 1], [1, 0])
    assert other.best_scores is None


@pytest.mark.parametrize(
    ("how", "got"),
    [
        ({"mode": "least"}, "mode=...). Got 'least'"),
        ({"patience": 0}, "patience=...). Got 0"),
        ({"patience": True}, "patience=...). Got True"),
        ({"min_delta": -1}, "min_delta=...). Got -1"),
        ({"stopping_threshold": "low"}, "stopping_threshold=...). Got 'low'"),
        ({"check_finite": 3}, "check_finite=...). Got 3"),
        ({"restore_best_weights": "yes"}, "restore_best_weights=...). Got 'yes'"),
        ({"divergence_threshold": NAN}, "divergence_threshold=...). Got nan"),
    ],
)
def test_bad_arguments_are_refused(how, got):
    with pytest.raises(ArgumentError) as refused:
        EarlyStopping(**how)
    assert got in str(refused.value)


# ---- in fits

HEADS, EVERY, STEPS = 4, 2, 24
SLICES = hx.Slices.prefix([3, 8, 16, 24], num_rows=40)


class Scripted(PlainClassifier):
    """Validation scores that follow a table, [validations, H], whatever the models are."""

    TABLE = np.float32([[4, 3, 2, 1], [3, 3, 1, 1], [2, 3, 3, 1], [1, 3, 3, 1], [0, 3, 3, 1]] + [[0, 3, 3, 1]] * 9)

    def validation_step(self, model, batch, ctx):
        self.log("score", jax.numpy.asarray(self.TABLE)[ctx.step // EVERY - 1, ctx.head])


def fit(*callbacks, **how):
    settings = {"max_steps": STEPS, "val_check_interval": EVERY, "check_val_every_n_epoch": None, "chunk": 2, **QUIET}
    trainer = hx.Trainer(callbacks=list(callbacks), **{**settings, **how})
    data = data_of(SLICES, "mlp", rows_of("mlp"), val=rows_of("mlp"))
    return trainer, trainer.fit(Scripted("mlp"), data)


@pytest.fixture(scope="module")
def after():
    """Returns the heads after a number of steps, in a fit without early stopping."""
    kept = {}

    class Keeps(hx.Callback):
        def next_due(self, step):
            return (step // EVERY + 1) * EVERY

        def on_train_steps_end(self, event):
            kept[event.step] = jax.tree.map(np.asarray, event.trainer.heads)

    fit(Keeps())
    return kept


def kernels(heads, number):
    return [np.asarray(leaf)[number] for leaf in jax.tree.leaves(heads)]


# By hand: patience 2 with scores every 2 steps. Head 0: best at 10, 12 and 14 no better. Head 1: best at 2, stops at 6.
# Head 2: best at 4, stops at 8. Head 3: best at 2, stops at 6.
STOPS, BEST = [14, 6, 8, 6], [10, 2, 4, 2]


@pytest.mark.parametrize(("restore", "kept_at"), [(False, STOPS), (True, BEST)])
def test_a_stopped_head_is_bit_for_bit_the_one_of_its_step(after, restore, kept_at):
    _, result = fit(EarlyStopping("score", patience=2, restore_best_weights=restore))
    for head, step in enumerate(kept_at):
        np.testing.assert_array_equal(
            np.concatenate([leaf.ravel() for leaf in kernels(result.heads, head)]),
            np.concatenate([leaf.ravel() for leaf in kernels(after[step], head)]),
        )
    assert not result.live.any()


def test_the_fit_ends_with_the_last_head_and_says_why_each_stopped(caplog):
    with caplog.at_level(logging.INFO, "hydrax"):
        trainer, result = fit(EarlyStopping("score", patience=2))
    assert result.step == max(STOPS)
    assert [row["status"] for row in result.ledger] == ["stopped"] * HEADS
    why = "score did not improve in 2 validations"
    assert [row["reason"] for row in result.ledger] == [f"{why} (step {step})" for step in STOPS]
    assert f"all heads have stopped. 4 stopped: {why}." in caplog.text


def test_heads_that_never_stop_get_their_best_model_at_the_end(after):
    # By then heads 1, 2 and 3 have stopped; head 0 has its best at 10.
    _, result = fit(EarlyStopping("score", patience=2, restore_best_weights=True), max_steps=12)
    found = np.concatenate([leaf.ravel() for leaf in kernels(result.heads, 0)])
    np.testing.assert_array_equal(found, np.concatenate([leaf.ravel() for leaf in kernels(after[10], 0)]))
    assert result.live.tolist() == [True, False, False, False]


def test_two_callbacks_keep_their_own_snapshots(after, tmp_path):
    from hydrax.callbacks import ModelCheckpoint

    saver = ModelCheckpoint("score", mode="max", dirpath=tmp_path)
    fit(EarlyStopping("score", patience=2, restore_best_weights=True), saver)
    best = hx.Heads.load(saver.best_model_path, Scripted("mlp"))
    # The highest score is the best one here: that of head 0 at step 2, that of head 2 at step 6.
    for head, step in ((0, 2), (2, 6)):
        np.testing.assert_array_equal(
            np.concatenate([leaf.ravel() for leaf in kernels(best, head)]),
            np.concatenate([leaf.ravel() for leaf in kernels(after[step], head)]),
        )


def test_a_snapshot_of_the_moment_of_a_stop_holds_what_was_scored(after):
    class Keeps(hx.Callback):
        """Is called when head 1 stops, at step 6, after EarlyStopping has restored it."""

        def on_validation_end(self, event):
            return hx.Control(snapshot=np.ones(HEADS, bool)) if event.step == 6 else None

    keeps = Keeps()
    trainer, _ = fit(EarlyStopping("score", patience=2, restore_best_weights=True), keeps)
    found = np.concatenate([leaf.ravel() for leaf in kernels(trainer.snapshots_of(keeps), 1)])
    np.testing.assert_array_equal(found, np.concatenate([leaf.ravel() for leaf in kernels(after[6], 1)]))


def test_a_metric_that_nothing_logs_is_refused_before_training():
    names = "of validation: score; of training: accuracy, accuracy_epoch, noise, .*train_loss"
    with pytest.raises(ArgumentError, match=f"monitor=.*Got 'val_los', expected a metric {names}"):
        fit(EarlyStopping("val_los"))


# ---- what is reported belongs to what is returned


class Drifting(PlainClassifier):
    """Logs a score that follows a table, and the step, which is the model's: each moves on with every validation."""

    # By hand, patience 2: best at steps 10, 2, 4 and 4, stopped at 14, 6, 8 and 8.
    TABLE = np.float32([[9, 3, 2, 9], [8, 4, 1, 1], [7, 5, 2, 2], [6, 6, 3, 3], [1, 7, 4, 4]] + [[2, 8, 5, 5]] * 9)

    def validation_step(self, model, batch, ctx):
        self.log("score", jax.numpy.asarray(self.TABLE)[ctx.step // EVERY - 1, ctx.head])
        self.log("at", ctx.step.astype(np.float32))
        self.log("norm", jax.numpy.square(model["kernel"]).sum())


REPORTED = {True: ([10, 2, 4, 4], [1, 3, 1, 1]), False: ([14, 6, 8, 8], [2, 5, 3, 3])}


class Heard(hx.Callback):
    """Notes what was heard after a step."""

    def __init__(self, after=0):
        self.after, self.events = after, []

    def note(self, hook, event):
        if event.step > self.after:
            values = {name: np.asarray(value).tolist() for name, value in sorted(event.metrics.items())}
            self.events.append((hook, event.step, event.live.tolist(), repr(values)))

    def next_due(self, step):
        return step + 1

    def on_train_steps_end(self, event):
        self.note("steps", event)

    def on_validation_end(self, event):
        self.note("validation", event)

    def on_train_epoch_end(self, event):
        self.note("epoch", event)


def stopping_fit(root, restore, *callbacks, **how):
    # One head a chunk, so that heads which have stopped are moved out of the way.
    settings = {"max_steps": STEPS, "val_check_interval": EVERY, "check_val_every_n_epoch": None, "chunk": 1, **QUIET}
    stopping = EarlyStopping("score", patience=2, restore_best_weights=restore)
    trainer = hx.Trainer(callbacks=[stopping, *callbacks], default_root_dir=root, **settings)
    # 24 rows in batches of 8: an epoch has 3 steps, so that some stops fall inside one.
    return trainer, trainer.fit(Drifting("mlp"), data_of(SLICES, "mlp", rows_of("mlp"), val=rows_of("mlp")), **how)


@pytest.fixture(scope="module", params=[True, False], ids=["restored", "as stopped"])
def stopped(request, tmp_path_factory):
    """Returns whether weights are restored, the trainer, its result, its events, and the folder of its saves."""
    root, heard = tmp_path_factory.mktemp("stopped"), Heard()
    saves = ModelCheckpoint(dirpath=root, every_n_train_steps=1, keep_last=99)
    trainer, result = stopping_fit(root, request.param, heard, saves)
    return request.param, trainer, result, heard.events, root / "last"


def test_the_metrics_of_a_stopped_head_are_those_of_the_model_that_is_returned(stopped):
    restore, trainer, result, _, _ = stopped
    at, score = REPORTED[restore]
    assert result.metrics["at"].tolist() == at
    assert result.metrics["score"].tolist() == score
    kernel = np.asarray(result.heads.trainable["kernel"])
    np.testing.assert_allclose(result.metrics["norm"], np.square(kernel).sum(axis=(1, 2)), rtol=1e-6)
    assert [row["score"] for row in trainer.ledger("score")] == score


def test_the_training_metrics_of_a_restored_head_are_those_of_its_best_step(stopped):
    restore, _, result, events, _ = stopped
    logged = {step: eval(values, {"nan": NAN}) for hook, step, _, values in events if hook == "steps"}
    for head, step in enumerate(REPORTED[restore][0]):
        assert result.metrics["accuracy_step"][head] == logged[step]["accuracy_step"][0][head]


LATER = (1, 3, 5, 6, 7, 9, 10, 12, 13)


@pytest.mark.parametrize("step", [8, 11, *(pytest.param(n, marks=pytest.mark.slow) for n in LATER)])
def test_a_fit_resumed_around_a_stop_has_the_metrics_ledger_and_events_of_the_unbroken_one(stopped, tmp_path, step):
    restore, trainer, result, events, saves = stopped
    heard = Heard(after=step)
    again, resumed = stopping_fit(tmp_path, restore, heard, ckpt_path=saves / str(step))
    assert repr(dict(resumed.metrics)) == repr(dict(result.metrics))
    assert again.ledger("score") == trainer.ledger("score")
    assert heard.events == [event for event in events if event[1] > step]
    for new, old in zip(jax.tree.leaves(resumed.heads), jax.tree.leaves(result.heads), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_model_reached_at_the_stop_itself_is_reported_with_the_epoch_that_ends_there(tmp_path):
    # At step 6 an epoch ends, and head 1 is better than the threshold for the first time: nothing is thrown away.
    class At6(Drifting):
        TABLE = np.float32([[9, 9, 9, 9], [9, 9, 9, 9], [9, 1, 9, 9], [8, 1, 8, 8], [7, 1, 7, 7]] + [[6, 1, 6, 6]] * 9)

    means = {}

    class Means(hx.Callback):
        def on_train_epoch_end(self, event):
            means[event.step] = event.metrics["accuracy_epoch"]

    stopping = EarlyStopping("score", patience=9, stopping_threshold=2, restore_best_weights=True)
    how = {"max_steps": 12, "val_check_interval": EVERY, "check_val_every_n_epoch": None, "chunk": 1, **QUIET}
    trainer = hx.Trainer(callbacks=[stopping, Means()], default_root_dir=tmp_path, **how)
    result = trainer.fit(At6("mlp"), data_of(SLICES, "mlp", rows_of("mlp"), val=rows_of("mlp")))
    assert "step 6" in result.ledger[1]["reason"]
    assert result.metrics["accuracy"][1] == means[6][1]
    assert np.isfinite(means[6][1])


# ---- on a training metric


class Sums(hx.HydraModule):
    """One number per head, of which each step subtracts the mean of its rows; the loss is linear in it."""

    def configure_model(self, key):
        return {"w": jax.numpy.zeros(())}

    def configure_optimizers(self):
        return optax.sgd(1.0)

    def training_step(self, model, batch, ctx):
        # Falls at first and rises later: by hand below.
        self.log("gap", jax.numpy.abs(model["w"] + 2.2) + 0 * batch["x"])
        return model["w"] * batch["x"]


def gaps(passes, per_pass):
    """|w + 2.2| at each step, where w falls by 0.25 a step; its mean over each epoch."""
    steps = np.abs(2.2 - 0.25 * np.arange(passes * per_pass))
    return steps.reshape(passes, per_pass).mean(axis=1)


def on_training(root, *callbacks, epochs=12, ckpt_path=None):
    x = np.full(16, 0.25, np.float32)
    data = ArrayDataModule({"x": x}, slices=hx.Slices.full(2, 16), batch_size=8)  # two steps an epoch
    trainer = hx.Trainer(max_epochs=epochs, callbacks=callbacks, default_root_dir=root, **QUIET)
    return trainer, trainer.fit(Sums(), data, ckpt_path)


@pytest.mark.parametrize("monitor", ["gap", "gap_epoch"])
def test_a_head_stops_by_the_mean_of_a_training_metric_over_epochs(tmp_path, monitor):
    stopping = EarlyStopping(monitor, patience=2, restore_best_weights=True)
    saver = ModelCheckpoint(monitor, dirpath=tmp_path / "saves")
    trainer, result = on_training(tmp_path, stopping, saver)
    means = gaps(12, 2)
    best = int(means.argmin())  # epoch 4, from 0: the steps 9 and 10
    assert result.step == 2 * (best + 3)
    np.testing.assert_allclose(stopping.best_scores, means[best], rtol=1e-6)
    np.testing.assert_allclose(saver.best_scores, means[best], rtol=1e-6)
    assert saver.best_steps.tolist() == [2 * (best + 1)] * 2
    np.testing.assert_allclose(result.heads.trainable["w"], -0.25 * 2 * (best + 1), rtol=1e-6)
    np.testing.assert_allclose(result.metrics["gap_epoch"], means[best], rtol=1e-6)
    kept = hx.Heads.load(tmp_path / "saves" / "best", Sums())
    np.testing.assert_array_equal(kept.trainable["w"], result.heads.trainable["w"])
    assert result.ledger[0]["reason"].startswith(f"{monitor} did not improve in 2 epochs (step ")


def test_a_resumed_fit_keeps_the_best_of_a_training_metric_with_its_model(tmp_path):
    how = {"mode": "min", "every_n_epochs": 1, "keep_last": 99}
    on_training(tmp_path / "whole", ModelCheckpoint("gap", dirpath=tmp_path / "whole", **how), epochs=7)
    whole = hx.Heads.load(tmp_path / "whole" / "best", Sums())
    for step in (8, 10):  # before and with the best
        folder = tmp_path / str(step)
        saver = ModelCheckpoint("gap", dirpath=folder, **how)
        on_training(folder, saver, epochs=7, ckpt_path=tmp_path / "whole" / "last" / str(step))
        np.testing.assert_array_equal(hx.Heads.load(folder / "best", Sums()).trainable["w"], whole.trainable["w"])
        assert saver.best_steps.tolist() == [10, 10]


def test_a_fit_without_such_a_monitor_averages_nothing(tmp_path):
    trainer, _ = on_training(tmp_path, epochs=1)
    assert trainer._planned.spec.traced.epoch == {}
    trainer, _ = on_training(tmp_path, EarlyStopping("train_loss"), epochs=1)
    assert list(trainer._planned.spec.traced.epoch) == ["train_loss"]
