"""GrainBatches and DeviceFeed: shapes and padding of a superstep, drawing it again, and a private copy of the data."""

import grain
import jax
import numpy as np
import pytest

from hydrax.data.batches import GrainBatches
from hydrax.data.feed import DeviceFeed
from hydrax.engine.layout import lay_out
from hydrax.errors import DataError

ROWS, HEADS, SLOTS = 100, 3, 2
PLACES = np.array([0, 1, 2, 0])  # three heads in chunks of four


class Counting:
    """Element t holds row 10 t + head in every slot; head 2 has padding in its last slot."""

    def __len__(self):
        return 8

    def __getitem__(self, t):
        rows = 10 * t + np.repeat(np.arange(HEADS)[:, None], SLOTS, axis=1)
        mask = np.array([[True, True], [True, True], [True, False]])
        return {"step": t, "rows": rows, "mask": mask}


class Shared(Counting):
    """The same rows for all heads."""

    def __getitem__(self, t):
        return {"step": t, "rows": np.array([2 * t, 2 * t + 1]), "mask": np.array([True, t < 7])}


def feed(source=Counting, places=PLACES, max_steps=4, **how):
    return GrainBatches(grain.MapDataset.source(source()), num_rows=ROWS, places=places, max_steps=max_steps, **how)


def superstep(batches, *asked):
    found = batches.superstep(*asked)
    return found["rows"], found["mask"]


def uploaded(dataset):
    """The columns that the device holds."""
    layout = lay_out(HEADS, 4, jax.devices()[:1])
    return DeviceFeed(dataset, lambda places: feed(places=places), layout).superstep(0, [1])[0][0].columns


def test_a_superstep_holds_the_rows_of_each_step_at_the_places_of_the_heads():
    rows, mask = superstep(feed(), 0, [1, 1, 1, 1])
    assert (rows.shape, rows.dtype, mask.shape, mask.dtype) == ((4, 4, 2), np.int32, (4, 4, 2), np.bool_)
    np.testing.assert_array_equal(rows[:, :, 0], [[0, 1, 2, 0], [10, 11, 12, 10], [20, 21, 22, 20], [30, 31, 32, 30]])
    np.testing.assert_array_equal(mask[3], [[True, True], [True, True], [True, False], [True, True]])


def test_a_short_superstep_has_the_same_shape_and_the_rest_is_padding():
    rows, mask = superstep(feed(), 2, [1])
    np.testing.assert_array_equal(rows[:, 1, 0], [21, 0, 0, 0])
    np.testing.assert_array_equal(mask.any(axis=(1, 2)), [True, False, False, False])


def test_rows_that_all_heads_share_have_no_head_axis():
    rows, mask = superstep(feed(Shared, places=None, max_steps=2), 6, [1, 1])
    np.testing.assert_array_equal(rows, [[12, 13], [14, 15]])
    np.testing.assert_array_equal(mask, [[True, True], [True, False]])


def test_the_micro_batches_of_a_step_have_an_axis_of_their_own():
    rows, mask = superstep(feed(accumulate=2, max_steps=3), 1, [2, 2])
    assert rows.shape == mask.shape == (3, 2, 4, 2)
    np.testing.assert_array_equal(rows[:, :, 1, 0], [[11, 21], [31, 41], [0, 0]])
    np.testing.assert_array_equal(mask[:, :, 0, 0], [[True, True], [True, True], [False, False]])


def test_a_missing_micro_batch_is_padding_over_rows_of_the_heads_own():
    rows, mask = superstep(feed(accumulate=3, max_steps=1), 4, [2])
    np.testing.assert_array_equal(rows[0, :, 2, 0], [42, 52, 52])
    np.testing.assert_array_equal(mask[0, :, 2, 0], [True, True, False])


@pytest.mark.parametrize("first", [0, 1, 5])
def test_the_same_elements_can_be_taken_again_from_any_first(first):
    one = feed()
    before, _ = superstep(one, first, [1, 1])
    one.superstep(3, [1])
    after, _ = superstep(one, first, [1, 1])
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(before[:2, 0, 0], [10 * first, 10 * first + 10])


def test_taking_on_from_where_it_stands_needs_no_jump():
    one, seen = feed(max_steps=1), []
    for first in range(4):
        seen.append(int(superstep(one, first, [1])[0][0, 2, 0]))
    assert seen == [2, 12, 22, 32]


def test_two_supersteps_do_not_share_a_buffer():
    one = feed()
    first, _ = superstep(one, 0, [1])
    one.superstep(1, [1])
    assert first[0, 0, 0] == 0


def test_the_end_of_the_elements_is_an_error_that_names_the_element():
    with pytest.raises(DataError, match=r"element 8\. Got no more elements"):
        feed().superstep(7, [1, 1])


class OfRow(Counting):
    def __init__(self, row):
        self.row = row

    def __getitem__(self, t):
        return {"rows": np.full((HEADS, SLOTS), self.row), "mask": np.zeros((HEADS, SLOTS), bool)}


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_outside_the_dataset_is_refused_in_padding_slots_too(row):
    with pytest.raises(DataError, match=rf"place \(0, 0\)\. Got {row}, expected 0 <= row < 100"):
        feed(lambda: OfRow(row)).superstep(0, [1])


@pytest.mark.parametrize("row", [0, ROWS - 1])
def test_the_first_and_the_last_row_are_inside(row):
    rows, _ = superstep(feed(lambda: OfRow(row)), 0, [1])
    assert rows[0, 0, 0] == row


def test_an_uploaded_dataset_does_not_follow_the_users_array():
    mine = {"image": np.arange(6, dtype=np.float32).reshape(3, 2), "label": np.arange(3, dtype=np.uint8)}
    held = uploaded(mine)
    mine["image"][:] = -1
    mine["label"][:] = 9
    assert all(isinstance(column, jax.Array) for column in jax.tree.leaves(held))
    np.testing.assert_array_equal(held["image"], [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(held["label"], [0, 1, 2])
    assert held["label"].dtype == np.uint8


def test_a_column_in_another_memory_order_is_uploaded_as_it_reads():
    column = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(3, 2))[::-1]
    np.testing.assert_array_equal(uploaded(column), [[4, 5], [2, 3], [0, 1]])
