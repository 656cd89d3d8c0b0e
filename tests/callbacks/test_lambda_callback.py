"""LambdaCallback overrides the given hooks and no others."""

import numpy as np
import pytest

import hydrax as hx
from hydrax.callbacks import LambdaCallback
from hydrax.errors import ArgumentError
from hydrax.loop.callback import overrides


def test_a_function_hears_its_event_and_its_answer_counts():
    answer = hx.Control(stop=np.ones(3, bool))
    heard = []
    callback = LambdaCallback(on_validation_end=lambda event: heard.append(event) or answer)
    event = hx.Event(None, "fit", 4, 1)
    assert callback.on_validation_end(event) is answer
    assert heard == [event]


def test_only_the_given_hooks_are_overridden():
    callback = LambdaCallback(on_fit_end=print)
    assert overrides(callback, "on_fit_end")
    assert not overrides(callback, "on_train_batch_end")
    assert isinstance(callback, LambdaCallback)
    assert type(callback).__name__ == "LambdaCallback"


def test_two_of_them_do_not_share_hooks():
    first, second = LambdaCallback(on_fit_end=print), LambdaCallback(setup=print)
    assert not overrides(first, "setup")
    assert not overrides(second, "on_fit_end")


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"on_fit_ended": print}, "argument: on_fit_ended.*the nearest name is on_fit_end"),
        ({"on_validation_epoch_end": print}, "argument: on_validation_epoch_end.*use `on_validation_end`"),
        ({"on_step": print}, "argument: on_step"),
        ({"on_fit_end": 3}, r"LambdaCallback\(on_fit_end=.*Got 3, expected a function"),
    ],
)
def test_what_is_no_hook_is_refused(hooks, message):
    with pytest.raises(ArgumentError, match=message):
        LambdaCallback(**hooks)
