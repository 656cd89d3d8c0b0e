"""Metrics over whole sets (F1, AUC), and several sets for one stage, each with its own metrics."""

import functools

import clu.metrics
import numpy as np
import optax
import pytest
from flax import nnx
from heads_under_test import QUIET
from sklearn.metrics import f1_score, roc_auc_score

import hydrax as hx
from hydrax.callbacks import EarlyStopping, ModelCheckpoint
from hydrax.datamodules import ArrayDataModule, SourceDataModule

HEADS, NUM_VAL = 3, 23
RNG = np.random.default_rng(4)


def rows(count, shift=0.0):
    x = RNG.normal(size=(count, 2)).astype(np.float32)
    return {"x": x + np.float32(shift), "y": (x[:, 0] + RNG.normal(size=count) > 0).astype(np.int32)}


TRAIN, VAL, SHIFTED = rows(20), rows(NUM_VAL), rows(9, 1.0)
OWN = hx.Slices.from_indices([range(23), range(5, 16), [1, 2, 3, 4, 8, 9]], NUM_VAL)


class Classifier(hx.HydraModule):
    def configure_model(self, key):
        return nnx.Linear(2, 1, rngs=nnx.Rngs(key))

    def configure_optimizers(self):
        return optax.sgd(0.5)

    def training_step(self, model, batch, ctx):
        return optax.sigmoid_binary_cross_entropy(model(batch["x"])[:, 0], batch["y"])

    def validation_step(self, model, batch, ctx):
        logits = model(batch["x"])[:, 0]
        self.log("f1", hx.WholeSet(functools.partial(f1_score, zero_division=0.0), batch["y"], logits > 0))
        self.log("auc", hx.WholeSet(roc_auc_score, batch["y"], logits), prog_bar=True)
        return optax.sigmoid_binary_cross_entropy(logits, batch["y"])

    test_step = validation_step


def by_hand(heads, table, listed=None):
    """F1 and AUC of each head by scikit-learn, of logits in NumPy."""
    kernel, bias = np.asarray(heads.trainable["kernel"]), np.asarray(heads.trainable["bias"])
    found = []
    for head in range(len(heads)):
        some = slice(None) if listed is None else listed[head]
        logits, y = (table["x"][some] @ kernel[head] + bias[head])[:, 0], table["y"][some]
        found.append([f1_score(y, logits > 0, zero_division=0.0), roc_auc_score(y, logits)])
    return np.array(found).T


def fit(data=None, module=None, **how):
    trainer = hx.Trainer(**{"max_steps": 5, **QUIET, **how})
    return trainer, trainer.fit(module or Classifier(), data or data_of())


def data_of(train=TRAIN, kind=ArrayDataModule, **how):
    sets = {"val": VAL, "test": VAL, "slices": hx.Slices.prefix([20, 12, 6], 20), "batch_size": 8}
    return kind(train, **{**sets, **how})


def scores(metrics, suffix=""):
    return np.array([metrics["f1" + suffix], metrics["auc" + suffix]])


@pytest.mark.parametrize(
    "how", [{}, {"residence": "host"}, {"eval_batch_size": 64}], ids=["device", "host", "one batch"]
)
def test_f1_and_auc_over_a_set_whose_last_batch_is_partial_are_those_of_scikit_learn(how):
    trainer, result = fit(data_of(**how))
    expected = by_hand(result.heads, VAL)
    np.testing.assert_allclose(scores(result.metrics), expected, rtol=1e-6)
    for found in (trainer.validate(verbose=False), trainer.test(verbose=False)):
        np.testing.assert_allclose(scores(found), expected, rtol=1e-6)


def test_f1_and_auc_over_the_rows_of_each_head_leave_padding_out():
    _, result = fit(data_of(val_slices=OWN))
    expected = by_hand(result.heads, VAL, [OWN.rows(head) for head in range(HEADS)])
    np.testing.assert_allclose(scores(result.metrics), expected, rtol=1e-6)


