"""Promise 5, order: what callbacks hear, and when, is a literal list."""

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of

import hydrax as hx

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
    "on_train_steps_end 2",  # log_every_n_steps=2; heard once the next superstep is on its way
    "on_train_steps_end 3",
    "on_validation_start 3",
    "on_validation_end 3",
    "on_train_epoch_end 3",
    "on_train_epoch_start 3",
    "on_train_steps_end 4",
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
    settings = {"max_epochs": 2, "log_every_n_steps": 2, "default_root_dir": tmp_path, **how}
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    heard = []
    return fit(tmp_path_factory.mktemp("run"), recorder(heard), max_epochs=1), heard


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("validate", ["setup 3", "on_validation_start 3", "on_validation_end 3", "teardown 3"]),
        ("test", ["setup 3", "on_test_start 3", "on_test_end 3", "teardown 3"]),
        ("predict", ["setup 3", "on_predict_start 3", "on_predict_end 3", "teardown 3"]),
    ],
)
def test_the_events_of_an_evaluation(trained, method, expected):
    trainer, heard = trained
    heard.clear()
    getattr(trainer, method)()
    assert heard == expected


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
    fit(tmp_path, stopper, recorder(heard, hooks=hooks), log_every_n_steps=1)
    # The second superstep was on its way when the first one's metrics were heard.
    assert heard == [
        "on_train_steps_end 1",
        "on_train_steps_end 2",
        "on_validation_end 2",
        "on_train_epoch_end 2",
        "on_train_end 2",
    ]
