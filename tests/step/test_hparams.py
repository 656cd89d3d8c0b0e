"""PerHead and Hyperparameters: what they hold, how they are read, and that they cannot be changed."""

import json

import numpy as np
import pytest

import hydrax as hx

RATES = [1e-3, 2e-3, 4e-3]


@pytest.mark.parametrize(
    ("values", "dtype", "shape"),
    [
        ([1, 2, 3], np.int32, (3,)),
        (np.array([1, 2], np.uint64), np.int32, (2,)),
        ([0.5, 1.5], np.float64, (2,)),
        (np.array([0.5], np.float32), np.float32, (1,)),
        ([True, False], np.bool_, (2,)),
        ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float64, (3, 2)),
        (range(4), np.int32, (4,)),
    ],
    ids=str,
)
def test_values_are_kept_in_order_and_integers_in_32_bits(values, dtype, shape):
    kept = hx.PerHead(values).values
    assert (kept.dtype, kept.shape) == (dtype, shape)
    np.testing.assert_array_equal(kept, np.array(values))


def test_the_length_is_the_number_of_heads():
    assert len(hx.PerHead([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])) == 3


@pytest.mark.parametrize(
    ("index", "expected"),
    [(0, 1e-3), (2, 4e-3), (-1, 4e-3), (np.int64(1), 2e-3)],
    ids=repr,
)
def test_an_int_picks_the_plain_value_of_one_head(index, expected):
    value = hx.PerHead(RATES)[index]
    assert (value, type(value)) == (expected, float)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(0, 2), [1e-3, 2e-3]),
        ([2, 0], [4e-3, 1e-3]),
        (np.array([False, True, True]), [2e-3, 4e-3]),
    ],
    ids=repr,
)
def test_a_list_a_slice_or_a_mask_picks_some_heads(index, expected):
    assert hx.PerHead(RATES)[index] == hx.PerHead(expected)


def test_an_array_per_head_is_picked_whole():
    np.testing.assert_array_equal(hx.PerHead([[1.0, 2.0], [3.0, 4.0]])[1], [3.0, 4.0])


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (hx.PerHead(RATES), True),
        (hx.PerHead(RATES[:2]), False),
        (hx.PerHead([1e-3, 2e-3, 5e-3]), False),
        (RATES, False),
    ],
    ids=repr,
)
def test_two_are_equal_where_all_values_are(other, equal):
    assert (hx.PerHead(RATES) == other) is equal


def test_the_values_are_a_copy_that_nobody_can_change():
    mine = np.array(RATES)
    held = hx.PerHead(mine)
    mine[0] = 9.0
    assert held[0] == 1e-3
    with pytest.raises(ValueError, match="read-only"):
        held.values[0] = 9.0


def test_it_has_no_hash_since_it_compares_by_value():
    with pytest.raises(TypeError, match="unhashable"):
        hash(hx.PerHead(RATES))


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (RATES, "PerHead([0.001, 0.002, 0.004], heads=3)"),
        (range(100), "PerHead([0, 1, 2, ...], heads=100)"),
        ([[1.0, 2.0], [3.0, 4.0]], "PerHead([1, 3], heads=2)"),
    ],
    ids=repr,
)
def test_its_repr_is_short(values, shown):
    assert repr(hx.PerHead(values)) == shown


# ---- Hyperparameters


@pytest.fixture
def hparams():
    return hx.Hyperparameters({"lr": hx.PerHead(RATES), "width": 8})


def test_they_are_read_as_attributes_and_as_a_mapping(hparams):
    assert hparams.width == hparams["width"] == {**hparams}["width"] == 8
    assert (list(hparams), len(hparams), "lr" in hparams) == (["lr", "width"], 2, True)


def test_they_cannot_be_set(hparams):
    with pytest.raises(AttributeError, match="read-only: 'width'"):
        hparams.width = 9


def test_a_name_that_is_not_there_lists_those_that_are(hparams):
    with pytest.raises(AttributeError, match="no hyper-parameter named 'depth'; there are: lr, width"):
        _ = hparams.depth


def test_they_do_not_follow_the_mapping_they_were_made_from():
    given = {"width": 8}
    hparams = hx.Hyperparameters(given)
    given["width"] = 9
    assert hparams.width == 8


def test_their_repr_shows_names_and_values(hparams):
    assert repr(hparams) == "Hyperparameters(lr=PerHead([0.001, 0.002, 0.004], heads=3), width=8)"


# ---- as JSON


@pytest.mark.parametrize(
    "value",
    [3, 0.1, True, None, "adam", (8, 16), [8, (16, "x")], {"a": [1], "b": {"c": None}}],
    ids=repr,
)
def test_what_json_can_hold_comes_back_with_its_type(value):
    form = json.loads(json.dumps(hx.Hyperparameters({"x": value}).to_json()))
    found = hx.Hyperparameters.from_json(form)["x"]
    assert (found, type(found)) == (value, type(value))


def test_per_head_values_come_back_bit_for_bit():
    given = np.array([0.1, 1 / 3], np.float32)
    form = json.loads(json.dumps(hx.Hyperparameters({"lr": hx.PerHead(given)}).to_json()))
    found = hx.Hyperparameters.from_json(form).lr.values
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, given)


def test_a_numpy_scalar_comes_back_as_pythons():
    assert hx.Hyperparameters({"x": np.float32(0.5)}).to_json() == {"x": {"value": 0.5}}


@pytest.mark.parametrize("value", [len, np.ones(2), [np.ones(2)], {"a": len}, {1: 2}, {1, 2}], ids=repr)
def test_what_json_cannot_hold_is_left_out(value):
    assert hx.Hyperparameters({"x": value, "lr": 0.1}).to_json() == {"lr": {"value": 0.1}}


def test_of_some_heads_each_per_head_value_is_theirs(hparams):
    some = hparams.of_heads([2, 0])
    assert (some.lr.values.tolist(), some.width) == ([RATES[2], RATES[0]], 8)
