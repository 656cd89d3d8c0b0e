"""The plan: what is chosen from shapes and the kind of machine alone."""

import pytest

from hydrax.plan import make_plan
from hydrax.settings import Settings


def plan(num_heads=100, slots=32, backend="cpu", **given):
    return make_plan(Settings(**given), num_heads=num_heads, slots=slots, backend=backend)


@pytest.mark.parametrize("num_heads", [1, 7, 100_000])
def test_a_chunk_on_a_cpu_does_not_depend_on_the_number_of_heads(num_heads):
    assert plan(num_heads).chunk == plan(3).chunk


def test_a_chunk_on_a_gpu_is_all_heads():
    assert plan(784, backend="gpu").chunk == 784


def test_what_the_user_sets_is_kept():
    assert (plan(chunk=5, steps_per_call=7).chunk, plan(chunk=5, steps_per_call=7).steps_per_call) == (5, 7)


def test_a_superstep_has_50_steps_where_its_index_batches_are_small():
    assert plan().steps_per_call == 50


def test_the_index_batches_of_a_superstep_stay_below_64_mib():
    # 5 bytes a slot: 2**26 / (5 * 32 * 100_000) = 4.19
    assert plan(100_000).steps_per_call == 4


def test_a_superstep_has_at_least_one_step():
    assert plan(10**8).steps_per_call == 1


def test_a_plan_prints_as_one_line():
    assert str(plan()) == "chunk=1 steps_per_call=50 backend=cpu sampling=own residence=device"
