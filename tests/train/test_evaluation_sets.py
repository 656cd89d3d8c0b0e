"""Evaluation sets whose last batch is not full, or of which each head sees a part: what is logged and predicted."""

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads_under_test import QUIET

import hydrax as hx
from hydrax.callbacks import EarlyStopping, ModelCheckpoint
from hydrax.datamodules import ArrayDataModule, SourceDataModule

ROWS = {"x": np.float32(2.0) ** np.arange(10, dtype=np.float32)[:, None], "y": np.arange(10, dtype=np.float32)}
HEADS = 3


class Lines(hx.HydraModule):
    """One number per head, and a validation that takes means of its own."""

    def configure_model(self, key):
        return {"w": jax.random.uniform(key, ())}

    def configure_optimizers(self):
        return optax.sgd(0.0)

    def training_step(self, model, batch, ctx):
        return model["w"] * batch["x"][:, 0]

    def validation_step(self, model, batch, ctx):
        self.log("mean", batch["y"].mean())
        self.log("slots", float(batch["y"].size))
        return batch["y"].mean()

    def test_step(self, model, batch, ctx):
        return self.validation_step(model, batch, ctx)

    def predict_step(self, model, batch, ctx):
        return batch["x"][:, 0] - batch["x"].mean()


class Table:
    """A source of the same rows."""

    def __len__(self):
        return len(ROWS["y"])

    def __getitem__(self, row):
        return {name: column[row] for name, column in ROWS.items()}


class InThrees(ArrayDataModule):
    """Validates on batches of its own: rows 0 to 2, then 3 and 4, and so on; the fourth slot of each is padding."""

    def eval_index_dataset(self, stage, num_rows, **heads):
        import grain

        batches = [
            {"rows": np.int32([0, 1, 2, 0]), "mask": np.arange(4) < 3},
            {"rows": np.arange(4), "mask": [True] * 4},
        ]
        return grain.MapDataset.source([{**batch, "mask": np.array(batch["mask"])} for batch in batches])


def data(kind=ArrayDataModule, **how):
    sets = {"val": ROWS, "test": ROWS, "predict": ROWS}
    given = {**sets, "slices": hx.Slices.full(HEADS, 10), "batch_size": 5, "eval_batch_size": 4, **how}
    return kind(Table() if kind is SourceDataModule else ROWS, **given)


def trainer(**how):
    return hx.Trainer(**{"max_steps": 2, **QUIET, **how})


