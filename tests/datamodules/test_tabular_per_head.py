"""TabularDataModule imputes, scales and encodes by each head's own rows, as scikit-learn does when fitted on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest
from heads_under_test import QUIET
from sklearn.impute import SimpleImputer
from sklearn.model_selection import KFold
from sklearn.preprocessing import OneHotEncoder, StandardScaler, TargetEncoder

import hydrax as hx
from hydrax.datamodules import TabularDataModule

NUMBERS, COLOURS, PLACES = ["age", "year", "flat"], ["colour"], ["place"]


def make_table(num_rows, seed=0):
    rng = np.random.default_rng(seed)
    table = pandas.DataFrame(
        {
            "age": rng.normal(40, 9, num_rows),
            "year": 1.7e9 + rng.normal(0, 300, num_rows),  # float32 alone would keep one digit of their differences
            "flat": np.full(num_rows, 0.1),
            "colour": rng.choice(["red", "green", "blue"], num_rows),
            "place": rng.choice([f"town {n}" for n in range(6)], num_rows),
        }
    )
    table["price"] = table["age"] / 10 + (table["place"] < "town 3") + rng.normal(0, 0.1, num_rows)
    table.loc[0, "place"] = "village"  # a word of one row: the head without this row does not know it
    table.loc[0, "colour"] = "black"
    for name in ("age", "year", "colour", "place"):
        table.loc[rng.choice(num_rows, num_rows // 6, replace=False), name] = None
    return table


TABLE, TEST = make_table(30), make_table(14, seed=1)
FOLDS = list(KFold(3).split(TABLE))
SLICES = {
    "folds": hx.Slices.from_splits(FOLDS, 30),
    "bootstrap": hx.Slices.bootstrap(3, 30, seed=1),
    "lengths": hx.Slices.prefix([7, 30, 16], 30, seed=2),
}


def data_of(slices, table=TABLE, **how):
    how = {"one_hot": True, "standardize": True, "target_encode": PLACES, "smoothing": 2.0, "batch_size": 30, **how}
    return TabularDataModule(table, target="price", slices=slices, test_path=TEST, **how)


def pipeline(rows, impute="mean", standardize=True):
    """Fits scikit-learn's transformers on some rows of the table; returns a function that transforms a table."""
    words = ["black", "blue", "green", "red"]
    parts = {
        "numbers": [SimpleImputer(strategy=impute)],
        "colours": [OneHotEncoder(categories=[words], handle_unknown="ignore", sparse_output=False)],
        "places": [TargetEncoder(smooth=2.0, target_type="continuous")],
    }
    for name in ("numbers", "places") if standardize else ():
        parts[name].append(StandardScaler())
    own, of = TABLE.iloc[rows], {"numbers": NUMBERS, "colours": COLOURS, "places": PLACES}
    # `fit`, not `fit_transform`, whose encoding of the rows themselves is cross-fitted.
    fitted = {name: _fit(steps, own[of[name]], own["price"]) for name, steps in parts.items()}
    known = np.isin(words, own["colour"].dropna())

    def transform(table):
        found = {name: one(table[of[name]]) for name, one in fitted.items()}
        return np.concatenate([found["numbers"], found["colours"] * known, found["places"]], axis=1)

    return transform


def _fit(steps, x, y):
    for step in steps:
        x = step.fit(x, y).transform(x)

    def transform(x):
        for step in steps:
            x = step.transform(x)
        return np.asarray(x)

    return transform


@pytest.mark.parametrize("kind", list(SLICES))
@pytest.mark.parametrize(("impute", "standardize"), [("mean", True), ("median", True), ("median", False)])
def test_each_head_sees_its_rows_as_scikit_learn_transforms_them_after_a_fit_on_them(kind, impute, standardize):
    slices = SLICES[kind]
    data = data_of(slices, impute=impute, standardize=standardize)
    for head in range(3):
        transform = pipeline(slices.rows(head), impute, standardize)
        for table, dataset in ((TABLE, data.train_dataset()), (TEST, data.test_dataset())):
            np.testing.assert_allclose(
                data.transformed(dataset, head)["x"], transform(table), rtol=1e-4, atol=1e-4 if standardize else 1e-3
            )


def test_missing_words_without_columns_of_their_own_become_the_most_frequent_of_the_heads_rows():
    table = TABLE[["colour", "price"]]
    data = TabularDataModule(table, target="price", slices=SLICES["folds"])
    for head in range(3):
        codes = data.train_dataset()["x"]
        expected = SimpleImputer(strategy="most_frequent").fit(codes[FOLDS[head][0]]).transform(codes)
        np.testing.assert_array_equal(data.transformed(data.train_dataset(), head)["x"], expected)


def test_blocks_of_heads_give_what_all_heads_at_once_give(monkeypatch):
    slices = hx.Slices.prefix(range(1, 31), 30)
    expected = data_of(slices).batch_transform().keywords
    monkeypatch.setattr("hydrax.datamodules.tabular._BLOCK", 40)
    found = data_of(slices).batch_transform().keywords
    for name in ("fill", "mean", "scale", "table"):
        np.testing.assert_allclose(found[name].values, expected[name].values, rtol=1e-12)


