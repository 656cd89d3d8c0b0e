"""Promise 5, order: what callbacks, data module and module hear, and when, is a literal list."""

import itertools
import re

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of, rows_of

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

# 17 rows in batches of 8: an epoch has three steps.
SLICES = hx.Slices.prefix([3, 17], NUM_ROWS)
HOOKS = [
    "setup",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_steps_end",
    "on_validation_start",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
    "on_test_start",
    "on_test_end",
    "on_predict_start",
    "on_predict_end",
    "on_exception",
    "on_save_checkpoint",
    "on_load_checkpoint",
    "teardown",
]
FIT = [
    "setup 0",
    "on_fit_start 0",
    "on_train_start 0",
    "on_train_epoch_start 0",
    "on_train_steps_end 2",  # steps_per_call=2; heard once the next superstep is on its way
    "on_train_steps_end 3",
    "on_validation_start 3",
    "on_validation_end 3",
    "on_train_epoch_end 3",
    "on_train_epoch_start 3",
    "on_train_steps_end 5",
    "on_train_steps_end 6",
    "on_validation_start 6",
    "on_validation_end 6",
    "on_train_epoch_end 6",
    "on_train_end 6",
    "on_fit_end 6",
    "teardown 6",
]


def recorder(heard, name="", hooks=HOOKS, **extra):
    """A callback of a class of its own that overrides these hooks, each to note name, hook and step."""

    def hook_of(hook):
        return lambda self, event: heard.append(f"{name}{hook} {event.step}")

    return type("Recorder", (hx.Callback,), {hook: hook_of(hook) for hook in hooks} | extra)()


def fit(tmp_path, *callbacks, ckpt_path=None, **how):
    settings = {"max_epochs": 2, "steps_per_call": 2, "default_root_dir": tmp_path, **how}
    trainer = hx.Trainer(callbacks=callbacks, **QUIET, **settings)
    trainer.fit(PlainClassifier(), data_of(SLICES), ckpt_path)
    return trainer


def test_the_events_of_a_fit(tmp_path):
    heard = []
    fit(tmp_path, recorder(heard))
    assert heard == FIT


def test_a_hook_of_every_step_is_heard_before_that_of_the_superstep(tmp_path):
    heard = []
    fit(
        tmp_path, recorder(heard, hooks=["on_train_batch_end", "on_train_steps_end", "on_validation_end"]), max_epochs=1
    )
    assert heard == [
        "on_train_batch_end 1",
        "on_train_steps_end 1",
        "on_train_batch_end 2",
        "on_train_steps_end 2",
        "on_train_batch_end 3",
        "on_train_steps_end 3",
        "on_validation_end 3",
    ]


