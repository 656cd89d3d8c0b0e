"""DataModule: the checks and dtypes of datasets, and the batches of row numbers."""

import grain
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import hydrax as hx
from hydrax.data.columns import check_dataset, num_rows
from hydrax.datamodules import ArrayDataModule

# ---- datasets


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("float64", "float32"),
        ("float32", "float32"),
        ("float16", "float16"),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
        ("int64", "int32"),
        ("uint64", "int32"),
        ("int32", "int32"),
        ("uint32", "uint32"),
        ("int8", "int8"),
        ("uint8", "uint8"),
        ("bool", "bool"),
        ("complex128", "complex64"),
    ],
    ids=str,
)
def test_columns_of_64_bits_are_narrowed_and_all_others_stay_as_they_are(given, kept):
    column = check_dataset(np.array([0, 1, 1], given), "train")
    assert column.dtype == np.dtype(kept)
    np.testing.assert_array_equal(column.astype(np.complex64), [0, 1, 1])


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64"])
def test_64_bits_stay_where_the_precision_asks_for_them(dtype):
    assert check_dataset(np.ones(3, dtype), "train", wide=True).dtype == dtype


@pytest.mark.parametrize("value", [-(2**31), 2**31 - 1])
def test_the_ends_of_32_bits_still_fit(value):
    assert check_dataset(np.array([0, value]), "train").tolist() == [0, value]


def test_a_dataset_keeps_its_structure_and_its_values():
    image, label = np.arange(6.0).reshape(3, 2), np.array([2, 0, 1])
    checked = check_dataset({"image": image, "more": (label, [label * 2])}, "train")
    np.testing.assert_array_equal(checked["image"], image)
    np.testing.assert_array_equal(checked["more"][0], label)
    np.testing.assert_array_equal(checked["more"][1][0], label * 2)


def memory_map(folder):
    column = np.memmap(folder / "rows.bin", np.float32, "w+", shape=(3, 2))
    column[:] = 1
    return column


@pytest.mark.parametrize(
    "make",
    [lambda folder: jnp.ones((3, 2)), memory_map, lambda folder: np.ones((3, 2), np.float32)],
    ids=["jax", "memory map", "numpy"],
)
def test_any_kind_of_array_is_a_column(make, tmp_path):
    column = check_dataset(make(tmp_path), "train")
    assert num_rows(column) == 3
    np.testing.assert_array_equal(column, np.ones((3, 2), np.float32))


def test_integers_and_bools_are_finite():
    check_dataset((np.arange(3), np.ones(3, bool)), "train", check_finite="raise")


def test_a_data_module_has_no_dataset_but_the_training_one_unless_it_says_so():
    module = hx.DataModule()
    assert [module.dataset(stage) for stage in ("val", "test", "predict")] == [None, None, None]
    assert module.val_slices() is None


def test_array_data_module_hands_out_what_it_was_given():
    sets = {name: np.full(4, number) for number, name in enumerate(("train", "val", "test", "predict"))}
    slices, val_slices = hx.Slices.full(2, 4), hx.Slices.full(2, 4)
    module = ArrayDataModule(**sets, slices=slices, val_slices=val_slices)
    assert [module.dataset(stage) is sets[stage] for stage in sets] == [True] * 4
    assert module.slices() is slices
    assert module.val_slices() is val_slices
    assert (module.batch_size, module.eval_batch_size, module.small_slices, module.check_finite) == (
        32,
        None,
        "mask",
        "warn",
    )


# ---- index batches of training

LENGTHS = [1, 5, 8, 12]


@pytest.fixture
def index():
    module = ArrayDataModule(np.zeros(12), slices=hx.Slices.prefix(LENGTHS, 12), batch_size=4)
    return module.index_dataset(seed=3)


def test_training_batches_are_a_grain_dataset_of_steps(index):
    assert isinstance(index, grain.MapDataset)
    element = index[7]
    assert element["step"] == 7
    assert (element["rows"].shape, element["rows"].dtype) == ((4, 4), np.int32)
    assert (element["mask"].shape, element["mask"].dtype) == ((4, 4), np.bool_)


@pytest.mark.parametrize("head", range(4))
def test_each_row_of_a_slice_is_met_once_in_each_pass(index, head):
    length = LENGTHS[head]
    live = [index[t]["rows"][head][index[t]["mask"][head]] for t in range(12)]
    passes = np.concatenate(live)[: 3 * length].reshape(3, length)
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.tile(np.arange(length), (3, 1)))


def test_padding_slots_hold_rows_of_the_heads_own_slice(index):
    rows = np.stack([index[t]["rows"] for t in range(12)])
    np.testing.assert_array_equal((rows < np.array(LENGTHS)[:, None]).all(axis=(0, 2)), [True] * 4)


