"""The plan: what is chosen from shapes and the kind of machine alone."""

import pytest
from heads_under_test import Classifier, PlainClassifier, data_of
from sklearn.model_selection import KFold

import hydrax as hx
from hydrax.engine.plan import make_plan
from hydrax.train.fit import check_fit
from hydrax.train.settings import Settings


def plan(num_heads=100, slots=32, backend="cpu", **given):
    return make_plan(**given, num_heads=num_heads, slots=slots, backend=backend)


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
    expected = "chunk=1 steps_per_call=50 backend=cpu devices=1 sampling=own residence=device lowering=plain how=rules"
    assert str(plan(lowering="plain")) == expected


@pytest.mark.parametrize(
    ("num_heads", "head_bytes", "chunk"),
    [
        (1023, 1000, 1),
        (1024, 1000, 128),
        (10**6, 2**13 + 1, 32),
        (10**6, 2**15, 32),
        (10**6, 2**15 + 1, 16),
        (10**6, 163_841, 1),
        (10**6, None, 1),
    ],
)
def test_many_small_heads_run_in_wide_chunks(num_heads, head_bytes, chunk):
    assert plan(num_heads, head_bytes=head_bytes).chunk == chunk


@pytest.mark.parametrize(
    ("given", "steps", "reason"),
    [
        ({}, 60, None),
        ({"longest": (7, "a reason")}, 7, "a reason"),
        ({"longest": (60, "a reason")}, 60, None),
        # 128 MiB are 4 steps of 32 slots of 1 MiB.
        ({"row_bytes": 2**20}, 4, "a step fetches 33,554,432 bytes of rows"),
    ],
)
def test_a_plan_with_fewer_steps_than_the_user_wants_says_why(given, steps, reason):
    found = make_plan(steps_per_call=60, num_heads=1, slots=32, backend="cpu", **given)
    assert (found.steps_per_call, found.shortened) == (steps, reason)
    assert reason is None or str(found).endswith(f"how=rules ({reason})")


# ---- rows that all heads share


def shared(num_heads=100, backend="cpu", **given):
    return plan(num_heads, backend=backend, sampling="shared", **given)


@pytest.mark.parametrize(
    ("num_heads", "backend", "chunk"), [(1, "cpu", 1), (20, "cpu", 20), (500, "cpu", 128), (500, "gpu", 500)]
)
def test_heads_that_share_their_rows_run_together(num_heads, backend, chunk):
    assert shared(num_heads, backend).chunk == chunk


def test_a_chunk_of_the_users_own_is_kept_there_too():
    assert shared(chunk=3).chunk == 3


def remark(live_share, num_heads=5, **given):
    return make_plan(**given, num_heads=num_heads, slots=8, backend="cpu", live_share=live_share).remark


@pytest.mark.parametrize("live_share", [0.8, 0.99, 1.0])
def test_the_plan_says_what_shared_rows_would_gain_where_slices_hold_most_rows(live_share):
    expected = f"8 rows a step, not 40, and make the first layer one product, with {live_share:.0%} of slots live"
    assert remark(live_share) == f'sampling="shared" would gather {expected}'


@pytest.mark.parametrize(
    "how",
    [
        {"live_share": 0.1},
        {"live_share": 0.5},
        {"live_share": 1.0, "num_heads": 1},
        {"live_share": 1.0, "sampling": "shared"},
        {"live_share": None},
    ],
    ids=["small slices", "half of the rows", "one head", "shared already", "no choice"],
)
def test_the_plan_says_nothing_where_there_is_nothing_to_gain(how):
    assert remark(**how) is None


def test_the_remark_stands_at_the_end_of_the_plans_line():
    spoken = make_plan(num_heads=5, slots=8, backend="cpu", live_share=0.9)
    assert str(spoken).endswith(f"how=rules ({spoken.remark})")


@pytest.mark.parametrize(
    ("slices", "spoken"),
    [
        (hx.Slices.from_splits(KFold(5).split(range(40)), 40), True),
        (hx.Slices.leave_one_out(40), True),
        (hx.Slices.prefix([1, 5, 10, 20], 40), False),
        (hx.Slices.leave_one_out(40)[[0]], False),
        (hx.Slices.bootstrap(5, 40, seed=0), False),
    ],
    ids=["k-fold", "leave one out", "small prefixes", "one head", "repeats cannot be shared"],
)
def test_a_fit_speaks_of_shared_rows_for_the_slices_that_gain(slices, spoken):
    checked = check_fit(Settings(max_steps=1), PlainClassifier(), data_of(slices, val=None), {})
    checked.close()
    assert (checked.plan().remark is not None) == spoken


def test_a_fit_does_not_speak_of_shared_rows_to_a_model_for_which_they_are_refused():
    data = data_of(hx.Slices.leave_one_out(40), val=None)
    with pytest.raises(hx.ModuleError, match="Batch statistics would leak"):
        check_fit(Settings(max_steps=1, sampling="shared"), Classifier("norm_dropout"), data, {})
    checked = check_fit(Settings(max_steps=1), Classifier("norm_dropout"), data, {})
    checked.close()
    assert checked.plan().remark is None


# ---- rows that are fetched


@pytest.mark.parametrize(
    ("given", "num_heads", "expected"),
    [
        # 128 MiB are 32 steps of 32 slots, of 128 KiB each, of one head; of shared rows, of any number of heads.
        ({}, 1, 32),
        ({}, 4, 8),
        ({"sampling": "shared"}, 4, 32),
        ({}, 1000, 1),
    ],
    ids=str,
)
def test_the_fetched_rows_of_a_superstep_stay_below_128_mib(given, num_heads, expected):
    found = make_plan(**given, num_heads=num_heads, slots=32, backend="cpu", row_bytes=2**17)
    assert (found.steps_per_call, found.residence) == (expected, "host")


@pytest.mark.parametrize(("slots", "expected"), [(2**20, 50), (2**25, 32), (2**30, 1), (2**31, 1)])
def test_a_superstep_of_one_head_has_no_more_slots_than_a_word_counts(slots, expected):
    found = make_plan(steps_per_call=50, num_heads=1, slots=slots, backend="cpu", drawn_on_host=False)
    assert found.steps_per_call == expected


@pytest.mark.parametrize(("drawn_on_host", "expected"), [(True, 4), (False, 50)])
def test_batches_that_the_program_draws_need_room_for_one_chunk_only(drawn_on_host, expected):
    found = make_plan(num_heads=100_000, slots=32, backend="cpu", drawn_on_host=drawn_on_host)
    assert found.steps_per_call == expected