DATA_METHODS = [
    *("prepare_data", "setup", "state_dict", "load_state_dict", "train_dataset", "slices", "val_dataset", "val_slices"),
    *("test_dataset", "predict_dataset", "teardown"),
]
# What a data module, a module and three callbacks (given as saver, a, b) hear together: each method with the stage that
# it is told, or with the event's step.
TOGETHER = {
    "fit": """
        data.prepare_data data.setup:fit module.setup:fit
        data.train_dataset data.slices data.val_dataset data.val_slices
        a.setup:0 b.setup:0 saver.setup:0
        a.on_fit_start:0 b.on_fit_start:0 saver.on_fit_start:0
        a.on_train_start:0 b.on_train_start:0 saver.on_train_start:0
        a.on_train_epoch_start:0 b.on_train_epoch_start:0 saver.on_train_epoch_start:0
        a.on_train_steps_end:3 b.on_train_steps_end:3 saver.on_train_steps_end:3
        a.on_validation_start:3 b.on_validation_start:3 saver.on_validation_start:3
        a.on_validation_end:3 b.on_validation_end:3 saver.on_validation_end:3
        a.on_train_epoch_end:3 b.on_train_epoch_end:3 saver.on_train_epoch_end:3
        a.on_save_checkpoint:3 b.on_save_checkpoint:3 saver.on_save_checkpoint:3
        a.state_dict b.state_dict saver.state_dict data.state_dict
        a.on_train_end:3 b.on_train_end:3 saver.on_train_end:3
        a.on_fit_end:3 b.on_fit_end:3 saver.on_fit_end:3
        a.teardown:3 b.teardown:3 saver.teardown:3
        module.teardown:fit data.teardown:fit
    """,
    "a resumed fit": """
        data.prepare_data data.setup:fit module.setup:fit data.load_state_dict
        data.train_dataset data.slices data.val_dataset data.val_slices
        a.setup:0 b.setup:0 saver.setup:0
        a.load_state_dict b.load_state_dict saver.load_state_dict
        a.on_load_checkpoint:3 b.on_load_checkpoint:3 saver.on_load_checkpoint:3
        a.on_fit_start:3 b.on_fit_start:3 saver.on_fit_start:3
        a.on_train_start:3 b.on_train_start:3 saver.on_train_start:3
        a.on_train_end:3 b.on_train_end:3 saver.on_train_end:3
        a.on_fit_end:3 b.on_fit_end:3 saver.on_fit_end:3
        a.teardown:3 b.teardown:3 saver.teardown:3
        module.teardown:fit data.teardown:fit
    """,
    "validate": """
        data.prepare_data data.setup:validate module.setup:validate
        data.val_dataset data.val_slices
        a.setup:3 b.setup:3 saver.setup:3
        a.on_validation_start:3 b.on_validation_start:3 saver.on_validation_start:3
        a.on_validation_end:3 b.on_validation_end:3 saver.on_validation_end:3
        a.teardown:3 b.teardown:3 saver.teardown:3
        module.teardown:validate data.teardown:validate
    """,
    "test": """
        data.prepare_data data.setup:test module.setup:test
        data.test_dataset
        a.setup:3 b.setup:3 saver.setup:3
        a.on_test_start:3 b.on_test_start:3 saver.on_test_start:3
        a.on_test_end:3 b.on_test_end:3 saver.on_test_end:3
        a.teardown:3 b.teardown:3 saver.teardown:3
        module.teardown:test data.teardown:test
    """,
    "predict": """
        data.prepare_data data.setup:predict module.setup:predict
        data.predict_dataset
        a.setup:3 b.setup:3 saver.setup:3
        a.on_predict_start:3 b.on_predict_start:3 saver.on_predict_start:3
        a.on_predict_end:3 b.on_predict_end:3 saver.on_predict_end:3
        a.teardown:3 b.teardown:3 saver.teardown:3
        module.teardown:predict data.teardown:predict
    """,
    "predict_held_out": """
        data.prepare_data data.setup:fit module.setup:predict
        data.train_dataset data.slices
        a.setup:3 b.setup:3 saver.setup:3
        a.on_predict_start:3 b.on_predict_start:3 saver.on_predict_start:3
        a.on_predict_end:3 b.on_predict_end:3 saver.on_predict_end:3
        a.teardown:3 b.teardown:3 saver.teardown:3
        module.teardown:predict data.teardown:fit
    """,
}


class Saver(hx.Callback):
    """Saves at each epoch's end."""

    def __init__(self, folder):
        self.folder = folder

    @property
    def is_checkpoint(self):
        return True

    def on_train_epoch_end(self, event):
        event.trainer.save_checkpoint(self.folder)


class StatefulData(ArrayDataModule):
    def state_dict(self):
        return {"drawn": 7}


