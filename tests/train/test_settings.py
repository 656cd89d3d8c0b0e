"""Settings: what the Trainer's arguments amount to, once they are in range. What is out of range: test_bad_input.py."""

import dataclasses
import inspect

import pytest

from hydrax.errors import ArgumentError
from hydrax.train.settings import Settings
from hydrax.train.trainer import Trainer


def test_the_trainer_has_the_same_arguments_and_defaults():
    parameters = inspect.signature(Trainer).parameters
    fields = {field.name: field.default for field in dataclasses.fields(Settings)}
    assert {name: parameters[name].default for name in fields} == fields


@pytest.mark.parametrize(
    "how",
    [
        {"max_steps": 1, "max_epochs": 1, "seed": 2**32 - 1},
        {"limit_train_batches": 1, "limit_val_batches": 1.0, "limit_test_batches": 1e-9, "limit_predict_batches": 7},
        {"overfit_batches": 1},
        {"overfit_batches": 1.0},
        {"fast_dev_run": 3},
        {"fast_dev_run": 0},
        {"val_check_interval": 100, "check_val_every_n_epoch": None},
        {"val_check_interval": 0.25, "check_val_every_n_epoch": 5},
        {"gradient_clip_val": 1, "gradient_clip_algorithm": "value"},
        {"chunk": 1, "steps_per_call": 1, "accumulate_grad_batches": 1, "log_every_n_steps": 1},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"sampling": "shared"},
        {"budget": "passes", "max_epochs": 1},
        {"budget": "passes", "fast_dev_run": True},
        {"budget": "passes", "max_epochs": 1, "max_steps": 1, "sampling": "shared", "limit_train_batches": 1.0},
    ],
    ids=str,
)
def test_the_ends_of_every_range_are_allowed(how):
    settings = Settings(**how)
    assert {name: getattr(settings, name) for name in how} == how


@pytest.mark.parametrize(
    ("limit", "batches", "expected"),
    [
        pytest.param(1.0, 7, 7, id="a fraction of all"),
        pytest.param(0.5, 7, 3, id="a fraction rounds down"),
        pytest.param(0.01, 7, 1, id="a fraction is at least one batch"),
        pytest.param(1, 7, 1, id="an int is a number of batches"),
        pytest.param(5, 7, 5, id="some batches"),
        pytest.param(50, 7, 7, id="no more than there are"),
    ],
)
@pytest.mark.parametrize("stage", ["train", "val", "test", "predict"])
def test_a_limit_is_batches_or_a_fraction_by_its_type(stage, limit, batches, expected):
    assert Settings(**{f"limit_{stage}_batches": limit}).limit(stage, batches) == expected


@pytest.mark.parametrize(("fast_dev_run", "expected"), [(True, 1), (3, 3), (50, 7)])
def test_fast_dev_run_limits_every_loop(fast_dev_run, expected):
    settings = Settings(max_steps=100, limit_val_batches=2, fast_dev_run=fast_dev_run)
    assert [settings.limit(stage, 7) for stage in ("train", "val", "test", "predict")] == [expected] * 4


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"max_steps": 25}, 25),
        ({"max_epochs": 3}, 30),
        ({"max_steps": 25, "max_epochs": 3}, 25),
        ({"max_steps": 35, "max_epochs": 3}, 30),
        ({"fast_dev_run": True}, 10),
        ({"fast_dev_run": True, "max_steps": 3}, 10),
    ],
    ids=str,
)
def test_a_fit_ends_at_the_nearer_of_its_ends(how, expected):
    assert Settings(**how).total_steps(lambda epochs: 10 * epochs) == expected


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"max_epochs": 3}, None),
        ({"max_steps": 3}, None),
        ({"max_epochs": 3, "budget": "passes"}, 3),
        ({"max_epochs": 3, "max_steps": 1, "budget": "passes"}, 3),
        ({"fast_dev_run": True, "budget": "passes"}, None),
    ],
    ids=str,
)
def test_passes_are_epochs_of_each_head_where_that_is_the_budget(how, expected):
    assert Settings(**how).passes == expected


@pytest.mark.parametrize(
    ("how", "steps", "expected"),
    [
        ({"max_steps": 25}, 25, "`max_steps=25`"),
        ({"max_epochs": 3}, 30, "`max_epochs=3`"),
        # The last head may be through its passes before the last epoch is.
        ({"max_epochs": 3, "budget": "passes"}, 28, "`max_epochs=3`"),
        ({"max_epochs": 3, "max_steps": 25, "budget": "passes"}, 25, "`max_steps=25`"),
        ({"max_epochs": 3, "max_steps": 40, "budget": "passes"}, 28, "`max_epochs=3`"),
        ({"fast_dev_run": True, "budget": "passes"}, 1, "`fast_dev_run=True`"),
    ],
    ids=str,
)
def test_the_argument_that_ends_a_fit_is_named(how, steps, expected):
    assert Settings(**how).end(steps) == expected


def test_a_fit_without_an_end_is_refused():
    with pytest.raises(ArgumentError, match="A fit has no end"):
        Settings().total_steps(lambda epochs: 10 * epochs)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, 10),
        ({"val_check_interval": 0.5}, 5),
        ({"val_check_interval": 0.25}, 2),
        ({"val_check_interval": 0.001}, 1),
        ({"val_check_interval": 4}, 4),
        ({"val_check_interval": 10}, 10),
        ({"val_check_interval": 25, "check_val_every_n_epoch": None}, 25),
    ],
    ids=str,
)
def test_validations_are_so_many_batches_apart(how, expected):
    assert Settings(**how).validation_batches(batches_per_epoch=10) == expected


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 1