def test_a_feature_without_a_value_or_that_is_constant_in_a_heads_rows_does_no_harm():
    table = pandas.DataFrame({"a": [None, None, 5.0, 7.0], "b": [0.1, 0.1, 0.1, 9.0], "price": [1.0, 2.0, 3.0, 4.5]})
    data = TabularDataModule(table, target="price", slices=hx.Slices.prefix([2, 3], 4), standardize=True)
    x = [data.transformed(data.train_dataset(), head)["x"] for head in range(2)]
    np.testing.assert_array_equal(x[0][:, 0], 0)
    np.testing.assert_array_equal(x[1][:3, 0], 0)
    scale = data._scales[1][1]  # a constant has no deviation to divide by
    np.testing.assert_allclose(x[0][:, 1], [0, 0, 0, 8.9 / scale], rtol=1e-5)


# ---- in every stage of a run


class Linear(hx.HydraModule):
    def configure_model(self, key):
        return {"w": jnp.zeros(8), "b": jnp.zeros(())}

    def configure_optimizers(self):
        return optax.sgd(0.05)

    def loss(self, model, batch):
        return (batch["x"] @ model["w"] + model["b"] - batch["y"]) ** 2

    def training_step(self, model, batch, ctx):
        return self.loss(model, batch)

    def validation_step(self, model, batch, ctx):
        return self.loss(model, batch)

    def test_step(self, model, batch, ctx):
        return self.loss(model, batch)

    def predict_step(self, model, batch, ctx):
        return batch["x"] @ model["w"] + model["b"]


STEPS = 12


class Folds(TabularDataModule):
    """Validates each head on its test fold."""

    def val_dataset(self):
        return self.train_dataset()

    def val_slices(self):
        return self.slices().held_out()


def folds(**how):
    how = {"one_hot": True, "standardize": True, "target_encode": PLACES, "smoothing": 2.0, "batch_size": 30, **how}
    return Folds(TABLE, target="price", slices=SLICES["folds"], test_path=TEST, **how)


def by_hand(rows):
    """Full-batch gradient descent on the rows that scikit-learn makes, and a function that predicts a table."""
    transform = pipeline(rows)
    x, y, w, b = transform(TABLE)[rows], TABLE["price"].to_numpy()[rows], np.zeros(8), 0.0
    for _ in range(STEPS):
        residual = x @ w + b - y
        w, b = w - 0.05 * 2 * x.T @ residual / len(y), b - 0.05 * 2 * residual.mean()
    return lambda table: transform(table) @ w + b


HANDS = [by_hand(train) for train, _ in FOLDS]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    trainer, module, data = hx.Trainer(max_steps=STEPS, **QUIET), Linear(), folds()
    return trainer, trainer.fit(module, data), data, trainer.save_checkpoint(tmp_path_factory.mktemp("run") / "last")


def test_no_head_is_lost_to_missing_values_and_no_warning_is_made(fitted, recwarn):
    assert fitted[1].live.all()
    assert not recwarn.list


