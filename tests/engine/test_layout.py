"""Layout: every head has a place, blocks are equal, and those that run stand before those at rest."""

import jax
import numpy as np
import pytest

from hydrax.engine.layout import lay_out

DEVICE = jax.devices()[0]


def made(num_heads, chunk, lanes=1, waves=1):
    return lay_out(num_heads, chunk, [DEVICE] * lanes, waves)


def heads(layout):
    return [block.heads.tolist() for block in layout.blocks]


def counts(layout):
    return [block.num_chunks for block in layout.blocks]


def test_one_block_holds_all_heads_in_order_and_repeats_the_first_to_fill_its_last_chunk():
    layout = made(5, 4)
    assert (heads(layout), counts(layout)) == ([[0, 1, 2, 3, 4, 0, 0, 0]], [2])


def test_blocks_share_the_chunks_out_and_have_the_same_number_of_places():
    layout = made(7, 1, lanes=3)
    assert (heads(layout), counts(layout)) == ([[0, 1, 2], [3, 4, 0], [5, 6, 0]], [3, 2, 2])


def test_there_are_no_more_blocks_than_chunks():
    assert len(made(5, 4, lanes=8).blocks) == 2


@pytest.mark.cpu
def test_a_block_has_room_for_two_chunks_so_that_its_loop_is_one():
    layout = made(5, 4, lanes=2)
    assert (heads(layout), counts(layout)) == ([[0, 1, 2, 3, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0, 0]], [1, 1])


def test_blocks_of_a_lane_are_its_waves():
    layout = made(8, 1, lanes=2, waves=2)
    assert [block.lane for block in layout.blocks] == [0, 1, 0, 1]
    assert (layout.num_lanes, layout.in_waves) == (2, True)


def test_heads_that_run_come_first_in_every_block_and_the_others_rest_behind_them():
    layout = made(8, 1, lanes=2).with_running(np.array([1, 0, 0, 1, 0, 1, 0, 1], bool))
    assert (heads(layout), counts(layout)) == ([[0, 3, 1, 2], [5, 7, 4, 6]], [2, 2])


def test_a_head_at_rest_fills_up_the_last_chunk_that_runs():
    layout = made(6, 2).with_running(np.array([0, 1, 1, 0, 1, 0], bool))
    assert (heads(layout), counts(layout)) == ([[1, 2, 4, 0, 3, 5]], [2])


@pytest.mark.parametrize("runs", ["all", "one", "every third"])
@pytest.mark.parametrize(
    ("num_heads", "chunk", "lanes", "waves"), [(1, 1, 1, 1), (9, 4, 2, 1), (64, 8, 3, 2), (7, 3, 5, 1)]
)
def test_every_head_has_a_place_and_those_that_run_stand_in_chunks_that_run(num_heads, chunk, lanes, waves, runs):
    mask = {"all": np.ones(num_heads, bool), "one": np.arange(num_heads) == num_heads - 1}
    mask["every third"] = np.arange(num_heads) % 3 == 0
    layout = made(num_heads, chunk, lanes, waves).with_running(mask[runs])
    np.testing.assert_array_equal(layout.heads[layout.places], np.arange(num_heads))
    active = np.concatenate([np.arange(len(block.heads)) < block.num_chunks * chunk for block in layout.blocks])
    assert active[layout.places][mask[runs]].all()
    assert len({len(block.heads) for block in layout.blocks}) == 1


def test_arrays_are_sent_where_their_places_are():
    layout = made(4, 1, lanes=2)
    parts = layout.send({"rows": np.arange(8).reshape(2, 4), "seed": 3}, {"rows": 1, "seed": None})
    assert [part["rows"].tolist() for part in parts] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert [int(part["seed"]) for part in parts] == [3, 3]
