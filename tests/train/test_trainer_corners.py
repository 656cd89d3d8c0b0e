"""What happens at the corners of a run: resumes, stops, errors in hooks, evaluation beside and after a fit."""

import clu.metrics
import numpy as np
import pytest
from heads_under_test import QUIET, Classifier, PlainClassifier, data_of

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint

SLICES = hx.Slices.prefix([8, 16, 24], num_rows=40)


def trainer(tmp_path, *callbacks, **how):
    return hx.Trainer(**{**QUIET, "max_steps": 6, "default_root_dir": tmp_path, **how}, callbacks=list(callbacks))


class At(hx.Callback):
    """Answers one hook."""

    def __init__(self, hook, answer):
        self.hook, self.answer, self.heard = hook, answer, []

    def on_train_epoch_start(self, event):
        return self._hear("on_train_epoch_start", event)

    def on_train_epoch_end(self, event):
        return self._hear("on_train_epoch_end", event)

    def on_test_start(self, event):
        return self._hear("on_test_start", event)

    def on_exception(self, event):
        return self._hear("on_exception", event)

    def teardown(self, event):
        return self._hear("teardown", event)

    def _hear(self, hook, event):
        self.heard.append(hook)
        return self.answer(event) if hook == self.hook else None


def stop_all(event):
    return hx.Control(stop=np.ones(3, bool)) if event.step == 3 else None


def fail(event):
    raise RuntimeError("on purpose")


def test_an_epoch_s_mean_of_a_stopped_head_stays_what_it_was(tmp_path):
    stop_first = At("on_train_epoch_end", lambda e: hx.Control(stop=np.arange(3) == 0) if e.step == 3 else None)
    means = {}
    keep = At("on_train_epoch_end", lambda e: means.setdefault(e.step, e.metrics["accuracy_epoch"]) is None or None)
    trainer(tmp_path, stop_first, keep, max_steps=9).fit(PlainClassifier(), data_of(SLICES))
    assert means[9][0] == means[3][0]
    assert np.isfinite(means[9]).all()


def test_heads_stopped_at_an_epoch_s_end_are_validated_once_more(tmp_path):
    run = trainer(tmp_path, At("on_train_epoch_end", stop_all), max_steps=30, check_val_every_n_epoch=5)
    result = run.fit(PlainClassifier(), data_of(SLICES))
    assert result.step == 3
    assert result.metrics["val_loss"].shape == (3,)


def test_heads_stopped_at_an_epoch_s_start_make_no_further_step(tmp_path):
    result = trainer(tmp_path, At("on_train_epoch_start", stop_all), max_steps=30).fit(
        PlainClassifier(), data_of(SLICES)
    )
    assert result.step == 3


def test_a_finished_run_taken_up_again_still_has_its_metrics(tmp_path):
    first = trainer(tmp_path, enable_checkpointing=True).fit(PlainClassifier(), data_of(SLICES))
    again = trainer(tmp_path, enable_checkpointing=True).fit(PlainClassifier(), data_of(SLICES), ckpt_path="auto")
    assert again.metrics.keys() == first.metrics.keys()
    np.testing.assert_array_equal(again.metrics["val_loss"], first.metrics["val_loss"])


def test_a_resume_with_another_hyper_parameter_is_refused_by_name(tmp_path):
    trainer(tmp_path, enable_checkpointing=True).fit(PlainClassifier(lr=1e-3), data_of(SLICES))
    with pytest.raises(hx.CheckpointError, match=r"hparams\.lr\. Got 0\.001 there, expected 0\.1 as here"):
        trainer(tmp_path).fit(PlainClassifier(lr=0.1), data_of(SLICES), ckpt_path="last")


