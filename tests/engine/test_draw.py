"""What the program draws is what the host draws: the same rows and masks, and so the same bits of a whole fit."""

import functools

import grain
import jax
import numpy as np
import optax
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, differing, rows_of, run

import hydrax as hx
from hydrax.data.batches import GrainBatches, ProgramBatches
from hydrax.datamodules import ArrayDataModule
from hydrax.engine.draw import HostBatches, OwnRotation, SharedRotation
from hydrax.engine.layout import lay_out
from hydrax.slices.bits import Bits, packed
from hydrax.slices.rotation import index_batch, order
from hydrax.slices.store import RowStore

MOST = 2**31 - 1
LENGTHS = [1, 7, 12, 31, 40]


def bits():
    mask = np.random.default_rng(1).random((5, NUM_ROWS)) < 0.5
    ids = np.arange(5, dtype=np.int32)
    return hx.Slices(ids, RowStore.of(Bits.of(NUM_ROWS, packed(mask), numbers=ids), "from_mask", "number"))


WEIGHTS = np.random.default_rng(2).integers(0, 3, (5, NUM_ROWS))
LISTS = [list(range(length))[::-1] for length in LENGTHS]
# Every way of keeping rows by which the program can find them.
KINDS = {
    "windows": hx.Slices.window([39, 33, 3, 9, 0], LENGTHS, NUM_ROWS),
    "windows around the end": hx.Slices.window([3, 7, 3, 9, 1], [4, 12, 30, 1, 2], NUM_ROWS).complement(),
    "keyed subsets": hx.Slices.random_subset(LENGTHS, NUM_ROWS, seed=[5, 6, 7, 8, 2**32 - 1]),
    "their complements": hx.Slices.random_subset([1, 7, 12, 31, 39], NUM_ROWS, seed=4).complement(),
    "stratified subsets": hx.Slices.random_subset(LENGTHS, NUM_ROWS, seed=3, stratify=np.arange(NUM_ROWS) % 3),
    "draws with replacement": hx.Slices.bootstrap(5, NUM_ROWS, LENGTHS, seed=1),
    "out of the bag": hx.Slices.bootstrap(5, NUM_ROWS, LENGTHS, seed=1).complement(),
    "lists": hx.Slices.from_indices(LISTS, NUM_ROWS),
    "all but the lists": hx.Slices.from_indices([own[:-1] or [5] for own in LISTS], NUM_ROWS).complement(),
    "weights": hx.Slices.from_weights(WEIGHTS),
    "bits": bits(),
    "the other bits": bits().complement(),
    "the longest dataset": hx.Slices.window([MOST - 5, 0, 1], [5, MOST, MOST - 1], MOST),
    "subsets of the longest dataset": hx.Slices.random_subset([5, MOST, 2**30], MOST, seed=[1, 2, 3]),
}


def places_of(num_heads, chunk):
    """Which head stands at each place of a program on one device."""
    return lay_out(num_heads, chunk, jax.devices()[:1]).heads


# Draws are equal where their programs are.
compiled = jax.jit(lambda draw, parts, ids: draw(draw.prepared(parts, ids), ids), static_argnums=0)


def drawn(slices, first, counts, *, chunk=2, max_steps=4, accumulate=3, batch_size=5, listed=None, **how):
    """Rows and masks [steps, A, H padded, B] of the program; the heads fill whole chunks, as in a fit."""
    places, law = places_of(len(slices), chunk), slices.law()
    fixed = {"columns": {name: column[places] for name, column in law.columns.items()}, "tables": law.tables}
    how = {"seed": 9, "small_slices": "mask", "passes": None, **how}
    draw = OwnRotation(law.take, batch_size, order(slices.lengths, batch_size, how["small_slices"]), listed)
    batches = ProgramBatches(draw, fixed, slices.lengths[places], max_steps=max_steps, accumulate=accumulate, **how)
    parts, ids = batches.superstep(first, counts), slices.ids[places]
    rows, mask = compiled(draw, parts, ids)
    return np.asarray(rows), np.asarray(mask)