def test_heads_are_validated_on_rows_transformed_by_their_own_training_rows(fitted):
    trainer, result, _, _ = fitted
    expected = [
        ((hand(TABLE) - TABLE["price"]).to_numpy()[test] ** 2).mean()
        for hand, (_, test) in zip(HANDS, FOLDS, strict=True)
    ]
    np.testing.assert_allclose(result.metrics["val_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(trainer.validate(verbose=False)["val_loss"], expected, rtol=1e-4)


def test_heads_are_tested_and_predict_on_rows_transformed_by_their_own_training_rows(fitted):
    trainer, result, data, _ = fitted
    expected = np.stack([hand(TEST) for hand in HANDS])
    np.testing.assert_allclose(trainer.predict(), expected, rtol=1e-4)
    np.testing.assert_allclose(result.heads.predict(data.test_dataset()), expected, rtol=1e-4)
    np.testing.assert_allclose(result.heads[[2, 0]].predict(data.test_dataset()), expected[[2, 0]], rtol=1e-4)
    losses = ((expected - TEST["price"].to_numpy()) ** 2).mean(axis=1)
    np.testing.assert_allclose(trainer.test(verbose=False)["test_loss"], losses, rtol=1e-4)


def test_held_out_predictions_are_those_of_each_fold(fitted):
    expected = np.empty(30)
    for hand, (_, test) in zip(HANDS, FOLDS, strict=True):
        expected[test] = hand(TABLE)[test]
    np.testing.assert_allclose(fitted[0].predict_held_out().per_row(), expected, rtol=1e-4)


@pytest.mark.parametrize("picked", [slice(None), [2, 0]])
def test_loaded_heads_predict_by_way_of_their_data_module(fitted, tmp_path, picked):
    _, result, _, _ = fitted
    result.heads.save(tmp_path / "heads")
    heads = hx.Heads.load(tmp_path / "heads", Linear())[picked]
    found = hx.Trainer(**QUIET).predict(Linear(), folds(), heads)
    np.testing.assert_allclose(found, np.stack([hand(TEST) for hand in HANDS])[picked], rtol=1e-4)


def test_loaded_heads_refuse_columns_that_were_not_transformed(fitted, tmp_path):
    _, result, data, run = fitted
    heads = hx.Heads.load(result.heads.save(tmp_path / "one"), Linear())
    again = hx.Heads.load(heads.save(tmp_path / "two"), Linear())
    for loaded in (heads, again, hx.Heads.load(run, Linear())):
        with pytest.raises(hx.ArgumentError, match="Rows are not transformed as in training: Heads.predict"):
            loaded.predict(data.test_dataset())
    seen = data.transformed(data.test_dataset(), 1)
    model = heads[1]
    np.testing.assert_allclose(seen["x"] @ model["w"] + model["b"], HANDS[1](TEST), rtol=1e-4)


@pytest.mark.parametrize(("how", "sampling"), [({"residence": "host", "impute": "median"}, "own"), ({}, "shared")])
def test_rows_outside_a_heads_slice_change_nothing_for_it(how, sampling):
    changed = TABLE.copy()
    held = FOLDS[1][1]  # the rows that head 1 does not learn from
    changed.loc[held, NUMBERS] = -5.0
    changed.loc[held, "price"] = 100.25
    first, second = (
        hx.Trainer(max_steps=3, sampling=sampling, **QUIET).fit(
            Linear(), data_of(SLICES["folds"], table, **how, standardize=False, batch_size=4)
        )
        for table in (TABLE.assign(year=0.5), changed.assign(year=0.5))
    )
    for one, other in zip(*(jax.tree.leaves(result.heads) for result in (first, second)), strict=True):
        np.testing.assert_array_equal(one[1], other[1])
        assert (one[0] != other[0]).any()


def test_missing_values_that_are_replaced_are_no_anomaly():
    trainer = hx.Trainer(max_steps=STEPS, detect_anomaly=True, **QUIET)
    trainer.fit(Linear(), folds())
    np.testing.assert_allclose(trainer.predict(), np.stack([hand(TEST) for hand in HANDS]), rtol=1e-4)


def test_a_run_goes_on_only_with_the_same_transformation(fitted):
    path = fitted[3]
    result = hx.Trainer(max_steps=STEPS + 1, **QUIET).fit(Linear(), folds(), ckpt_path=path)
    assert result.step == STEPS + 1
    for how in ({"impute": "median"}, {"smoothing": 5}):
        with pytest.raises(hx.CheckpointError, match="batch_transform"):
            hx.Trainer(max_steps=STEPS + 1, **QUIET).fit(Linear(), folds(**how), ckpt_path=path)


def test_the_ledger_has_no_columns_of_statistics(fitted):
    assert {"mean", "fill", "scale", "table"}.isdisjoint(fitted[1].ledger[0])


# ---- what is refused, and what stays as it is


def test_without_any_of_them_the_rows_are_those_of_the_table():
    data = TabularDataModule(TABLE, target="price", slices=SLICES["folds"], impute=None)
    assert data.batch_transform() is None
    assert data.check_finite == "warn"
    assert np.isnan(data.transformed(data.train_dataset(), 0)["x"]).any()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"impute": "mode"}, r"TabularDataModule\(impute=\)"),
        ({"impute": np.array(1)}, r"TabularDataModule\(impute=\)"),
        ({"standardize": "per_head"}, r"TabularDataModule\(standardize=\)"),
        ({"target_encode": "place"}, r"TabularDataModule\(target_encode=\)"),
        ({"smoothing": -1}, r"TabularDataModule\(smoothing=\)"),
        ({"smoothing": np.inf}, r"TabularDataModule\(smoothing=\)"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_at_once(how, message):
    with pytest.raises(hx.ArgumentError, match=message):
        data_of(SLICES["folds"], **how)


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [
        ({}, {"target_encode": ["town"]}, "A column is missing.*'town'"),
        ({}, {"target_encode": ["price"]}, "No such feature: target_encode.*'price'"),
        ({}, {"aside": PLACES}, "No such feature: target_encode.*'place'"),
        ({"price": ["a", "b", "c"] * 10}, {}, "A target has no mean: target_encode.*3 words"),
        ({"age": np.inf}, {}, "A feature is infinite.*row 0, column 'age'"),
        ({"age": 1e39}, {}, "A feature is infinite.*row 0, column 'age'"),
    ],
)
def test_a_table_that_cannot_be_transformed_is_refused_before_anything_compiles(change, how, message):
    data = data_of(SLICES["folds"], TABLE.assign(**change), **how)
    with pytest.raises(hx.DataError, match=message):
        hx.Trainer(max_steps=1, **QUIET).fit(Linear(), data)


def test_a_target_of_two_words_is_encoded_by_the_share_of_the_second():
    table = pandas.DataFrame({"place": ["a", "a", "b", "b"], "price": ["no", "yes", "yes", "yes"]})
    data = TabularDataModule(
        table, target="price", slices=hx.Slices.full(1, 4), target_encode=["place"], smoothing=0, impute=None
    )
    np.testing.assert_array_equal(data.transformed(data.train_dataset(), 0)["x"], [[0.5], [0.5], [1], [1]])
