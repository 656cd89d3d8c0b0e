"""Sampling: who draws the index batches, how long an epoch is, when heads have finished, and what can be padding."""

import jax
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, data_of, rows_of

import hydrax as hx
from hydrax.data.stage import stage_training
from hydrax.datamodules import ArrayDataModule
from hydrax.engine.draw import HostBatches, OwnRotation, SharedRotation
from hydrax.engine.layout import lay_out
from hydrax.train import sampling as sampling_module
from hydrax.train.sampling import open_sampling
from hydrax.train.settings import Settings

SUBSETS = hx.Slices.random_subset([3, 40, 17, 8], NUM_ROWS, seed=3).with_ids([5, 0, 9, 2])
MIXED = hx.Slices.concatenate([hx.Slices.full(1, NUM_ROWS), hx.Slices.random_subset([5], NUM_ROWS)])


class OwnBatches(ArrayDataModule):
    """The same index batches from an overridden method, so the program cannot draw them."""

    def index_dataset(self, seed=0, *, sampling="own", passes=None):
        return super().index_dataset(seed, sampling=sampling, passes=passes)


def walk(slices=SUBSETS, kind=data_of, residence="device", small_slices="mask", batch_size=8, **settings):
    """The sampling of forty rows."""
    how = {"residence": residence, "small_slices": small_slices, "batch_size": batch_size}
    module = kind(slices, **how) if kind is data_of else kind(rows_of(), slices=slices, **how)
    rows = stage_training(module, wide=False)
    opened = open_sampling(Settings(max_steps=5, **settings), rows)
    rows.data.close()
    return opened


PASSES = {"budget": "passes", "max_epochs": 3}
SHARED = {"sampling": "shared"}


@pytest.mark.parametrize(
    ("how", "draw"),
    [
        ({}, OwnRotation),
        (PASSES, OwnRotation),
        ({"small_slices": "wrap"}, OwnRotation),
        (SHARED, SharedRotation),
        ({"slices": MIXED, **SHARED}, SharedRotation),
        ({"slices": MIXED}, HostBatches),
        ({"residence": "host"}, HostBatches),
        ({"residence": "host", **SHARED}, HostBatches),
        ({"kind": OwnBatches}, HostBatches),
        ({"kind": OwnBatches, **SHARED}, HostBatches),
    ],
    ids=str,
)
def test_the_program_draws_the_batches_where_it_knows_how(how, draw):
    opened = walk(**how)
    feed = opened.feed(lay_out(len(opened.slices), 2, jax.devices()[:1]), max_steps=2)
    feed.close()
    assert isinstance(feed.draw, draw)
    assert opened.drawn_on_host == (draw is HostBatches)
    assert feed.draw.shared == opened.shared


LISTS = hx.Slices.from_indices([range(30), range(10, 40)], NUM_ROWS)


@pytest.mark.parametrize(
    ("how", "size_bytes"),
    [
        ({}, sum(table.nbytes for table in LISTS.law().tables.values())),
        (SHARED, 4 * 2 * 5),  # a quarter is left to bits: 40 of each of two heads
    ],
    ids=["own", "shared"],
)
def test_what_takes_too_much_of_the_device_is_drawn_by_the_host(how, size_bytes, monkeypatch):
    monkeypatch.setattr(sampling_module, "_MAX_TABLE_BYTES", size_bytes)
    assert not walk(LISTS, **how).drawn_on_host
    monkeypatch.setattr(sampling_module, "_MAX_TABLE_BYTES", size_bytes - 1)
    assert walk(LISTS, **how).drawn_on_host


