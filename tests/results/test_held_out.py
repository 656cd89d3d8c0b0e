"""Predictions for the rows that each head did not learn from: out of fold, out of bag, left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of, rows_of
from sklearn.model_selection import KFold

import hydrax as hx
from hydrax.results.held_out import HeldOut, held_out

ROWS = rows_of()
ALL = np.arange(NUM_ROWS)
FOLDS = list(KFold(5, shuffle=True, random_state=0).split(ALL))
KINDS = {
    "folds": hx.Slices.from_splits(FOLDS, NUM_ROWS),
    "bootstrap": hx.Slices.bootstrap(5, NUM_ROWS, seed=1),
    "some hold all rows": hx.Slices.prefix([40, 33, 40, 39, 1], NUM_ROWS),
}
RATES = np.geomspace(0.01, 0.1, 5).astype(np.float32)


class Tree(PlainClassifier):
    """Predicts a tree: floats, integers and what depends on the head, one entry for each row."""

    def configure_optimizers(self):
        return optax.sgd(self.hparams.lr)

    def training_step(self, model, batch, ctx):
        return optax.softmax_cross_entropy_with_integer_labels(self.logits(model, batch["x"]), batch["y"])

    def predict_step(self, model, batch, ctx):
        logits = self.logits(model, batch["x"])
        rate = jnp.full(len(ctx.rows), self.hparams.lr)
        return {"logits": logits, "more": (logits.argmax(-1), ctx.rows), "right": logits > 0, "rate": rate}


def data(kind, **how):
    return data_of(KINDS[kind], val=None, eval_batch_size=6, **how)


@functools.cache
def fitted():
    trainer = hx.Trainer(max_steps=4, chunk=4, **QUIET)
    trainer.fit(Tree("mlp", hx.PerHead(RATES)), data("folds"))
    return trainer


@functools.cache
def found(kind):
    return fitted().predict_held_out(datamodule=data(kind))


def outside(kind):
    """By hand: the rows that no slice of a head lists."""
    slices = KINDS[kind]
    return np.stack([~np.isin(ALL, slices.rows(head)) for head in range(5)])


def logits_of(head):
    """One head's predictions for all rows, by the ordinary model it is."""
    model = fitted().heads[head]
    return ROWS["x"] @ np.asarray(model["kernel"]) + np.asarray(model["bias"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_what_the_slices_leave_out(kind):
    np.testing.assert_array_equal(found(kind).mask, outside(kind))
    np.testing.assert_array_equal(found(kind).counts, outside(kind).sum(axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_of_a_head_and_a_row_is_there_once(kind):
    pairs = sorted(zip(found(kind).heads.tolist(), found(kind).rows.tolist(), strict=True))
    assert pairs == list(map(tuple, np.argwhere(outside(kind)).tolist()))


@pytest.mark.parametrize("head", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_is_that_of_the_head_alone(kind, head):
    expected = np.where(outside(kind)[head][:, None], logits_of(head), np.nan)
    np.testing.assert_allclose(found(kind).per_head()["logits"][head], expected, rtol=1e-5, atol=1e-6)


def test_out_of_fold_every_row_is_predicted_by_the_head_of_its_fold():
    owner = np.empty(NUM_ROWS, int)
    for fold, (_, test) in enumerate(FOLDS):
        owner[test] = fold
    expected = np.stack([logits_of(owner[row])[row] for row in range(NUM_ROWS)])
    np.testing.assert_array_equal(found("folds").counts, 1)
    np.testing.assert_allclose(found("folds").per_row()["logits"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["bootstrap", "some hold all rows"])
def test_per_row_is_the_mean_over_the_heads_that_did_not_learn_from_it(kind):
    every = np.stack([logits_of(head) for head in range(5)])
    weights = outside(kind)[..., None].astype(float)
    with np.errstate(invalid="ignore"):
        expected = (weights * every).sum(axis=0) / weights.sum(axis=0)
    np.testing.assert_allclose(found(kind).per_row()["logits"], expected, rtol=1e-5, atol=1e-6)


def test_rows_that_every_head_learnt_from_are_nan_and_others_are_not():
    seen = np.isnan(found("some hold all rows").per_row()["logits"]).all(axis=1)
    np.testing.assert_array_equal(seen, ALL < 1)  # the shortest slice is row 0


def test_heads_that_hold_all_rows_have_no_pair():
    assert set(found("some hold all rows").heads.tolist()) == {1, 3, 4}
    assert np.isnan(found("some hold all rows").per_head()["logits"][[0, 2]]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_of_predictions_keeps_its_form_and_its_types(kind):
    predictions = found(kind).predictions
    size = outside(kind).sum()
    forms = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), predictions, is_leaf=lambda x: hasattr(x, "shape"))
    assert forms == {
        "logits": ((size, 3), "float32"),
        "more": (((size,), "int32"), ((size,), "int32")),
        "rate": ((size,), "float32"),
        "right": ((size, 3), "bool"),
    }
    np.testing.assert_array_equal(predictions["more"][0], predictions["logits"].argmax(axis=1))
    np.testing.assert_array_equal(predictions["right"], predictions["logits"] > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_told_the_rows_it_predicts(kind):
    np.testing.assert_array_equal(found(kind).predictions["more"][1], found(kind).rows)


@pytest.mark.parametrize("kind", KINDS)
def test_each_head_predicts_with_its_own_per_head_value(kind):
    np.testing.assert_array_equal(found(kind).predictions["rate"], RATES[found(kind).heads])


def test_some_heads_are_asked_with_their_slices():
    some, trainer = [3, 1], fitted()
    part = trainer.predict_held_out(heads=trainer.heads[some], datamodule=data_of(KINDS["folds"][some]))
    np.testing.assert_array_equal(part.mask, outside("folds")[some])
    # Not bit for bit: a product of B rows adds up by the slot, and on some processors (AVX2) not alike in all of them.
    np.testing.assert_allclose(part.per_head()["logits"], found("folds").per_head()["logits"][some], rtol=1e-6)
    np.testing.assert_array_equal(part.predictions["rate"], RATES[some][part.heads])


def test_a_checkpoint_predicts_as_the_heads_it_holds(tmp_path):
    path = fitted().save_checkpoint(tmp_path)
    read = hx.Trainer(chunk=4, **QUIET).predict_held_out(Tree("mlp", hx.PerHead(RATES)), data("folds"), ckpt_path=path)
    np.testing.assert_array_equal(read.mask, found("folds").mask)
    np.testing.assert_array_equal(read.per_head()["logits"], found("folds").per_head()["logits"])


def test_fetched_rows_are_predicted_the_same():
    fetched = fitted().predict_held_out(datamodule=data("bootstrap", residence="host"))
    np.testing.assert_array_equal(fetched.mask, found("bootstrap").mask)
    np.testing.assert_array_equal(fetched.per_head()["logits"], found("bootstrap").per_head()["logits"])


def test_the_limit_on_predict_batches_does_not_leave_held_out_rows_out():
    trainer = hx.Trainer(chunk=4, limit_predict_batches=1, **QUIET)
    limited = trainer.predict_held_out(Tree("mlp", hx.PerHead(RATES)), data("folds"), heads=fitted().heads)
    np.testing.assert_array_equal(limited.mask, outside("folds"))


def test_callbacks_hear_one_prediction():
    heard = []
    names = ("setup", "on_predict_start", "on_predict_end", "teardown")
    hooks = {name: (lambda self, event, name=name: heard.append((name, event.stage))) for name in names}
    trainer = hx.Trainer(chunk=4, callbacks=type("Heard", (hx.Callback,), hooks)(), **QUIET)
    trainer.predict_held_out(Tree("mlp", hx.PerHead(RATES)), data("folds"), heads=fitted().heads)
    assert heard == [(name, "predict") for name in names]


def test_the_rows_outside_a_slice_can_be_validated_on_in_the_fit():
    slices = KINDS["bootstrap"]
    watched = data_of(slices, val=ROWS, val_slices=slices.complement())
    result = hx.Trainer(max_steps=2, chunk=4, **QUIET).fit(Tree("mlp", hx.PerHead(RATES)), watched)
    losses = []
    for head in range(len(slices)):
        rows = np.setdiff1d(ALL, slices.rows(head))
        model = result.heads[head]
        logits = ROWS["x"][rows] @ np.asarray(model["kernel"]) + np.asarray(model["bias"])
        losses.append(-jax.nn.log_softmax(logits)[np.arange(rows.size), ROWS["y"][rows]].mean())
    np.testing.assert_allclose(result.metrics["val_loss"], losses, rtol=1e-5)


# ---- by hand

BY_HAND = HeldOut(
    heads=np.array([0, 2, 0, 2], np.int32),
    rows=np.array([3, 0, 1, 3], np.int32),
    predictions={"score": np.array([[1, 2], [3, 4], [5, 6], [8, 10]], np.float32), "digit": np.array([7, 1, 0, 2])},
    num_heads=3,
    num_rows=4,
)
NAN = np.nan


def test_the_mask_has_one_place_for_each_pair():
    expected = [[False, True, False, True], [False] * 4, [True, False, False, True]]
    np.testing.assert_array_equal(BY_HAND.mask, expected)
    np.testing.assert_array_equal(BY_HAND.counts, [1, 1, 0, 2])


def test_per_head_puts_each_prediction_in_its_place():
    spread = BY_HAND.per_head()
    np.testing.assert_array_equal(spread["digit"], [[NAN, 0, NAN, 7], [NAN] * 4, [1, NAN, NAN, 2]])
    none = [NAN, NAN]
    np.testing.assert_array_equal(
        spread["score"], [[none, [5, 6], none, [1, 2]], [none] * 4, [[3, 4], none, none, [8, 10]]]
    )
    assert (spread["score"].dtype, spread["digit"].dtype.kind) == (np.float32, "f")


def test_per_row_is_the_mean_over_heads():
    mean = BY_HAND.per_row()
    np.testing.assert_array_equal(mean["digit"], [1, 0, NAN, 4.5])
    np.testing.assert_array_equal(mean["score"], [[3, 4], [5, 6], [NAN, NAN], [4.5, 6]])
    assert (mean["score"].dtype, mean["digit"].dtype.kind) == (np.float32, "f")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.bool_, np.uint8])
def test_means_are_taken_in_float32_or_wider(dtype):
    narrow = HeldOut(np.array([0, 1]), np.array([0, 0]), np.array([1, 0]).astype(dtype), 2, 1)
    assert narrow.per_row().tolist() == [0.5]
    np.testing.assert_array_equal(narrow.per_head(), [[1], [0]])
    assert min(narrow.per_row().dtype.itemsize, narrow.per_head().dtype.itemsize) >= 4


def test_it_is_shown_in_one_line():
    assert repr(BY_HAND) == "HeldOut(pairs=4, heads=3, rows held out=3 of 4)"


def test_batches_are_brought_together_without_their_padding():
    batches = [
        (np.array([[10, 11], [20, 21]]), np.array([[4, 0], [2, 2]]), np.array([[True, True], [True, False]])),
        (np.array([[12, 13], [22, 23]]), np.array([[1, 1], [0, 0]]), np.array([[True, False], [False, False]])),
    ]
    together = held_out(batches, 2, 5)
    assert list(zip(together.heads, together.rows, together.predictions, strict=True)) == [
        (0, 4, 10),
        (0, 0, 11),
        (1, 2, 20),
        (0, 1, 12),
    ]


# ---- refused


@pytest.mark.parametrize(
    ("slices", "parts"),
    [
        (
            hx.Slices.full(5, NUM_ROWS),
            ["No rows are held out: ArrayDataModule.slices", "hold all 40 rows", "use predict()"],
        ),
        (KINDS["folds"][:3], ["Slices have the wrong number of heads", "Got 3 heads, expected 5"]),
        (hx.Slices.full(5, 39), ["Slices and dataset differ in rows", "Got slices of 39 rows, expected 40"]),
    ],
    ids=["nothing is held out", "slices of other heads", "slices of other rows"],
)
def test_what_holds_nothing_out_is_refused(slices, parts):
    with pytest.raises(hx.HydraxError) as refused:
        fitted().predict_held_out(datamodule=data_of(slices))
    assert [part for part in [*parts, " Fix: "] if part not in str(refused.value)] == []


def test_without_heads_it_says_how_to_get_some():
    with pytest.raises(hx.ArgumentError, match="No heads to evaluate"):
        hx.Trainer().predict_held_out()


@pytest.mark.cpu
def test_heads_in_another_order_find_their_own_slices_and_values():
    slices = hx.Slices.window([0, 8, 16], 8, NUM_ROWS).complement()
    data = data_of(slices)
    module = Scaled("mlp", hx.PerHead([1.0, 2.0, 3.0]))
    trainer = hx.Trainer(max_steps=2, **QUIET)
    result = trainer.fit(module, data)
    everything = trainer.predict()
    for one in (trainer, hx.Trainer(max_steps=2, **QUIET)):
        found = one.predict_held_out(module, data, heads=result.heads[[2, 0]])
        np.testing.assert_array_equal(found.mask, ~slices.mask([2, 0]))
        np.testing.assert_array_equal(one.predict(module, data, heads=result.heads[[2, 0]]), everything[[2, 0]])
        np.testing.assert_array_equal(one.predict(module, data, heads=result.heads[::-1]), everything[::-1])


class Scaled(PlainClassifier):
    """Predictions that show which value of a PerHead a head was given."""

    def predict_step(self, model, batch, ctx):
        return self.logits(model, batch["x"]) * self.hparams.lr


def test_a_head_without_a_slice_is_refused_by_its_id():
    slices = hx.Slices.prefix([5, 6, 7], NUM_ROWS)
    result = hx.Trainer(max_steps=1, **QUIET).fit(PlainClassifier("mlp"), data_of(slices))
    with pytest.raises(hx.SliceError, match="A head has no slice: .* Got heads of ids .2., expected ids among .0."):
        hx.Trainer(max_steps=1, **QUIET).predict_held_out(
            PlainClassifier("mlp"), data_of(slices[:1]), heads=result.heads[[2]]
        )


class RowsAtFit(hx.DataModule):
    """Reads its training rows when a fit is set up, and no others, as a user's own module may."""

    def setup(self, stage):
        if stage == "fit":
            self.rows = rows_of()

    def train_dataset(self):
        return self.rows

    def slices(self):
        return hx.Slices.prefix([5, 20], NUM_ROWS)


def test_the_data_module_is_set_up_for_its_training_rows():
    module = Scaled("mlp", 1.0)
    result = hx.Trainer(max_steps=1, **QUIET).fit(module, RowsAtFit())
    found = hx.Trainer(max_steps=1, **QUIET).predict_held_out(module, RowsAtFit(), heads=result.heads)
    assert found.rows.size == 35 + 20


def test_validation_slices_of_the_picked_heads_alone_are_taken_in_their_order():
    slices = hx.Slices.window([0, 8, 16], 8, NUM_ROWS)
    trainer = hx.Trainer(max_steps=2, **QUIET)
    result = trainer.fit(PlainClassifier("mlp"), data_of(slices, val=ROWS, val_slices=slices.complement()))
    own = hx.Slices.from_indices([slices.complement().rows(head) for head in (1, 0)], NUM_ROWS)
    found = trainer.validate(
        datamodule=data_of(slices, val=ROWS, val_slices=own), heads=result.heads[[1, 0]], verbose=False
    )
    np.testing.assert_array_equal(found["val_loss"], result.metrics["val_loss"][[1, 0]])