WAYS = {
    "arrays": {},
    "on the host": {"data": {"residence": "host"}},
    "a source": {"data": {"kind": SourceDataModule}},
    "shared sampling": {"trainer": {"sampling": "shared"}},
    "one batch": {"data": {"eval_batch_size": 16}},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_scalar_is_averaged_over_the_rows_of_a_shared_set_whose_last_batch_is_not_full(way):
    trains = trainer(**way.get("trainer", {}))
    fitted = trains.fit(Lines(), data(**way.get("data", {}))).metrics
    found = [fitted["mean"], fitted["val_loss"], trains.validate(verbose=False)["mean"]]
    found += [trains.test(verbose=False)["mean"], trains.test(verbose=False)["test_loss"]]
    np.testing.assert_allclose(found, np.full((5, HEADS), 4.5), rtol=1e-6)


def test_the_last_batch_of_a_shared_set_has_as_many_slots_as_rows():
    # Batches of 4, 4 and 2 slots, weighted by their rows.
    np.testing.assert_allclose(trainer().fit(Lines(), data()).metrics["slots"], (4 * 4 + 4 * 4 + 2 * 2) / 10, rtol=1e-6)


def test_a_limit_before_the_last_batch_leaves_full_batches_alone():
    trains = trainer(limit_val_batches=2, limit_test_batches=2)
    found = [trains.fit(Lines(), data()).metrics["mean"], trains.test(verbose=False)["mean"]]
    np.testing.assert_allclose(found, np.full((2, HEADS), 3.5), rtol=1e-6)


def test_a_prediction_that_mixes_rows_mixes_those_of_its_batch_alone():
    trains = trainer()
    trains.fit(Lines(), data(val=None))
    x = ROWS["x"][:, 0]
    expected = np.concatenate([part - part.mean() for part in (x[:4], x[4:8], x[8:])])
    np.testing.assert_allclose(trains.predict(), np.tile(expected, (HEADS, 1)), rtol=1e-6)


def test_a_set_whose_batches_are_full_compiles_one_program():
    counts = []
    for rows in (8, 10):
        trains = trainer()
        trains.fit(Lines(), data(val={name: column[:rows] for name, column in ROWS.items()}))
        counts.append(trains._run.planned.engine.programs["evaluate"].num_compiled)
    assert counts == [1, 2]


OWN = {"val_slices": hx.Slices.prefix([10, 7, 4], 10)}
SHORT = {"slices": hx.Slices.prefix([10, 7, 4], 10)}


def logging(value, stage="validation"):
    def step(self, model, batch, ctx):
        self.log("score", value(model, batch, ctx))
        return batch["y"] * model["w"]

    return type("Logs", (Lines,), {f"{stage}_step": step})


REFUSED = {
    "a mean of rows": lambda m, b, c: b["y"].mean(),
    "a mean over the mask": lambda m, b, c: jnp.where(c.mask, b["y"], 0).sum() / c.mask.sum(),
    "row numbers": lambda m, b, c: c.rows.max(),
    "a mean of outputs": lambda m, b, c: (m["w"] * b["y"]).mean(),
    "a mean behind jit": lambda m, b, c: jax.jit(jnp.mean)(b["y"]),
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize(
    ("stage", "how", "why"),
    [
        ("validation", OWN, "the last val batch has 0 rows for 4 slots"),
        ("training", {**SHORT, "val": None}, "head 2 has 4 rows for 5 slots"),
    ],
)
def test_a_scalar_made_of_rows_is_refused_where_slots_can_be_padding(stage, how, why, value):
    with pytest.raises(hx.ModuleError, match=rf"logged scalar would count padding: .*'score'\) in {stage}_step.*{why}"):
        trainer().fit(logging(value, stage)(), data(**how))


def test_a_scalar_is_refused_where_a_users_own_batches_hold_padding():
    with pytest.raises(hx.ModuleError, match=r"A logged scalar would count padding: .*'mean'.* val batch 0 has 3 rows"):
        trainer().fit(
            type("NoLoss", (Lines,), {"validation_step": lambda self, m, b, c: self.log("mean", b["y"].mean())})(),
            data(InThrees),
        )


TAKEN = {
    "values": (lambda m, b, c: b["y"], [4.5, 3.0, 1.5]),
    "a masked mean, broadcast": (
        lambda m, b, c: jnp.broadcast_to(
            jnp.where(c.mask, b["y"], 0).sum() / jnp.maximum(c.mask.sum(), 1), c.mask.shape
        ),
        [4.5, 3.0, 1.5],
    ),
    "a number": (lambda m, b, c: 2.0, [2.0, 2.0, 2.0]),
    "of the head": (lambda m, b, c: m["w"] * 0 + c.head, [0.0, 1.0, 2.0]),
    "a metric that knows the mask": (
        lambda m, b, c: clu.metrics.Average.from_model_output(values=b["y"], mask=c.mask),
        [4.5, 3.0, 1.5],
    ),
}


@pytest.mark.parametrize(("value", "expected"), TAKEN.values(), ids=TAKEN)
def test_what_leaves_padding_out_is_averaged_over_the_rows_of_each_head(value, expected):
    np.testing.assert_allclose(trainer().fit(logging(value)(), data(**OWN)).metrics["score"], expected, rtol=1e-6)


def test_a_metric_that_is_made_without_the_mask_is_refused_where_slots_can_be_padding():
    made = logging(lambda m, b, c: clu.metrics.Average.from_model_output(values=b["y"]))
    with pytest.raises(
        hx.ModuleError, match=r"A logged metric would count padding: .*'score'.*Fix: pass mask=ctx.mask"
    ):
        trainer().fit(made(), data(**OWN))


def test_an_update_logs_losses_and_norms_where_slots_can_be_padding():
    class Own(Lines):
        def update(self, head, batch, ctx):
            loss, gradients, head = head.gradient(self.training_step, batch, ctx)
            self.log("again", loss)
            self.log("norm", optax.tree.norm(gradients))
            return head.apply(gradients)

    found = trainer(max_steps=1).fit(Own(), data(val=None, slices=hx.Slices.prefix([5, 2, 1], 10))).metrics
    np.testing.assert_allclose(found["norm"], [31 / 5, 3 / 2, 1], rtol=1e-6)
    np.testing.assert_allclose(found["again"], found["train_loss"], rtol=1e-6)


def test_an_update_that_logs_a_mean_of_rows_is_refused_where_slots_can_be_padding():
    class Own(Lines):
        def update(self, head, batch, ctx):
            self.log("mean", batch["y"].mean())
            return super().update(head, batch, ctx)

    with pytest.raises(hx.ModuleError, match=r"A logged scalar would count padding: self.log\('mean'\) in update"):
        trainer().fit(Own(), data(val=None, **SHORT))


# ---- heads without validation rows

PREFIXES = hx.Slices.prefix([4, 8, 10], 10)


class Scored(Lines):
    """Its validation score is the mean of y, and gets worse with each validation."""

    def validation_step(self, model, batch, ctx):
        self.log("score", batch["y"] + ctx.step)

    def test_step(self, model, batch, ctx):
        self.log("score", batch["y"])


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """A fit whose last head holds every row, so that its complement has none."""
    watching = [EarlyStopping("score", patience=2), ModelCheckpoint(monitor="score")]
    how = {**QUIET, "enable_checkpointing": True, "default_root_dir": tmp_path_factory.mktemp("partly")}
    trains = hx.Trainer(max_epochs=6, callbacks=watching, **how)
    module = data(val=ROWS, slices=PREFIXES, val_slices=PREFIXES.complement(allow_empty=True))
    return trains, trains.fit(Scored(), module)


def test_a_head_without_validation_rows_has_nan_there_and_the_others_their_means(partly):
    trains, _ = partly
    np.testing.assert_allclose(trains.validate(verbose=False)["score"] - trains.global_step, [6.5, 8.5, np.nan])


def test_a_head_without_validation_rows_is_not_stopped_by_its_missing_score(partly):
    _, result = partly
    assert result.live.tolist() == [False, False, True]
    assert result.step == 12  # six epochs of two steps, as only this head goes on


def test_a_head_without_validation_rows_is_no_best_head(partly):
    assert partly[1].best("score").place == 0


def test_the_table_leaves_a_head_without_validation_rows_out_of_its_means(partly, capsys):
    partly[0].validate()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split()[:3] == ["score", f"{7.5 + partly[0].global_step:.4g}", "1"]
    assert line.endswith("not finite: 2")


def test_the_advice_for_a_head_whose_complement_is_empty_works(partly):
    with pytest.raises(hx.SliceError, match="Complement of head 2 is empty.*pass allow_empty=True"):
        PREFIXES.complement()
    assert partly[1].live[2]  # the fixture follows it


def test_validation_slices_without_any_row_are_refused():
    none = hx.Slices.full(HEADS, 10).complement(allow_empty=True)
    with pytest.raises(hx.SliceError, match="No head has rows: DataModule.val_slices.*leave val_slices out"):
        trainer().fit(Scored(), data(val_slices=none))


# ---- jax_debug_nans


@pytest.fixture
def debug_nans():
    jax.config.update("jax_debug_nans", True)
    yield
    jax.config.update("jax_debug_nans", False)


CLEAN = {
    "short slices and micro-batches": {"trainer": {"accumulate_grad_batches": 3}},
    "a number of passes": {"trainer": {"budget": "passes"}},
    "rows of others": {"trainer": {"sampling": "shared"}},
    "heads without validation rows": {"data": {"val_slices": PREFIXES.complement(allow_empty=True)}},
}


@pytest.mark.parametrize("way", CLEAN.values(), ids=CLEAN)
def test_clean_data_make_no_nan_on_the_device(debug_nans, way):
    module = data(val=ROWS, slices=PREFIXES, **way.get("data", {}))
    found = trainer(max_steps=None, max_epochs=3, **way.get("trainer", {})).fit(Scored(), module).metrics
    assert np.isfinite(found["score"]).tolist() == [True, True, "data" not in way]


# ---- a last batch that is shorter is tried before the fit


class FourRows(Lines):
    """Works with batches of 4 rows alone."""

    def validation_step(self, model, batch, ctx):
        return batch["y"].reshape(2, 2).mean(axis=0).repeat(2)

    def test_step(self, model, batch, ctx):
        self.log("last" if batch["y"].size < 4 else "full", batch["y"])

    def predict_step(self, model, batch, ctx):
        return batch["y"].reshape(2, 2).reshape(4)


class LogsInTheLast(Lines):
    def validation_step(self, model, batch, ctx):
        return self.log("last" if batch["y"].size < 4 else "full", batch["y"])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (FourRows(), r"FourRows.validation_step got x float32\[2, 1\], y float32\[2\]"),
        (LogsInTheLast(), "logs other values in a shorter batch: LogsInTheLast.validation_step. Got last for"),
    ],
)
def test_a_step_that_fails_for_the_last_batch_is_refused_before_the_fit(module, message):
    steps = []
    data = ArrayDataModule(train=ROWS, val=ROWS, slices=hx.Slices.full(HEADS, 10), batch_size=4)
    trainer = hx.Trainer(max_steps=2, callbacks=[hx.callbacks.LambdaCallback(on_train_start=steps.append)], **QUIET)
    with pytest.raises(hx.ModuleError, match=message):
        trainer.fit(module, data)
    assert not steps