class Wide(hx.Callback):
    """State in widths that jax narrows, and of NumPy's own types."""

    def __init__(self):
        self.state = {"third": np.array([1 / 3]), "large": np.array([2**40]), "one": np.float32(1.5), "list": [1, None]}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_a_callback_s_state_comes_back_in_its_own_width(tmp_path):
    trainer(tmp_path, Wide(), enable_checkpointing=True).fit(PlainClassifier(), data_of(SLICES))
    wide = Wide()
    wide.state = {}
    trainer(tmp_path, wide, max_steps=7).fit(PlainClassifier(), data_of(SLICES), ckpt_path="last")
    assert (wide.state["third"].item(), wide.state["large"].item()) == (1 / 3, 2**40)
    assert (wide.state["one"], wide.state["list"]) == (1.5, [1, None])


def test_a_callback_s_state_that_no_file_can_hold_is_named(tmp_path):
    bad = Wide()
    bad.state = {"who": object()}
    with pytest.raises(hx.CallbackError, match=r"Wide\.state_dict, 'who'\. Got object, expected an array"):
        trainer(tmp_path, bad, enable_checkpointing=True).fit(PlainClassifier(), data_of(SLICES))


def test_a_step_of_another_run_is_not_passed_off_as_this_one_s(tmp_path):
    first, second = (trainer(tmp_path, seed=seed) for seed in (0, 1))
    first.fit(PlainClassifier(), data_of(SLICES))
    second.fit(PlainClassifier(), data_of(SLICES))
    first.save_checkpoint(tmp_path / "mine")
    first.save_checkpoint(tmp_path / "mine")
    with pytest.raises(hx.CheckpointError, match=r"holds checkpoints of another run"):
        second.save_checkpoint(tmp_path / "mine")


class Silent(PlainClassifier):
    def validation_step(self, model, batch, ctx):
        """Logs nothing."""


def test_a_validation_that_logs_nothing_is_no_error(tmp_path):
    assert "val_loss" not in trainer(tmp_path).fit(Silent(), data_of(SLICES)).metrics


def test_slices_that_change_from_call_to_call_are_refused(tmp_path):
    data = data_of(SLICES)
    data.slices = lambda: hx.Slices.random_subset([5, 6], 40, seed=int(np.random.default_rng().integers(1 << 30)))
    data.slices.__name__ = "slices"
    with pytest.raises(hx.SliceError, match=r"change from call to call: DataModule\.slices\."):
        trainer(tmp_path).fit(PlainClassifier(), data)


class Metered(PlainClassifier):
    def training_step(self, model, batch, ctx):
        mean = clu.metrics.Average.from_model_output(batch["x"].mean(axis=1))
        self.log("clu", mean, on_step=False, on_epoch=True)
        self.log("own", batch["x"].mean(axis=1), on_step=False, on_epoch=True)
        return super().training_step(model, batch, ctx)


def test_a_metric_does_not_count_the_micro_batches_that_a_window_lacks(tmp_path):
    run = trainer(tmp_path, max_epochs=1, max_steps=None, accumulate_grad_batches=2)
    metrics = run.fit(Metered(), data_of(hx.Slices.full(2, 40))).metrics
    np.testing.assert_allclose(metrics["clu"], metrics["own"], rtol=1e-5)


def test_every_callback_hears_of_an_error_even_if_one_of_them_raises_again(tmp_path):
    first, second = At("on_exception", fail), At("on_train_epoch_end", fail)
    with pytest.raises(hx.CallbackError, match="At.on_train_epoch_end at step 3"):
        trainer(tmp_path, first, second).fit(PlainClassifier(), data_of(SLICES))
    assert second.heard[-2:] == ["on_exception", "teardown"]


def test_an_error_while_testing_is_heard_too(tmp_path):
    callback = At("on_test_start", fail)
    run = trainer(tmp_path, callback)
    run.fit(PlainClassifier(), data_of(SLICES))
    callback.heard.clear()
    with pytest.raises(hx.CallbackError, match="on_test_start"):
        run.test()
    assert callback.heard == ["on_test_start", "on_exception", "teardown"]


def test_what_a_test_found_stands_among_the_callback_metrics(tmp_path):
    run = trainer(tmp_path)
    run.fit(PlainClassifier(), data_of(SLICES))
    found = run.test(verbose=False)
    np.testing.assert_array_equal(run.callback_metrics["test_loss"], found["test_loss"])


