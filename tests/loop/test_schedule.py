"""Schedule: when epochs, validations and supersteps end, by tables made by hand."""

import pytest

from hydrax.loop.schedule import Schedule


def schedule(**fields):
    plain = {"batches_per_epoch": 5, "accumulate": 1, "max_steps": 100, "val_every_batches": None}
    return Schedule(**{**plain, "val_every_epochs": 1, "log_every": 50, **fields})


def cuts(calendar, limit=50, dues=()):
    """Steps at which supersteps end, from the first to the last."""
    ends = [0]
    while ends[-1] < calendar.max_steps:
        due = min((due for due in dues if due > ends[-1]), default=None)
        ends.append(ends[-1] + calendar.superstep(ends[-1], limit, due))
    return ends[1:]


@pytest.mark.parametrize(
    ("batches", "accumulate", "steps_per_epoch", "consumed"),
    [
        (5, 1, 5, [0, 1, 2, 3, 4, 5, 6, 7]),
        (5, 2, 3, [0, 2, 4, 5, 7, 9, 10, 12]),
        (5, 3, 2, [0, 3, 5, 8, 10, 13, 15, 18]),
        (6, 3, 2, [0, 3, 6, 9, 12, 15, 18, 21]),
        (2, 4, 1, [0, 2, 4, 6, 8, 10, 12, 14]),
        (1, 1, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_batches_consumed_by_step(batches, accumulate, steps_per_epoch, consumed):
    calendar = schedule(batches_per_epoch=batches, accumulate=accumulate)
    assert calendar.steps_in(0) == calendar.steps_in(7) == steps_per_epoch
    assert [calendar.batches(step) for step in range(8)] == consumed
    assert calendar.counts(0, 7) == [b - a for a, b in zip(consumed, consumed[1:], strict=False)]


def test_epochs_and_their_ends():
    calendar = schedule(batches_per_epoch=5, accumulate=2)
    assert [calendar.epoch(step) for step in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [step for step in range(10) if calendar.is_epoch_end(step)] == [0, 3, 6, 9]


def test_a_step_takes_the_batches_of_its_epoch():
    # 5 batches an epoch: 2, 2, 1 in epochs 0 and 1, one each in epoch 2, then 4, 1.
    calendar = schedule(batches_per_epoch=5, accumulate=((0, 2), (2, 1), (3, 4)))
    consumed = [0, 2, 4, 5, 7, 9, 10, 11, 12, 13, 14, 15, 19, 20, 24, 25]
    assert [calendar.batches(step) for step in range(16)] == consumed
    assert [calendar.epoch(step) for step in range(16)] == [0] * 3 + [1] * 3 + [2] * 5 + [3, 3, 4, 4, 5]
    assert [step for step in range(16) if calendar.is_epoch_end(step)] == [0, 3, 6, 11, 13, 15]
    assert [calendar.steps_in(epoch) for epoch in range(5)] == [3, 3, 5, 2, 2]
    assert [calendar.steps_of(batches) for batches in (5, 7, 10, 12, 15, 19, 25)] == [3, 4, 6, 8, 11, 12, 15]
    assert calendar.longest_superstep == 5


@pytest.mark.parametrize(
    ("fields", "validations"),
    [
        ({"val_every_batches": None}, []),
        ({"val_every_batches": 5}, [5, 10, 15]),
        ({"val_every_batches": 2}, [2, 4, 7, 9, 12, 14]),
        ({"val_every_batches": 3}, [3, 8, 13]),
        ({"val_every_batches": 1}, list(range(1, 16))),
        ({"val_every_batches": 5, "val_every_epochs": 2}, [10]),
        ({"val_every_batches": 2, "val_every_epochs": 2}, [7, 9]),
        ({"val_every_batches": 5, "val_every_epochs": 3}, [15]),
        # Across epochs.
        ({"val_every_batches": 4, "val_every_epochs": None}, [4, 8, 12]),
        ({"val_every_batches": 7, "val_every_epochs": None}, [7, 14]),
        # Three steps an epoch, of 2, 2 and 1 batches: the validation follows the step that completes the batch.
        ({"val_every_batches": 2, "accumulate": 2}, [1, 2, 4, 5, 7, 8, 10, 11, 13, 14]),
        ({"val_every_batches": 3, "accumulate": 2}, [2, 5, 8, 11, 14]),
        ({"val_every_batches": 5, "accumulate": 2}, [3, 6, 9, 12, 15]),
        ({"val_every_batches": 8, "val_every_epochs": None, "accumulate": 2}, [5, 10, 14]),
    ],
)
def test_steps_after_which_a_validation_is_due(fields, validations):
    calendar = schedule(**fields)
    assert [step for step in range(16) if calendar.is_validation(step)] == validations


@pytest.mark.parametrize(
    ("fields", "limit", "dues", "ends"),
    [
        ({"max_steps": 12}, 50, (), [5, 10, 12]),
        ({"max_steps": 12}, 3, (), [3, 5, 8, 10, 12]),
        ({"max_steps": 4}, 1, (), [1, 2, 3, 4]),
        ({"max_steps": 12, "log_every": 4}, 50, (), [5, 10, 12]),
        ({"max_steps": 12, "stop_at_epochs": False}, 50, (), [12]),
        ({"max_steps": 12, "stop_at_epochs": False}, 5, (), [5, 10, 12]),
        ({"max_steps": 12, "val_every_batches": 3}, 50, (), [3, 5, 8, 10, 12]),
        ({"max_steps": 12, "val_every_batches": 7, "val_every_epochs": None}, 50, (), [5, 7, 10, 12]),
        ({"max_steps": 12}, 50, (1, 6, 11), [1, 5, 6, 10, 11, 12]),
        ({"max_steps": 7, "accumulate": 3}, 50, (), [2, 4, 6, 7]),
    ],
)
def test_supersteps_end_at_the_next_thing_due(fields, limit, dues, ends):
    assert cuts(schedule(**fields), limit, dues) == ends


def test_boundaries_are_where_the_host_must_see_the_heads():
    calendar = schedule(max_steps=8, val_every_batches=3)
    assert [step for step in range(1, 9) if calendar.is_boundary(step)] == [3, 5, 8]


@pytest.mark.parametrize(
    ("batches", "accumulate", "steps"),
    [
        (5, 1, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (5, 2, [0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 7]),
        (5, 3, [0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5]),
        (2, 4, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]),
    ],
)
def test_steps_that_so_many_batches_take(batches, accumulate, steps):
    calendar = schedule(batches_per_epoch=batches, accumulate=accumulate)
    assert [calendar.steps_of(count) for count in range(12)] == steps


@pytest.mark.parametrize("accumulate", [1, 2, 3, 7])
@pytest.mark.parametrize("batches_per_epoch", [1, 5, 6])
def test_the_steps_of_a_number_of_batches_are_the_fewest_that_consume_them(batches_per_epoch, accumulate):
    calendar = schedule(batches_per_epoch=batches_per_epoch, accumulate=accumulate)
    steps = [calendar.steps_of(count) for count in range(1, 40)]
    assert all(calendar.batches(step) >= count for count, step in enumerate(steps, 1))
    assert all(calendar.batches(step - 1) < count for count, step in enumerate(steps, 1))