def expected(draw, slices, first, counts, *, accumulate=3, max_steps=4, **how):
    """The same of the host, batch by batch; a micro-batch that is missing repeats the last one, with no live slot."""
    how = {"batch_size": 5, "seed": 9, **how}
    how.pop("listed", None)  # the host has no list
    starts = first + np.cumsum([0, *counts[:-1]])
    asked = [
        (int(start) + min(micro, count - 1), micro < count)
        for start, count in zip(starts, counts, strict=True)
        for micro in range(accumulate)
    ]
    found = [(*draw(slices, batch, **how), present) for batch, present in asked]
    rows, mask = np.stack([rows for rows, _, _ in found]), np.stack([mask & present for _, mask, present in found])
    return [part.reshape(len(counts), accumulate, *part.shape[1:]) for part in (rows, mask)]


def assert_same(slices, first, counts, **how):
    rows, mask = drawn(slices, first, counts, **how)
    expected_rows, expected_mask = expected(index_batch, slices, first, counts, **how)
    places = places_of(len(slices), 2)
    assert (rows.dtype, mask.dtype) == (np.int32, np.bool_)
    np.testing.assert_array_equal(rows[: len(counts)], expected_rows[:, :, places])
    np.testing.assert_array_equal(mask[: len(counts)], expected_mask[:, :, places])
    assert not mask[len(counts) :].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("first", "how"),
    [(0, {}), (11, {"small_slices": "wrap"}), (2**40 - 8, {"seed": 2**32 - 1}), (3, {"passes": 2})],
    ids=["the first", "wrapped", "the last", "two passes"],
)
def test_the_program_draws_the_integers_of_the_host(kind, first, how):
    assert_same(KINDS[kind], first, [3, 2, 3], **how)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "longest" not in kind])
def test_rows_that_the_program_lists_first_are_those_of_the_host(kind):
    assert_same(KINDS[kind], 11, [3, 2, 3], listed=64)


@pytest.mark.parametrize("small_slices", ["mask", "wrap"])
@pytest.mark.parametrize("batch_size", [12, 40, 50])
def test_batches_as_long_as_slices_are_those_of_the_host(batch_size, small_slices):
    assert_same(KINDS["keyed subsets"], 7, [3, 1], batch_size=batch_size, small_slices=small_slices)


@pytest.mark.parametrize("batch_size", [3, 8])
@pytest.mark.parametrize("small_slices", ["mask", "wrap"])
def test_many_heads_meet_the_rows_of_the_host(batch_size, small_slices):
    slices = hx.Slices.random_subset(np.arange(5, 40), NUM_ROWS, seed=range(35))
    assert_same(slices, 9, [2, 3], batch_size=batch_size, small_slices=small_slices)


@pytest.mark.parametrize("counts", [[3, 3, 3, 3], [2], [1, 1, 1], [3, 1]], ids=str)
@pytest.mark.parametrize("small_slices", ["mask", "wrap"])
def test_a_window_of_missing_batches_has_no_live_slot_in_their_place(counts, small_slices):
    assert_same(KINDS["keyed subsets"], 4, counts, small_slices=small_slices)


def test_supersteps_of_one_walk_are_those_of_the_host_wherever_they_begin():
    slices = KINDS["subsets of the longest dataset"]
    draw = OwnRotation(slices.law().take, 2**10, order(slices.lengths, 2**10))
    fixed = {"columns": slices.law().columns, "tables": slices.law().tables}
    how = {"max_steps": 2, "accumulate": 1, "seed": 9, "small_slices": "mask", "passes": None}
    batches = ProgramBatches(draw, fixed, slices.lengths, **how)
    cursors = []
    # Onwards, as far as a word of 32 bits counts slots, beyond it, and back.
    for first in (5, 7, 2**21 - 3, 2**21 + 5, 2**30, 6):
        parts = batches.superstep(first, [1, 1])
        cursors.append(parts["cursor"])
        rows, mask = compiled(draw, parts, slices.ids)
        for step in (0, 1):
            expected = index_batch(slices, first + step, batch_size=2**10, seed=9)
            np.testing.assert_array_equal(rows[step, 0], expected[0])
            np.testing.assert_array_equal(mask[step, 0], expected[1])
    assert [one is before for one, before in zip(cursors[1:], cursors, strict=False)] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("passes", [1, 2, 5])
