"""Dispatcher: the order of callbacks, what their answers add up to, and what becomes of their errors."""

import types

import numpy as np
import pytest

from hydrax.errors import ArgumentError, CallbackError, CheckpointError
from hydrax.loop.callback import Callback, Control
from hydrax.loop.dispatch import Dispatcher, check_callbacks, keys

HEADS = 3


def event(**fields):
    return types.SimpleNamespace(**{"step": 7, "live": np.ones(HEADS, bool), **fields})


class Hears(Callback):
    """Takes down what it hears, and answers."""

    def __init__(self, name="", heard=None, answer=None):
        self.name, self.heard, self.answer = name, [] if heard is None else heard, answer

    def on_train_start(self, event):
        self.heard.append((self.name, event))
        return self.answer


class Saves(Hears):
    @property
    def is_checkpoint(self):
        return True


class Raises(Callback):
    def __init__(self, error):
        self.error = error

    def on_train_start(self, event):
        raise self.error


class Due(Callback):
    def __init__(self, due):
        self.due = due

    def next_due(self, step):
        return self.due


def flags(*heads):
    return np.isin(np.arange(HEADS), heads)


def test_callbacks_hear_in_the_order_given_and_those_that_save_last():
    heard = []
    Dispatcher([Saves("save", heard), Hears("a", heard), Saves("save too", heard), Hears("b", heard)], event)(
        "on_train_start"
    )
    assert [name for name, _ in heard] == ["a", "b", "save", "save too"]


def test_all_callbacks_hear_one_event_with_the_fields_of_the_moment():
    heard = []
    Dispatcher([Hears("a", heard), Hears("b", heard)], event)("on_train_start", step=9)
    assert heard[0][1] is heard[1][1]
    assert heard[0][1].step == 9


def test_no_event_is_made_for_a_hook_that_nobody_overrides():
    answers = Dispatcher([Hears()], lambda **fields: pytest.fail("an event was made"))("on_validation_end")
    assert answers == []


def test_answers_come_with_the_callback_that_gave_them_and_with_arrays():
    silent, stops, keeps = (
        Hears(),
        Hears(answer=Control(stop=[True, False, True])),
        Hears(answer=Control(snapshot=flags(1))),
    )
    answers = Dispatcher([silent, stops, keeps], event)("on_train_start")
    assert [callback for callback, _ in answers] == [stops, keeps]
    np.testing.assert_array_equal(answers[0][1].stop, flags(0, 2))
    np.testing.assert_array_equal(answers[1][1].snapshot, flags(1))
    assert (answers[0][1].snapshot, answers[1][1].stop) == (None, None)


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (Control(stop=np.ones(2, bool)), r"bool\[2\], expected None or Control\(stop=bool\[3\]\)"),
        (Control(snapshot=np.ones(3, int)), r"int64\[3\], expected None or Control\(snapshot=bool\[3\]\)"),
        (Control(restore=np.ones(2, bool)), r"bool\[2\], expected None or Control\(restore=bool\[3\]\)"),
        (
            Control(stop=np.ones(3, bool), reason=["a"]),
            r"1 reasons, expected None or Control\(reason=a string or 3",
        ),
        (np.ones(3, bool), "ndarray"),
    ],
    ids=["length", "dtype", "restore", "reasons", "type"],
)
def test_an_answer_in_another_form_is_refused_with_class_and_hook(answer, got):
    with pytest.raises(CallbackError, match=rf"invalid value: Hears\.on_train_start\. Got {got}"):
        Dispatcher([Hears(answer=answer)], event)("on_train_start")


def test_an_error_names_class_hook_and_step_and_keeps_its_cause():
    cause = OSError("disk full")
    with pytest.raises(CallbackError, match=r"Raises\.on_train_start at step 7\. Got OSError: disk full") as failed:
        Dispatcher([Raises(cause)], event)("on_train_start")
    assert failed.value.__cause__ is cause