@pytest.mark.parametrize("num_rows", [39, 40, 41])
def test_whose_a_row_is_takes_a_bit_of_each_head(num_rows):
    mask = np.random.default_rng(0).random((3, num_rows)) < 0.5
    rows = {"x": np.zeros((num_rows, 2), np.float32)}
    module = ArrayDataModule(rows, slices=hx.Slices.from_mask(mask), batch_size=8)
    members = open_sampling(Settings(max_steps=1, **SHARED), stage_training(module, wide=False)).members
    assert (members.dtype, members.shape) == (np.uint8, (3, 5 + (num_rows > 40)))
    row = np.arange(num_rows)
    np.testing.assert_array_equal(members[:, row // 8] >> (row % 8) & 1, mask)


@pytest.mark.parametrize(
    ("how", "batches", "lengths"),
    [
        ({}, 5, [3, 40, 17, 8]),
        ({"batch_size": 7}, 6, [3, 40, 17, 8]),
        ({"batch_size": 64}, 1, [3, 40, 17, 8]),
        ({"slices": SUBSETS[[0, 2]]}, 3, [3, 17]),
        ({"slices": SUBSETS[[0, 2]], **SHARED}, 5, [40, 40]),
    ],
    ids=str,
)
def test_an_epoch_is_as_long_as_the_longest_pass(how, batches, lengths):
    opened = walk(**how)
    assert (opened.batches_per_epoch, opened.lengths.tolist()) == (batches, lengths)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        # Three passes in batches of 8: 9 slots are three batches of 3, or two that are filled; 120, 51 and 24 slots.
        (PASSES, [3, 15, 7, 3]),
        (PASSES | {"small_slices": "wrap"}, [2, 15, 7, 3]),
        (PASSES | SHARED, [15, 15, 15, 15]),
        (PASSES | {"max_epochs": 1, "batch_size": 64}, [1, 1, 1, 1]),
        (PASSES | {"max_epochs": 10**9}, [10**9, 5 * 10**9, 2_125_000_000, 10**9]),
    ],
    ids=str,
)
def test_each_head_is_through_after_its_own_batches(how, expected):
    assert walk(**how).own_batches.tolist() == expected


@pytest.mark.parametrize("how", [{}, {"max_epochs": 3}, SHARED], ids=str)
def test_no_head_is_through_by_itself_without_that_budget(how):
    assert walk(**how).own_batches is None


@pytest.mark.parametrize(
    ("how", "may_idle"), [({}, False), ({"small_slices": "wrap"}, False), (PASSES, True), (SHARED, True)], ids=str
)
def test_a_head_may_idle_where_it_has_no_live_slot_in_some_step(how, may_idle):
    assert walk(**how).may_idle == may_idle


LONG = SUBSETS[[1, 2, 3]]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({}, "head 5 has 3 rows for 8 slots"),
        ({"small_slices": "wrap"}, None),
        ({"slices": LONG}, None),
        ({"slices": LONG, "batch_size": 9}, "head 2 has 8 rows for 9 slots"),
        ({"slices": LONG, **PASSES}, "a head's last batch ends with its passes"),
        ({"small_slices": "wrap", **PASSES}, "a head's last batch ends with its passes"),
        (SHARED, "head 5 owns 3 of the 40 rows that all heads meet"),
        ({"slices": hx.Slices.full(2, NUM_ROWS), **SHARED}, None),
        ({"slices": hx.Slices.full(2, NUM_ROWS), "batch_size": 48, **SHARED}, "head 0 has 40 rows for 48 slots"),
        ({"kind": OwnBatches}, "head 5 has 3 rows for 8 slots"),
    ],
    ids=str,
)
def test_why_a_slot_can_be_padding(how, reason):
    assert walk(**how).padding == reason


def test_batches_of_ones_own_may_have_another_number_of_slots():
    class Wider(ArrayDataModule):
        def index_dataset(self, seed=0):
            return ArrayDataModule(rows_of(), slices=SUBSETS, batch_size=11).index_dataset(seed)

    opened = walk(kind=Wider)
    assert (opened.batch_size, opened.batches_per_epoch) == (11, 4)
    assert opened.padding == "head 5 has 3 rows for 11 slots"