def noting(heard, who, kind, methods):
    """A class that notes each call of these methods, and hands it on."""

    def method_of(name):
        def method(self, *given):
            told = [f":{getattr(one, 'step', one)}" for one in given if not isinstance(one, dict)]
            heard.append("".join([f"{who}.{name}", *told]))
            return getattr(kind, name)(self, *given)

        return method

    return type(kind.__name__, (kind,), {name: method_of(name) for name in methods})


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What was heard in each stage of a run."""
    heard, stages, folder = [], {}, tmp_path_factory.mktemp("run")
    methods = [*HOOKS, "state_dict", "load_state_dict"]
    callbacks = [noting(heard, "saver", Saver, methods)(folder)]
    callbacks += [noting(heard, who, hx.Callback, methods)() for who in ("a", "b")]
    module = noting(heard, "module", PlainClassifier, ["setup", "teardown"])()
    rows = rows_of()
    sets = {"train": rows, "val": rows, "test": rows, "predict": rows}
    data = noting(heard, "data", StatefulData, DATA_METHODS)(**sets, slices=SLICES, batch_size=8)

    def run(stage, method, **how):
        heard.clear()
        method(module, data, **how)
        # How often in a row a data module is asked for its slices is no promise.
        stages[stage] = [name for name, _ in itertools.groupby(heard)]

    how = {"max_epochs": 1, "callbacks": callbacks, "default_root_dir": folder, **QUIET}
    trainer = hx.Trainer(**how)
    run("fit", trainer.fit)
    for name in ("validate", "test", "predict", "predict_held_out"):
        run(name, getattr(trainer, name))
    run("a resumed fit", hx.Trainer(**how).fit, ckpt_path=folder)
    return stages


@pytest.mark.parametrize("stage", TOGETHER)
def test_what_module_data_module_and_callbacks_hear_together(together, stage):
    assert together[stage] == TOGETHER[stage].split()


@pytest.mark.parametrize("kind", [hx.Callback, hx.DataModule], ids=["callback", "data module"])
def test_no_hook_is_left_out_of_the_lists(kind):
    listed = {*HOOKS, *DATA_METHODS, "on_train_batch_end", "on_step"}
    hooks = {name for name in vars(kind) if re.match("on_|setup|teardown|prepare|state|load", name)}
    assert hooks - listed == set()


def test_callbacks_are_heard_in_their_order_and_those_that_save_last(tmp_path):
    heard = []
    saver = recorder(heard, "saver ", ["on_validation_end"], is_checkpoint=property(lambda self: True))
    others = [recorder(heard, name, ["on_validation_end"]) for name in ("a ", "b ")]
    fit(tmp_path, saver, *others, max_epochs=1)
    assert heard == ["a on_validation_end 3", "b on_validation_end 3", "saver on_validation_end 3"]


def test_what_others_answered_is_carried_out_before_those_that_save_hear_of_the_same_moment(tmp_path):
    seen = []
    stop = type(
        "Stop", (hx.Callback,), {"on_validation_end": lambda self, event: hx.Control(np.array([True, False]))}
    )()
    look = {"on_validation_end": lambda self, event: seen.append(event.live.tolist())}
    saver = type("Saver", (hx.Callback,), {**look, "is_checkpoint": property(lambda self: True)})()
    fit(tmp_path, saver, stop, max_epochs=1)
    assert seen == [[False, True]]


def test_the_events_around_a_checkpoint(tmp_path):
    heard = []
    hooks = ["setup", "on_save_checkpoint", "on_load_checkpoint", "on_fit_start", "on_train_epoch_start", "on_fit_end"]
    save = {"on_train_epoch_end": lambda self, event: event.trainer.save_checkpoint(tmp_path / "saved") and None}
    saver = type("Saver", (hx.Callback,), save)()
    fit(tmp_path, saver, recorder(heard, hooks=hooks), max_epochs=1)
    fit(tmp_path, recorder(heard, hooks=hooks), ckpt_path=tmp_path / "saved")
    assert heard == [
        "setup 0",
        "on_fit_start 0",
        "on_train_epoch_start 0",
        "on_save_checkpoint 3",
        "on_fit_end 3",
        "setup 0",
        "on_load_checkpoint 3",
        "on_fit_start 3",
        "on_train_epoch_start 3",
        "on_fit_end 6",
    ]


def test_the_events_after_an_error(tmp_path):
    heard = []

    def fail(self, event):
        raise ZeroDivisionError("a reason")

    culprit = type("Culprit", (hx.Callback,), {"on_validation_end": fail})()
    with pytest.raises(hx.CallbackError, match="Culprit.on_validation_end at step 3. Got ZeroDivisionError: a reason"):
        fit(tmp_path, recorder(heard), culprit)
    assert heard == [*FIT[:8], "on_exception 3", "teardown 3"]


def test_a_fit_that_callbacks_end_between_validations_validates_once_more(tmp_path):
    heard = []
    stop = {"on_train_steps_end": lambda self, event: hx.Control(stop=np.full(2, event.step == 1))}
    stopper = type("Stopper", (hx.Callback,), stop)()
    hooks = ["on_train_steps_end", "on_validation_end", "on_train_epoch_end", "on_train_end"]
    fit(tmp_path, stopper, recorder(heard, hooks=hooks), steps_per_call=1)
    # The second superstep was on its way when the first one's metrics were heard.
    assert heard == [
        "on_train_steps_end 1",
        "on_train_steps_end 2",
        "on_validation_end 2",
        "on_train_epoch_end 2",
        "on_train_end 2",
    ]