@pytest.mark.parametrize("small_slices", ["mask", "wrap"])
def test_passes_end_inside_a_batch_in_the_program_as_on_the_host(passes, small_slices):
    slices = KINDS["windows"]
    how = {"passes": passes, "small_slices": small_slices, "batch_size": 8, "max_steps": 27, "accumulate": 1}
    assert_same(slices, 0, [1] * 27, **how)
    assert drawn(slices, 0, [1] * 27, **how)[1].sum(axis=(0, 1, 3))[:5].tolist() == [passes * n for n in LENGTHS]


# A place in a walk is a word of 32 bits: where it stood at the cursor, and what a superstep adds.
@pytest.mark.parametrize("first", [2**31 // 5 - 2, 2**32 // 5 - 2, 2**31 - 1, 2**32 - 1, 2**39 + 12_345])
@pytest.mark.parametrize("kind", ["windows", "the longest dataset", "subsets of the longest dataset"])
def test_batches_beyond_the_words_of_the_program_are_those_of_the_host(kind, first):
    assert_same(KINDS[kind], first, [3, 3, 1])


@pytest.mark.parametrize("first", [0, 8191, 2**40 - 2**12])
def test_a_superstep_of_the_most_slots_draws_those_of_the_host(first):
    # 2**12 steps of 2**18 slots are 2**30, as many as the plan allows; looked at are its first and its last step.
    slices = hx.Slices.full(1, MOST)
    law = slices.law()
    batches = ProgramBatches(
        OwnRotation(law.take, 2**18),
        {"columns": law.columns, "tables": law.tables},
        slices.lengths,
        max_steps=2**12,
        accumulate=1,
        seed=1,
        small_slices="mask",
        passes=None,
    )
    parts = batches.superstep(first, [1] * 2**12)
    some = {name: parts[name][[0, -1]] for name in ("ahead", "present")}
    rows, mask = jax.jit(batches.draw)({**parts, **some}, slices.ids)
    host = [index_batch(slices, t, batch_size=2**18, seed=1)[0] for t in (first, first + 2**12 - 1)]
    assert mask.all()
    np.testing.assert_array_equal(rows[:, 0], host)


@pytest.mark.parametrize("kind", ["windows", "keyed subsets", "stratified subsets", "draws with replacement", "bits"])
def test_the_integers_are_the_same_where_jax_has_64_bits(kind):
    with jax.enable_x64(True):
        assert_same(KINDS[kind], 2**30 + 1, [3, 2, 3], passes=2**31, small_slices="wrap")


def test_drawing_leaks_no_tracer():
    with jax.check_tracer_leaks():
        assert_same(KINDS["lists"], 0, [3, 2])


# ---- rows that all heads share


def drawn_together(slices, first, counts, *, max_steps=4, accumulate=3, batch_size=5, **how):
    """Rows [steps, A, B] and masks [steps, A, H padded, B] of the program."""
    places = places_of(len(slices), 2)
    batches = ProgramBatches(
        SharedRotation(batch_size),
        {"members": np.packbits(slices.mask(), axis=1, bitorder="little")[places]},
        np.array([slices.num_rows], np.int32),
        max_steps=max_steps,
        accumulate=accumulate,
        **{"seed": 9, "small_slices": "mask", "passes": None, **how},
    )
    rows, mask = compiled(batches.draw, batches.superstep(first, counts), slices.ids[places])
    return np.asarray(rows), np.asarray(mask)


# Bits of heads fill whole bytes or do not; a dataset may be shorter than a batch.
TOGETHER = [hx.Slices.from_mask(np.random.default_rng(n).random((5, n)) < 0.7) for n in (37, 40, 4)]


@pytest.mark.parametrize("slices", TOGETHER, ids=["37 rows", "40 rows", "4 rows"])
@pytest.mark.parametrize(
    ("first", "how"),
    [(0, {}), (11, {"small_slices": "wrap"}), (2**40 - 8, {"seed": 2**32 - 1}), (3, {"passes": 2}), (0, {"passes": 1})],
    ids=["the first", "wrapped", "the last", "two passes", "one pass"],
)
def test_the_program_draws_the_shared_rows_of_the_host(slices, first, how):
    counts = [3, 2, 3]
    rows, mask = drawn_together(slices, first, counts, **how)
    expected_rows, expected_mask = expected(index_batch, slices, first, counts, shared=True, **how)
    places = places_of(len(slices), 2)
    assert (rows.dtype, mask.dtype) == (np.int32, np.bool_)
    np.testing.assert_array_equal(rows[:3], expected_rows)
    np.testing.assert_array_equal(mask[:3], expected_mask[:, :, places])
    assert not mask[3:].any()


# ---- a whole fit


class Plain(PlainClassifier):
    """One loss and plain steps: what is compared is which rows they meet."""

    def configure_optimizers(self):
        return optax.sgd(0.1, momentum=0.9)

    def training_step(self, model, batch, ctx):
        return optax.softmax_cross_entropy_with_integer_labels(self.logits(model, batch["x"]), batch["y"])


class DrawnOnHost(ArrayDataModule):
    """Index batches of its own, the same ones: the program does not know them, so the host draws them."""

    def index_dataset(self, seed=0, *, sampling="own", passes=None):
        return super().index_dataset(seed, sampling=sampling, passes=passes)


FITS = {
    "plain": ("windows", {}, {}),
    "two passes, accumulated, wrapped": (
        "draws with replacement",
        {"small_slices": "wrap"},
        {"budget": "passes", "max_epochs": 2, "accumulate_grad_batches": 3},
    ),
    "cut at each step": ("lists", {}, {"steps_per_call": 1}),
    "shared": ("keyed subsets", {}, {"sampling": "shared", "budget": "passes", "max_epochs": 1}),
}


def fit(datamodule, name):
    kind, how, settings = FITS[name]
    data = datamodule(rows_of(), slices=KINDS[kind], batch_size=8, **how)
    return run(Plain(), data, **{"max_steps": 9, **settings})


@functools.cache
def drawn_by_program(name):
    return fit(ArrayDataModule, name)


@pytest.mark.parametrize("name", FITS)
def test_a_fit_whose_host_draws_the_batches_has_the_same_bits(name):
    program, host = drawn_by_program(name), fit(DrawnOnHost, name)
    assert isinstance(program.trainer._run.planned.feed.draw, OwnRotation | SharedRotation)
    assert isinstance(host.trainer._run.planned.feed.draw, HostBatches)
    assert differing(host.arrays, program.arrays) == []


def test_slices_of_several_kinds_are_drawn_on_the_host_with_the_same_bits_of_each_head():
    mixed = hx.Slices.concatenate([KINDS["lists"], KINDS["windows"]]).with_ids([*range(10, 15), *range(5)])
    assert mixed.law() is None
    both = run(Plain(), data_of(mixed, val=None), max_steps=9)
    assert differing(both.of(np.arange(5, 10)), drawn_by_program("plain").arrays) == []


def test_ranks_are_never_promoted_silently_in_these_tests():
    assert jax.config.jax_numpy_rank_promotion == "raise"


# ---- index batches of the host, with rows for all heads


class Shared:
    """A Grain source of shared rows: slot j of batch t is row 5 t + j, of heads whose number is below t."""

    def __len__(self):
        return 100

    def __getitem__(self, step):
        return {"rows": np.arange(5 * step, 5 * step + 5), "mask": np.arange(3)[:, None] < np.full((1, 5), step)}


def test_shared_index_batches_are_stacked_with_one_mask_for_each_head():
    batches = GrainBatches(
        grain.MapDataset.source(Shared()),
        num_rows=500,
        places=np.array([0, 1, 2, 0]),
        max_steps=3,
        accumulate=2,
        shared=True,
    )
    found = batches.superstep(1, [2, 1])
    batches.close()
    assert (found["rows"].shape, found["mask"].shape) == ((3, 2, 5), (3, 2, 4, 5))
    assert found["rows"][0, :, 0].tolist() == [5, 10]
    assert found["rows"][1, :, 0].tolist() == [15, 15]
    assert found["mask"][0, :, :, 0].astype(int).tolist() == [[1, 0, 0, 1], [1, 1, 0, 1]]
    assert found["mask"][1, :, :, 0].astype(int).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert not found["mask"][2].any()