def test_some_heads_are_tested_with_their_own_per_head_values(tmp_path):
    run = trainer(tmp_path)
    result = run.fit(Classifier(lr=hx.PerHead([1e-3, 1e-2, 1e-1])), data_of(SLICES))
    whole = run.test(verbose=False)["test_loss"]
    np.testing.assert_array_equal(run.test(heads=result.heads[[2, 0]], verbose=False)["test_loss"], whole[[2, 0]])


def test_a_trial_run_saves_nothing_even_with_a_saver_of_the_user_s_own(tmp_path):
    trainer(tmp_path, ModelCheckpoint(dirpath=tmp_path / "mine"), fast_dev_run=True).fit(
        PlainClassifier(), data_of(SLICES)
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, 0.0])
def test_a_validation_limit_of_zero_switches_validation_off(tmp_path, limit):
    assert "val_loss" not in trainer(tmp_path, limit_val_batches=limit).fit(PlainClassifier(), data_of(SLICES)).metrics


def test_best_is_found_by_a_trainer_that_did_not_fit_it(tmp_path):
    fitted = trainer(tmp_path, ModelCheckpoint(monitor="val_loss"))
    result = fitted.fit(PlainClassifier(), data_of(SLICES))
    found = trainer(tmp_path).validate(PlainClassifier(), data_of(SLICES), ckpt_path="best", verbose=False)["val_loss"]
    assert (found <= result.metrics["val_loss"]).all()


def test_a_folder_that_cannot_be_made_stops_no_training(tmp_path):
    (tmp_path / "file").write_text("")
    run = trainer(tmp_path, logger=True, default_root_dir=tmp_path / "file")
    assert run.fit(PlainClassifier(), data_of(SLICES)).log_dir is None


def test_asking_for_the_folder_after_a_fit_that_needed_none_makes_none(tmp_path):
    run = trainer(tmp_path)
    run.fit(PlainClassifier(), data_of(SLICES))
    assert (run.log_dir, list(tmp_path.iterdir())) == (None, [])


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_heads_of_every_precision_are_saved_and_read_back_in_their_own_width(tmp_path, precision):
    run = trainer(tmp_path, precision=precision)
    result = run.fit(PlainClassifier(), data_of(SLICES))
    result.heads.save(tmp_path / "heads")
    found = hx.Heads.load(tmp_path / "heads", PlainClassifier())
    for name in ("kernel", "bias"):
        assert found.trainable[name].dtype == result.heads.trainable[name].dtype
        np.testing.assert_array_equal(found.trainable[name], result.heads.trainable[name])
    assert found[1]["kernel"].dtype == found.trainable["kernel"].dtype


def test_what_callbacks_hear_cannot_be_written_to(tmp_path):
    stop = At("on_train_epoch_end", lambda e: hx.Control(stop=np.arange(3) == 0))
    writes = At("on_train_epoch_start", lambda e: e.live.__setitem__(0, True) if e.step else None)
    with pytest.raises(hx.CallbackError, match="read-only"):
        trainer(tmp_path, stop, writes).fit(PlainClassifier(), data_of(SLICES))


def test_a_callback_may_ask_in_setup_for_the_slots_of_a_step(tmp_path):
    class Asks(hx.Callback):
        def setup(self, event):
            self.slots = event.trainer.slots_per_step

    asks = Asks()
    trainer(tmp_path, asks, max_steps=1, accumulate_grad_batches=2).fit(PlainClassifier(), data_of(SLICES))
    assert asks.slots == 2 * data_of(SLICES).batch_size


def test_a_callback_s_state_may_be_big_endian(tmp_path):
    class Keeps(hx.Callback):
        def state_dict(self):
            return {"seen": np.arange(3, dtype=">i4")}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    keeps, how = Keeps(), {"enable_checkpointing": True, "max_steps": 1}
    trainer(tmp_path, keeps, **how).fit(PlainClassifier(), data_of(SLICES))
    trainer(tmp_path, keeps, **how).fit(PlainClassifier(), data_of(SLICES), ckpt_path="last")
    np.testing.assert_array_equal(keeps.seen, [0, 1, 2])
