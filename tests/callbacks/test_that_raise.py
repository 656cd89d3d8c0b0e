"""A callback that raises, in each hook: it is named, all others are called as usual, and the run can be resumed.

Before the culprit the run has a callback that returns Controls and one that counts its patience, and after it one that
records its calls. Wherever the culprit raises, the resumed fit must end like one that was never interrupted.
"""

import functools

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, differing, named_arrays, run

import hydrax as hx
from hydrax.callbacks import CSVLogger, EarlyStopping, ModelCheckpoint
from hydrax.errors import CallbackError

HEADS, STEPS, AT = 3, 12, 6
SLICES = hx.Slices.prefix([40, 17, 9], NUM_ROWS)  # 5 batches of 8 an epoch
# One step per superstep, and a validation every two: callbacks hear of odd steps while the next one is running.
HOW = {"max_steps": STEPS, "val_check_interval": 2, "check_val_every_n_epoch": None, "steps_per_call": 1}
# Hooks, and a step at which each is called.
IN_TRAINING = {
    "on_train_epoch_start": 5,
    "on_train_steps_end": 3,
    "on_validation_start": AT,
    "on_validation_end": AT,
    "on_train_epoch_end": 5,
    "on_save_checkpoint": 4,
    "next_due": 3,
    "on_train_end": STEPS,
}
BEFORE = ("setup", "on_fit_start", "on_train_start")
AT_THE_END = ("on_fit_end", "teardown")


class Answers(hx.Callback):
    """Stops one head and keeps the models of another at validations."""

    def on_validation_end(self, event):
        return hx.Control(stop=np.arange(HEADS) == 2, snapshot=np.arange(HEADS) == 0) if event.step == AT else None


class Counts(hx.Callback):
    """Records the steps at which each hook was called, over all parts of a run."""

    def __init__(self):
        self.told = {"steps": [], "validation": [], "epochs": []}
        self.errors, self.torn_down = [], 0

    def on_train_steps_end(self, event):
        self.told["steps"] += event.steps.tolist()

    def on_validation_end(self, event):
        self.told["validation"] += [event.step]

    def on_train_epoch_end(self, event):
        self.told["epochs"] += [event.epoch]

    def on_exception(self, event):
        self.errors.append(event.error)

    def teardown(self, event):
        self.torn_down += 1

    def state_dict(self):
        return self.told

    def load_state_dict(self, state):
        self.told = {name: list(steps) for name, steps in state.items()}


def culprit(hook, at, error=RuntimeError):
    """Raises in one hook at one step, and records all other steps."""

    def raises(self, subject):
        step = getattr(subject, "step", subject)
        if error and step == self.at:
            raise error("no more")
        self.heard.append(step)

    class Culprit(hx.Callback):
        def __init__(self):
            self.at, self.heard = at, []

        def state_dict(self):
            return {"heard": self.heard}

        def load_state_dict(self, state):
            self.heard = list(state["heard"])

    setattr(Culprit, hook, raises)
    return Culprit()


def fit(root, middle=(), ckpt_path=None, **how):
    counts, stopping = Counts(), EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    saves = ModelCheckpoint("val_loss", every_n_train_steps=4)
    callbacks = [Answers(), stopping, *middle, counts, CSVLogger(), saves]
    fitted = run(
        PlainClassifier("mlp", hx.PerHead([0.01, 0.5, 0.1])),
        data_of(SLICES),
        ckpt_path,
        callbacks,
        **{**HOW, "default_root_dir": root, **how},
    )
    arrays = {name: array for name, array in fitted.arrays.items() if not name.startswith("step.")}
    for callback in (callbacks[0], stopping, saves):
        kept = fitted.trainer.snapshots_of(callback)
        arrays |= {f"{type(callback).__name__}.{n}": a for n, a in named_arrays(kept).items()}
    arrays |= {"best": stopping.best_scores, "waited": stopping.wait_counts, "saved best": saves.best_scores}
    return fitted, arrays | {f"told.{name}": np.array(steps) for name, steps in counts.told.items()}