def test_many_dispatches_gather_the_same_rows(monkeypatch):
    monkeypatch.setattr("hydrax.train.evaluation._GATHERED_BYTES", 1)
    _, result = fit()
    np.testing.assert_allclose(scores(result.metrics), by_hand(result.heads, VAL), rtol=1e-6)


def test_a_whole_set_metric_can_be_monitored_and_stops_heads(tmp_path):
    watching = [EarlyStopping("auc", mode="max", patience=2), ModelCheckpoint(monitor="auc", mode="max")]
    how = {"enable_checkpointing": True, "default_root_dir": tmp_path, "callbacks": watching, "max_epochs": 40}
    trainer, result = fit(max_steps=None, **how)
    assert not result.live.any()
    best = watching[1].best_scores if hasattr(watching[1], "best_scores") else watching[0].best_scores
    assert np.isfinite(best).all()
    # Heads at rest keep their scores, though they are not computed any more.
    assert np.isfinite(result.metrics["auc"]).all()
    assert "auc" in trainer.progress_bar_metrics


def test_a_step_may_log_nothing_but_a_whole_set_metric():
    def only(self, model, batch, ctx):
        self.log("rows", hx.WholeSet(lambda y: float(len(y)), batch["y"]))

    _, result = fit(module=type("Only", (Classifier,), {"validation_step": only})())
    assert result.metrics["rows"].tolist() == [NUM_VAL] * HEADS


def test_a_head_without_rows_or_with_a_nan_has_no_score():
    def step(self, model, batch, ctx):
        import jax.numpy as jnp

        self.log("score", hx.WholeSet(lambda z: float(z.sum()), jnp.where(ctx.head == 0, jnp.nan, 1.0) * batch["x"]))

    slices = hx.Slices.prefix([23, 23, 10], NUM_VAL).complement(allow_empty=True)
    data = data_of(val_slices=slices)
    _, result = fit(data, type("Odd", (Classifier,), {"validation_step": step})())
    np.testing.assert_allclose(result.metrics["score"], [np.nan, np.nan, VAL["x"][10:].sum()], rtol=1e-5)


def logging(value, where="validation_step"):
    def step(self, model, batch, ctx):
        self.log("score", value(batch))
        return model(batch["x"])[:, 0]

    return type("Logs", (Classifier,), {where: step})()


def raises(y):
    raise ValueError("only one class")


REFUSED = {
    "in training": (lambda: logging(lambda b: hx.WholeSet(len, b["y"]), "training_step"), "is logged in training"),
    "a scalar": (lambda: logging(lambda b: hx.WholeSet(len, b["y"].mean())), "wrong arguments: .*expected a function"),
    "no function": (lambda: logging(lambda b: hx.WholeSet(b["y"], b["y"])), "wrong arguments"),
    "no arrays": (lambda: logging(lambda b: hx.WholeSet(len)), "wrong arguments"),
    "a function that fails": (
        lambda: logging(lambda b: hx.WholeSet(raises, b["y"])),
        "failed: 'score', head 0. Got ValueError from raises.*only one class",
    ),
    "an array": (lambda: logging(lambda b: hx.WholeSet(lambda y: y, b["y"])), "failed: .*expected one number"),
}


@pytest.mark.parametrize(("module", "message"), REFUSED.values(), ids=REFUSED)
def test_a_whole_set_metric_is_refused(module, message):
    with pytest.raises(hx.ModuleError, match=message):
        fit(module=module())


def test_a_metric_of_clu_that_this_jax_cannot_compute_is_named():
    module = logging(lambda b: clu.metrics.Std.from_model_output(values=b["x"][:, 0]))
    with pytest.raises(
        hx.ModuleError, match=r"A metric cannot be computed: .*Got TypeError from Std.compute.*WholeSet"
    ):
        fit(module=module)


# ---- several sets


class Source:
    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table["y"])

    def __getitem__(self, row):
        return {name: column[row] for name, column in self.table.items()}