def test_an_error_of_hydrax_stays_what_it_is():
    error = CheckpointError("said already")
    with pytest.raises(CheckpointError) as failed:
        Dispatcher([Raises(error)], event)("on_train_start")
    assert failed.value is error


def test_ctrl_c_goes_through():
    with pytest.raises(KeyboardInterrupt):
        Dispatcher([Raises(KeyboardInterrupt())], event)("on_train_start")


def test_callbacks_after_one_that_failed_hear_all_the_same():
    heard = []
    with pytest.raises(CallbackError):
        Dispatcher([Raises(OSError()), Hears("b", heard)], event)("on_train_start")
    assert [name for name, _ in heard] == ["b"]


def test_of_two_that_fail_the_first_is_raised_and_the_other_logged(caplog):
    with pytest.raises(CallbackError, match="Got OSError: first"):
        Dispatcher([Raises(OSError("first")), Raises(OSError("second"))], event)("on_train_start")
    assert "Raises.on_train_start at step 7. Got OSError: second" in caplog.text


def test_what_the_others_answered_comes_with_the_failures():
    stops, fails = Hears(answer=Control(stop=flags(1))), Raises(OSError())
    answers, failures = Dispatcher([fails, stops], event).hear("on_train_start")
    assert [callback for callback, _ in answers] == [stops]
    assert [failure.callback for failure in failures] == [fails]


def test_only_some_hear_where_they_are_named():
    heard = []
    a, b = Hears("a", heard), Hears("b", heard)
    Dispatcher([a, b], event).hear("on_train_start", only=[b])
    assert [name for name, _ in heard] == ["b"]


@pytest.mark.parametrize(("hook", "kind"), [("on_train_start", CheckpointError), ("on_train_end", CallbackError)])
def test_an_error_of_hydrax_is_the_callback_s_once_training_has_begun(hook, kind):
    fails = types.new_class("Fails", (Callback,), exec_body=lambda names: names.update({hook: Raises.on_train_start}))()
    fails.error = CheckpointError("said already")
    with pytest.raises(kind, match="said already") as failed:
        Dispatcher([fails], event)(hook)
    assert type(failed.value) is kind


def test_an_error_of_next_due_names_it():
    class Late(Callback):
        def next_due(self, step):
            return 1 // 0

    with pytest.raises(CallbackError, match=r"Late\.next_due at step 7\. Got ZeroDivisionError"):
        Dispatcher([Late()], event).next_due(7)


@pytest.mark.parametrize(
    ("dues", "expected"),
    [([], None), ([None], None), ([9, 8, None], 8), ([7, 12], 12), ([3, 7], None)],
    ids=str,
)
def test_the_nearest_step_ahead_is_due(dues, expected):
    assert Dispatcher([Due(due) for due in dues], event).next_due(7) == expected


def test_a_hook_is_heard_where_a_class_overrides_it():
    dispatcher = Dispatcher([Callback(), Hears()], event)
    assert [dispatcher.hears("on_train_start"), dispatcher.hears("on_fit_end")] == [True, False]


def test_callbacks_of_one_class_get_numbers():
    first, second, third = Hears(), Due(1), Hears()
    assert list(keys([first, second, third])) == ["Hears", "Due", "Hears#2"]
    assert list(keys([first, second, third]).values()) == [first, second, third]


def test_one_callback_or_none_is_a_list_too():
    callback = Callback()
    assert check_callbacks(None) == []
    assert check_callbacks(callback) == [callback]
    assert check_callbacks((callback,)) == [callback]


def test_a_hook_that_no_event_calls_is_refused_with_the_nearest_name():
    class Misspelt(Callback):
        def on_train_step_end(self, event): ...

    with pytest.raises(ArgumentError, match=r"Misspelt\.on_train_step_end\..*nearest is on_train_steps_end"):
        check_callbacks(Misspelt())