def test_a_prediction_that_fails_for_the_last_batch_is_refused_by_its_shapes():
    data = ArrayDataModule(train=ROWS, test=ROWS, predict=ROWS, slices=hx.Slices.full(HEADS, 10), batch_size=4)
    trainer = hx.Trainer(max_steps=1, **QUIET)
    heads = trainer.fit(FourRows(), data).heads
    for predict in (trainer.predict, lambda: heads.predict(ROWS, batch_size=4)):
        with pytest.raises(hx.ModuleError, match=r"FourRows.predict_step got x float32\[2, 1\], y float32\[2\]"):
            predict()
    with pytest.raises(hx.ModuleError, match="logs other values in a shorter batch: FourRows.test_step"):
        trainer.test(verbose=False)


@pytest.mark.parametrize(
    ("sets", "got"),
    [({}, "without any set"), ({0: ROWS, 1: ROWS}, "with the name 0"), ({"": ROWS, "b": ROWS}, "with the name ''")],
)
def test_sets_without_names_are_refused(sets, got):
    data = ArrayDataModule(train=ROWS, val=hx.NamedSets(sets), slices=hx.Slices.full(HEADS, 10))
    with pytest.raises(hx.DataError, match=f"Several sets need names: ArrayDataModule.val_dataset. Got .*{got}"):
        hx.Trainer(max_steps=1, **QUIET).fit(Lines(), data)