KINDS = {
    "arrays": lambda: data_of(val={"clean": VAL, "shifted": SHIFTED}, test={"clean": VAL, "shifted": SHIFTED}),
    "sources": lambda: data_of(
        Source(TRAIN),
        SourceDataModule,
        val={"clean": Source(VAL), "shifted": Source(SHIFTED)},
        test={"clean": Source(VAL), "shifted": Source(SHIFTED)},
    ),
}


def loss_by_hand(heads, table):
    kernel, bias = np.asarray(heads.trainable["kernel"]), np.asarray(heads.trainable["bias"])
    logits = (table["x"] @ kernel + bias[:, None])[..., 0]
    return (np.log1p(np.exp(-np.abs(logits))) + np.maximum(logits, 0) - logits * table["y"]).mean(axis=1)


@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS)
def test_each_of_several_validation_sets_has_its_own_metrics(data):
    trainer, result = fit(data(), callbacks=EarlyStopping("val_loss/shifted", patience=99))
    assert {name for name in result.metrics if "/" in name} == {
        f"{name}/{one}" for name in ("val_loss", "f1", "auc") for one in ("clean", "shifted")
    }
    for found, loss in ((result.metrics, "val_loss"), (trainer.validate(verbose=False), "val_loss")):
        for name, table in (("clean", VAL), ("shifted", SHIFTED)):
            np.testing.assert_allclose(found[f"{loss}/{name}"], loss_by_hand(result.heads, table), rtol=1e-5)
            np.testing.assert_allclose(scores(found, f"/{name}"), by_hand(result.heads, table), rtol=1e-6)
    tested = trainer.test(verbose=False)
    np.testing.assert_allclose(tested["test_loss/shifted"], loss_by_hand(result.heads, SHIFTED), rtol=1e-5)
    assert "val_loss/clean" in trainer.progress_bar_metrics


def test_a_monitor_without_the_name_of_a_set_is_told_the_names():
    with pytest.raises(hx.ArgumentError, match="Got 'val_loss', expected .*val_loss/clean, val_loss/shifted"):
        fit(KINDS["arrays"](), callbacks=EarlyStopping("val_loss"))


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_list_of_sets_is_refused_with_the_way_to_name_them(name):
    with pytest.raises(hx.DataError, match=rf'without names: ArrayDataModule\({name}=\).*{name}={{"clean": ...'):
        data_of(**{name: [VAL, SHIFTED]})


def test_columns_in_groups_are_one_dataset():
    group = {"left": TRAIN, "right": TRAIN}
    assert type(ArrayDataModule(group, val=group, slices=hx.Slices.full(1, 20)).val_dataset()) is dict


def test_several_sets_and_val_slices_are_refused_together():
    data = data_of(val={"clean": VAL, "shifted": SHIFTED}, val_slices=OWN)
    with pytest.raises(hx.DataError, match="Several validation sets with val_slices.*leave val_slices out"):
        fit(data)


def test_a_data_module_of_ones_own_names_its_sets():
    class Mine(ArrayDataModule):
        def val_dataset(self):
            return hx.NamedSets(a=VAL, b=SHIFTED)

    data = Mine(TRAIN, slices=hx.Slices.full(HEADS, 20), batch_size=8)
    assert "val_loss/b" in fit(data)[1].metrics
    assert "a: N=23" in str(data)


def test_several_tables_are_several_sets():
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame({"a": np.float32(values)}) for values in ([1, 2], [3, 5], [7, 9])]

    class Mean(Classifier):
        def configure_model(self, key):
            return {"w": np.ones((), np.float32)}

        def training_step(self, model, batch, ctx):
            return model["w"] * batch["a"]

        def validation_step(self, model, batch, ctx):
            self.log("mean", batch["a"])

    data = ArrayDataModule(frames[0], val={"b": frames[1], "c": frames[2]}, slices=hx.Slices.full(2, 2), batch_size=2)
    found = fit(data, Mean(), max_steps=1)[1].metrics
    np.testing.assert_array_equal([found["mean/b"], found["mean/c"]], [[4, 4], [8, 8]])