def test_small_slices_wrap_where_that_is_asked_for():
    module = ArrayDataModule(np.zeros(12), slices=hx.Slices.prefix(LENGTHS, 12), batch_size=4, small_slices="wrap")
    element = module.index_dataset()[0]
    assert element["mask"].all()
    np.testing.assert_array_equal(element["rows"][0], [0, 0, 0, 0])


def test_the_seed_changes_the_order_of_the_rows():
    module = ArrayDataModule(np.zeros(12), slices=hx.Slices.full(1, 12), batch_size=8)
    assert module.index_dataset(0)[0]["rows"].tolist() != module.index_dataset(1)[0]["rows"].tolist()


def test_the_pipeline_goes_on_from_a_batch_number_alone(index):
    iterator = iter(index.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
    for _ in range(3):
        next(iterator)
    assert iterator.get_state() == {"next_index": 3}
    iterator.set_state({"next_index": 9})
    np.testing.assert_array_equal(next(iterator)["rows"], index[9]["rows"])


# ---- index batches of evaluation


def walked(index):
    """The live rows of each batch."""
    return [index[t]["rows"][index[t]["mask"]].tolist() for t in range(len(index))]


@pytest.mark.parametrize(
    ("rows", "batch_size", "expected"),
    [
        (5, 2, [[0, 1], [2, 3], [4]]),
        (4, 2, [[0, 1], [2, 3]]),
        (3, 8, [[0, 1, 2]]),
        (1, 1, [[0]]),
    ],
)
@pytest.mark.parametrize("stage", ["val", "test", "predict"])
def test_evaluation_meets_each_row_once_and_in_order(stage, rows, batch_size, expected):
    module = ArrayDataModule(np.zeros(9), slices=hx.Slices.full(2, 9), batch_size=batch_size)
    index = module.eval_index_dataset(stage, rows)
    assert isinstance(index, grain.MapDataset)
    assert walked(index) == expected


def test_evaluation_batches_have_a_size_of_their_own_where_it_is_given():
    module = ArrayDataModule(np.zeros(9), slices=hx.Slices.full(2, 9), batch_size=2, eval_batch_size=3)
    assert walked(module.eval_index_dataset("test", 5)) == [[0, 1, 2], [3, 4]]


def test_the_last_batch_of_an_evaluation_that_heads_share_is_as_long_as_its_rows():
    index = ArrayDataModule(np.zeros(9), slices=hx.Slices.full(2, 9), batch_size=4).eval_index_dataset("test", 6)
    assert [index[t]["rows"].tolist() for t in range(2)] == [[0, 1, 2, 3], [4, 5]]
    assert [index[t]["mask"].tolist() for t in range(2)] == [[True] * 4, [True, True]]


def test_padding_of_a_heads_own_validation_repeats_its_last_row():
    slices = hx.Slices.from_indices([[4, 2, 0], [1]], 5)
    module = ArrayDataModule(np.zeros(9), val=np.zeros(5), slices=hx.Slices.full(2, 9), val_slices=slices, batch_size=2)
    index = module.eval_index_dataset("val", 5)
    assert [index[t]["rows"].tolist() for t in range(2)] == [[[4, 2], [1, 1]], [[0, 0], [1, 1]]]


def test_each_head_walks_its_own_validation_slice():
    val_slices = hx.Slices.from_indices([[4, 2, 0], [1]], 5)
    module = ArrayDataModule(
        np.zeros(9), val=np.zeros(5), slices=hx.Slices.full(2, 9), val_slices=val_slices, batch_size=2
    )
    index = module.eval_index_dataset("val", 5)
    live = [[index[t]["rows"][head][index[t]["mask"][head]].tolist() for t in range(len(index))] for head in range(2)]
    assert live == [[[4, 2], [0]], [[1], []]]


def test_validation_slices_do_not_touch_the_test_set():
    val_slices = hx.Slices.from_indices([[4, 2, 0], [1]], 5)
    module = ArrayDataModule(
        np.zeros(9), val=np.zeros(5), slices=hx.Slices.full(2, 9), val_slices=val_slices, batch_size=8
    )
    assert walked(module.eval_index_dataset("test", 5)) == [[0, 1, 2, 3, 4]]


# ---- index batches of the Trainer's budget and sampling


def test_index_batches_end_with_the_passes_asked_for():
    module = ArrayDataModule(np.zeros(12), slices=hx.Slices.prefix(LENGTHS, 12), batch_size=4)
    masks = np.stack([module.index_dataset(3, passes=2)[t]["mask"].sum(axis=1) for t in range(7)])
    assert masks.sum(axis=0).tolist() == [2, 10, 16, 24]
    assert not masks[6].any()


def test_shared_index_batches_have_one_line_of_rows_and_a_mask_for_each_head():
    module = ArrayDataModule(np.zeros(12), slices=hx.Slices.prefix(LENGTHS, 12), batch_size=4)
    elements = [module.index_dataset(3, sampling="shared")[t] for t in range(3)]
    assert [element["step"] for element in elements] == [0, 1, 2]
    rows = np.stack([element["rows"] for element in elements])
    assert (rows.shape, rows.dtype) == ((3, 4), np.int32)
    assert sorted(rows.ravel().tolist()) == list(range(12))
    np.testing.assert_array_equal(
        [element["mask"] for element in elements], rows[:, None] < np.array(LENGTHS)[None, :, None]
    )


# ---- index batches of rows that are held out


def lines_walked(index):
    """The live rows of each batch, for each head."""
    elements = [index[t] for t in range(len(index))]
    heads = range(len(elements[0]["mask"]))
    return [[element["rows"][head][element["mask"][head]].tolist() for element in elements] for head in heads]


def test_held_out_rows_are_those_of_the_training_set_outside_each_slice():
    module = ArrayDataModule(np.zeros(9), slices=hx.Slices.window([0, 2, 0], [4, 6, 9], 9), batch_size=2)
    assert lines_walked(module.eval_index_dataset("held_out", 9)) == [
        [[4, 5], [6, 7], [8]],
        [[8, 0], [1], []],  # the complement of a window begins where the window ends
        [[], [], []],
    ]


def test_held_out_batches_have_one_shape_and_padding_of_rows_that_are_there():
    module = ArrayDataModule(np.zeros(9), slices=hx.Slices.prefix([4, 9], 9), batch_size=2, eval_batch_size=3)
    index = module.eval_index_dataset("held_out", 9)
    assert [(index[t]["rows"].shape, index[t]["rows"].dtype) for t in range(2)] == [((2, 3), np.int32)] * 2
    assert [index[t]["rows"][0].tolist() for t in range(2)] == [[4, 5, 6], [7, 8, 8]]
    assert [index[t]["rows"][1].tolist() for t in range(2)] == [[0, 0, 0]] * 2


def test_a_batch_is_no_wider_than_the_most_rows_held_out():
    module = ArrayDataModule(np.zeros(9), slices=hx.Slices.prefix([6, 7], 9), batch_size=32)
    assert module.eval_index_dataset("held_out", 9)[0]["mask"].tolist() == [[True, True, True], [True, True, False]]


def test_index_batches_of_rows_that_nobody_holds_out_are_refused():
    module = ArrayDataModule(np.zeros(9), slices=hx.Slices.full(2, 9))
    with pytest.raises(hx.DataError, match="No rows are held out: ArrayDataModule.slices. Got slices that hold all 9"):
        module.eval_index_dataset("held_out", 9)


# ---- printed


class MadeInSetup(hx.DataModule):
    batch_size = 4

    def setup(self, stage):
        self.rows = {"image": np.zeros((10, 3, 2), np.float32), "digit": np.arange(10)}

    def train_dataset(self):
        return self.rows

    def val_dataset(self):
        return self.rows["image"][:4]

    def slices(self):
        return hx.Slices.prefix([2, 5, 9], len(self.rows["digit"]))


def test_a_data_module_printed_before_setup_says_what_is_not_there_yet():
    not_yet = "not available (AttributeError: MadeInSetup has no attribute 'rows'); has setup run?"
    assert str(MadeInSetup()).splitlines() == [
        "MadeInSetup",
        f"  train   {not_yet}",
        f"  val     {not_yet}",
        f"  heads   {not_yet}",
        f"  epoch   {not_yet}",
    ]


def test_a_data_module_printed_after_setup_says_what_it_holds():
    module = MadeInSetup()
    module.setup("fit")
    lines = str(module).splitlines()
    assert lines[:4] == [
        "MadeInSetup",
        "  train   N=10: digit int64, image float32[3, 2]",
        "  val     N=4: rows float32[3, 2]",
        "  heads   Slices of 3 heads on 10 rows",
    ]
    assert "            lengths: min 2, median 5, max 9, total 16" in lines
    assert lines[-1] == "  epoch   3 batches"


@pytest.mark.parametrize(
    ("train", "line"),
    [
        (np.zeros((5, 2)), "N=5: rows float64[2]"),
        ((np.zeros(5, bool), np.zeros((5, 1), np.uint8)), "N=5: 0 bool, 1 uint8[1]"),
        ({"a": {"b": np.zeros(5, np.int16)}}, "N=5: a.b int16"),
        (jnp.zeros((5, 4)), "N=5: rows float32[4]"),
    ],
    ids=["one array", "a tuple", "nested", "jax"],
)
def test_columns_are_printed_by_name_dtype_and_shape(train, line):
    printed = str(ArrayDataModule(train, slices=hx.Slices.full(1, 5))).splitlines()
    assert printed[1] == f"  train   {line}"


def test_a_source_is_printed_by_its_length_its_first_row_and_its_type():
    source = grain.MapDataset.range(7).map(lambda row: {"x": np.float32(row), "z": np.zeros(3, np.int8)})
    printed = str(ArrayDataModule(source, slices=hx.Slices.full(1, 7))).splitlines()
    assert printed[1].startswith("  train   N=7: x float32, z int8[3] (")