@functools.cache
def unbroken(root, **how):
    return fit(root, **how)[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return unbroken(tmp_path_factory.mktemp("whole"))


def test_the_run_has_something_to_lose(whole):
    assert whole["told.steps"].tolist() == list(range(1, STEPS + 1))
    assert whole["told.validation"].tolist()[-2:] == [10, 12]
    assert 0 < whole["waited"].sum()


def cases(quick):
    marks = {True: [], False: pytest.mark.slow}
    return [pytest.param(hook, at, marks=marks[hook in quick]) for hook, at in IN_TRAINING.items()]


@pytest.mark.parametrize(("hook", "at"), cases(("on_train_steps_end", "on_validation_end")))
def test_a_run_whose_callback_raised_ends_with_the_same_bits_and_all_told_once(tmp_path, whole, hook, at):
    with pytest.raises(CallbackError, match=rf"Culprit\.{hook} at step {at}\. Got RuntimeError: no more") as failed:
        fit(tmp_path, [culprit(hook, at)])
    assert type(failed.value.__cause__) is RuntimeError
    assert differing(fit(tmp_path, ckpt_path="last")[1], whole) == []


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
def test_a_resumed_fit_tells_the_callback_again_what_it_raised_at(tmp_path, hook):
    untroubled, mended = culprit(hook, IN_TRAINING[hook], error=None), culprit(hook, IN_TRAINING[hook], error=None)
    fit(tmp_path / "untroubled", [untroubled])
    with pytest.raises(CallbackError):
        fit(tmp_path, [culprit(hook, IN_TRAINING[hook])])
    fit(tmp_path, [mended], ckpt_path="last")
    assert mended.heard == untroubled.heard != []


@pytest.mark.parametrize("hook", [BEFORE[0], *(pytest.param(hook, marks=pytest.mark.slow) for hook in BEFORE[1:])])
def test_a_callback_that_raises_before_training_costs_nothing_but_the_start(tmp_path, whole, hook):
    with pytest.raises(CallbackError, match=rf"Culprit\.{hook} at step 0\. Got RuntimeError: no more"):
        fit(tmp_path, [culprit(hook, 0)])
    assert differing(fit(tmp_path, ckpt_path="auto")[1], whole) == []


@pytest.mark.parametrize("hook", [AT_THE_END[0], pytest.param(AT_THE_END[1], marks=pytest.mark.slow)])
def test_a_callback_that_raises_at_the_end_keeps_neither_last_nor_best_nor_the_ledger_from_being_saved(tmp_path, hook):
    saves = ModelCheckpoint("val_loss", dirpath=tmp_path / "mine")
    with pytest.raises(CallbackError, match=rf"Culprit\.{hook} at step {STEPS}"):
        run(
            PlainClassifier("mlp", 0.1), data_of(SLICES), None, [culprit(hook, STEPS), saves],
            **HOW, default_root_dir=tmp_path,
        )  # fmt: skip
    assert saves.last_model_path == tmp_path / "mine" / "last" / str(STEPS)
    assert hx.Heads.load(saves.best_model_path, PlainClassifier()).ids.tolist() == [0, 1, 2]
    assert (tmp_path / "mine" / "heads.csv").read_text().count("\n") == HEADS + 1


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["state_dict", "load_state_dict"])
def test_a_callback_whose_state_cannot_be_had_is_named(tmp_path, hook):
    class Culprit(hx.Callback): ...

    setattr(Culprit, hook, lambda *_: 1 // 0)
    fit(tmp_path, [culprit("on_fit_end", at=0)], max_steps=4)
    with pytest.raises(CallbackError, match=rf"Culprit\.{hook} at step (4|8)\. Got ZeroDivisionError"):
        fit(tmp_path, [Culprit()], ckpt_path="last")
    assert fit(tmp_path, ckpt_path="last")[0].result.step == STEPS


def test_on_exception_and_teardown_of_all_run_whatever_others_raise_there(tmp_path, caplog):
    class Clumsy(hx.Callback):
        """Raises in every hook at the end of a fit."""

        def on_exception(self, event):
            raise ValueError("not this either")

        def teardown(self, event):
            raise OSError("nor this")

    first, behind, failing = Counts(), Counts(), culprit("on_train_steps_end", 3)
    with pytest.raises(CallbackError, match=r"Culprit\.on_train_steps_end at step 3"):
        fit(tmp_path, [first, Clumsy(), failing, behind])
    assert [(len(one.errors), one.torn_down) for one in (first, behind)] == [(1, 1), (1, 1)]
    assert isinstance(behind.errors[0], CallbackError)
    assert "Clumsy.on_exception at step" in caplog.text and "Clumsy.teardown at step" in caplog.text
    assert fit(tmp_path, ckpt_path="last", max_steps=5)[0].result.step == 5


@pytest.mark.slow
def test_a_callback_that_raises_at_single_steps_keeps_no_superstep_from_the_others(tmp_path, whole):
    with pytest.raises(CallbackError, match=r"Culprit\.on_train_batch_end at step 3"):
        fit(tmp_path, [culprit("on_train_batch_end", 3)])
    assert differing(fit(tmp_path, ckpt_path="last")[1], whole) == []
