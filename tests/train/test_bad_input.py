"""What a user can get wrong outside a slice's constructor: refused in one form, with the place, before a program runs.

Rows of slices are refused in test_slices.py.
"""

import re

import clu.metrics
import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest
from flax import nnx
from jax.experimental import io_callback
from jax.experimental.sparse import BCOO
from scipy.sparse import csr_array

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint
from hydrax.datamodules import ArrayDataModule
from hydrax.engine.engine import Engine
from hydrax.step.model import split

ROWS, HEADS, SLOTS = 12, 3, 4
FORM = re.compile(r"\S.*: .+\. Got .+, expected .+\. Fix: .+\.", re.DOTALL)

# ---- a run that works, to be broken in one place


def arrays(**columns):
    image = np.linspace(-1, 1, ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
    return {"image": image, "label": np.arange(ROWS) % 3, **columns}


def loss_of(self, model, batch, ctx):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["label"])


class Works(hx.HydraModule):
    def __init__(self, width=3):
        self.save_hyperparameters()

    def configure_model(self, key):
        return nnx.Linear(4, 3, rngs=nnx.Rngs(key))

    def configure_optimizers(self):
        return optax.sgd(0.1)

    training_step = loss_of

    def predict_step(self, model, batch, ctx):
        return model(batch["image"])


def module(**methods):
    return type("Broken", (Works,), methods)()


def data(**how):
    how = {"train": arrays(), "slices": hx.Slices.full(HEADS, ROWS), "batch_size": SLOTS, **how}
    return ArrayDataModule(how.pop("train"), **how)


def fit(broken=None, datamodule=None, ckpt_path=None, **how):
    trainer = hx.Trainer(**{"max_steps": 2, "barebones": True, **how})
    return trainer.fit(broken or Works(), datamodule or data(), ckpt_path)


def some_heads(model=lambda key: nnx.Linear(4, 3, rngs=nnx.Rngs(key))):
    """Heads without a fit."""
    parts = [split(model(jax.random.key(head))) for head in range(HEADS)]
    trainable, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[part[:2] for part in parts])
    return hx.Heads(trainable, state, parts[0].structure, np.arange(HEADS))


def walk(method, broken=None, datamodule=None, heads=None, **how):
    """Validates, tests or predicts with heads that no fit made."""
    how = {"heads": some_heads() if heads is None else heads, **how}
    walked = datamodule or data(val=arrays(), test=arrays(), predict=arrays())
    return getattr(hx.Trainer(max_steps=2, barebones=True), method)(broken or Works(), walked, **how)


def message_of(error, run):
    """The message that `run` is refused with, which has the form that every message has."""
    with pytest.raises(error) as refused:
        run()
    message = str(refused.value)
    assert FORM.fullmatch(message)
    return message


def missing_from(message, parts):
    return [part for part in parts if part not in message]


@pytest.fixture
def no_program_runs(monkeypatch):
    """A program that is reached compiles: then the refusal comes too late."""

    def reached(*args, **kwargs):
        pytest.fail("a program of the run was reached, so it would have compiled")

    for program in ("init", "superstep", "evaluate", "predict"):
        monkeypatch.setattr(Engine, program, reached)


@pytest.mark.usefixtures("no_program_runs")
def test_the_guard_notices_a_program_that_runs():
    with pytest.raises(pytest.fail.Exception, match="a program of the run was reached"):
        fit()


def case(what, run, *parts):
    return pytest.param(run, parts, id=what)


before_any_program = pytest.mark.usefixtures("no_program_runs")

# ---- the module


def stepping(step):
    return lambda: fit(module(training_step=step))


def logging(value, name="score"):
    def step(self, model, batch, ctx):
        self.log(name, value(model, batch))
        return loss_of(self, model, batch, ctx)

    return stepping(step)


def logging_inside(transformation):
    def step(self, model, batch, ctx):
        def inner(row):
            self.log("inner", row.sum())
            return row.sum()

        transformation(inner)(batch["image"])
        return loss_of(self, model, batch, ctx)

    return stepping(step)


def logging_both(name, **how):
    """Logs "score" by step and by epoch, and another value."""

    def step(self, model, batch, ctx):
        self.log("score", 1.0, on_step=True, on_epoch=True)
        self.log(name, 2.0, **how)
        return loss_of(self, model, batch, ctx)

    return step


def log_twice(self, model, batch, ctx):
    self.log("score", 1.0)
    self.log("score", 2.0)
    return loss_of(self, model, batch, ctx)


def branch_on_the_loss(self, model, batch, ctx):
    loss = loss_of(self, model, batch, ctx)
    return loss if loss.sum() > 0 else -loss


def keep_the_loss(self, model, batch, ctx):
    self.last = loss_of(self, model, batch, ctx)
    return self.last


def keep_the_key(self, key):
    self.key = key
    return Works.configure_model(self, key)


def model_with_width(self, key):
    return nnx.Linear(4, self.hparams.width, rngs=nnx.Rngs(key))


@flax.struct.dataclass
class Confusion(clu.metrics.Metric):
    """A metric of nine numbers."""

    counts: jax.Array

    @classmethod
    def empty(cls):
        return cls(jnp.zeros((3, 3)))

    def merge(self, other):
        return Confusion(self.counts + other.counts)

    def compute(self):
        return self.counts


LOSSES = [
    case("None", stepping(lambda *a: None), "A step returned no loss: training_step", "Got NoneType", "[B]"),
    case("a string", stepping(lambda *a: "low"), "A step returned no loss: training_step", "Got str"),
    case("a tuple", stepping(lambda *a: (loss_of(*a), 1)), "A step returned no loss: training_step", "Got tuple"),
    case("a Python int", stepping(lambda *a: 1), "A step returned no loss: training_step", "Got int"),
    case("a dict without loss", stepping(lambda *a: {"cost": 1.0}), "holds no loss: training_step", "Got 'cost'"),
    case("an empty dict", stepping(lambda *a: {}), "holds no loss: training_step", "Got no keys"),
    case("a dict whose loss is None", stepping(lambda *a: {"loss": None}), "training_step", "Got NoneType"),
    case("integers", stepping(lambda s, m, b, c: b["label"]), "no gradient: training_step", "Got dtype int32"),
    case("bools", stepping(lambda s, m, b, c: b["label"] > 0), "no gradient: training_step", "Got dtype bool"),
    case("complex numbers", stepping(lambda *a: loss_of(*a) + 1j), "training_step", "Got dtype complex64"),
    case("[B, 1]", stepping(lambda *a: loss_of(*a)[:, None]), "shape: training_step", "Got [4, 1]", "expected [4]"),
    case("[B + 1]", stepping(lambda *a: jnp.ones(SLOTS + 1)), "shape: training_step", "Got [5]", "expected [4]"),
    case(
        "a scalar where slots are padding",
        lambda: fit(
            module(training_step=lambda *a: loss_of(*a).mean()), data(slices=hx.Slices.prefix([9, 3, 12], ROWS))
        ),
        "A scalar loss would count padding: training_step",
        "expected [4]",
        "head 1 has 3 rows for 4 slots",
        "ctx.mask",
    ),
    case(
        "a scalar where the last validation batch of a head has padding",
        lambda: fit(
            module(validation_step=lambda *a: loss_of(*a).mean()),
            data(val=arrays(), val_slices=hx.Slices.prefix([5, 9, 12], ROWS)),
        ),
        "A scalar loss would count padding: validation_step",
        "the last val batch has 0 rows for 4 slots",
    ),
    case(
        "integers from validation_step",
        lambda: fit(module(validation_step=lambda s, m, b, c: b["label"]), data(val=arrays())),
        "no gradient: validation_step",
        "Got dtype int32",
    ),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), LOSSES)
def test_a_step_that_returns_no_loss_is_refused_and_the_step_is_named(run, parts):
    assert missing_from(message_of(hx.ModuleError, run), parts) == []


TRACED = [
    case("if", stepping(branch_on_the_loss), "Broken.training_step", "Python `if`", "jnp.where"),
    case("float()", stepping(lambda *a: float(loss_of(*a).mean())), "Broken.training_step", "float()", "jax.numpy"),
    case("item()", stepping(lambda *a: loss_of(*a).mean().item()), "Broken.training_step", "jax.numpy"),
    case("numpy", stepping(lambda *a: np.sqrt(loss_of(*a))), "Broken.training_step", "numpy", "use jax.numpy"),
    case("range", stepping(lambda s, m, b, c: [b for _ in range(c.step)]), "Broken.training_step", "a range"),
    case("boolean index", stepping(lambda *a: loss_of(*a)[a[3].mask]), "Broken.training_step", "boolean indices"),
    case(
        "PerHead as a size",
        lambda: fit(type("Wide", (Works,), {"configure_model": model_with_width})(hx.PerHead([3, 4, 5]))),
        "Wide.configure_model",
        "a PerHead value is traced, so it cannot be a size",
    ),
    case(
        "matrix product of unequal lengths",
        lambda: fit(module(configure_model=lambda self, key: nnx.Linear(8, 3, rngs=nnx.Rngs(key)))),
        "Broken.training_step got image float32[4, 4], label int32[4] for one head",
        "TypeError: dot_general requires contracting dimensions",
    ),
    case(
        "a column that is not there",
        stepping(lambda self, model, batch, ctx: model(batch["picture"])),
        "Broken.training_step got image float32[4, 4], label int32[4]",
        "KeyError: 'picture'",
    ),
    case(
        "validation columns differ",
        lambda: fit(module(validation_step=loss_of), data(val={"image": arrays()["image"]})),
        "Broken.validation_step got image float32[4, 4] for one head",
        "KeyError: 'label'",
    ),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), TRACED)
def test_what_cannot_be_traced_is_refused_with_the_view_of_one_head(run, parts):
    assert missing_from(message_of(hx.ModuleError, run), parts) == []


@before_any_program
def test_the_users_own_error_stays_attached_as_the_cause():
    def step(self, model, batch, ctx):
        raise ZeroDivisionError("mine")

    with pytest.raises(hx.ModuleError) as refused:
        fit(module(training_step=step))
    assert isinstance(refused.value.__cause__, ZeroDivisionError)


FROZEN = [
    case("training_step", stepping(keep_the_loss), "Broken.last", "self.log"),
    case("configure_model", lambda: fit(module(configure_model=keep_the_key)), "Broken.key", "self.log"),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), FROZEN)
def test_setting_an_attribute_while_a_fit_runs_is_refused_and_names_it(run, parts):
    assert (
        missing_from(message_of(hx.ModuleError, run), ["An attribute is set while the module is frozen", *parts]) == []
    )


LOGGED = [
    case("in lax.scan", logging_inside(lambda f: lambda rows: jax.lax.scan(lambda c, row: (c, f(row)), 0, rows))),
    case("in vmap", logging_inside(jax.vmap)),
    case("in jit", logging_inside(jax.jit)),
    case("in grad", logging_inside(jax.grad)),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), LOGGED)
def test_logging_inside_the_users_own_transformation_is_refused(run, parts):
    expected = ["inner jax transformation: self.log('inner') in training_step", "log it after the call"]
    assert missing_from(message_of(hx.ModuleError, run), expected) == []


LOGS = [
    case("twice", stepping(log_twice), "logged twice in one step: self.log('score') in training_step"),
    case("beside its step", stepping(logging_both("score_step")), "Two logged values have one name", "'score_step'"),
    case("beside its epoch", stepping(logging_both("score_epoch", on_step=False, on_epoch=True)), "'score_epoch'"),
    case(
        "beside its epoch in validation",
        lambda: fit(
            module(
                training_step=logging_both("other"),
                validation_step=lambda self, model, batch, ctx: self.log("score_epoch", 1.0),
            ),
            data(val=arrays()),
        ),
        "self.log('score_epoch') in validation, and 'score' in training",
    ),
    case("a string", logging(lambda m, b: "high"), "not a number: self.log('score') in training_step", "Got str"),
    case("a list", logging(lambda m, b: [1.0, 2.0]), "not a number: self.log('score')", "Got list", "[4]"),
    case("None", logging(lambda m, b: None), "not a number: self.log('score')", "Got NoneType"),
    case("[B, 3]", logging(lambda m, b: m(b["image"])), "self.log('score')", "Got float32[4, 3] for one head", "[4]"),
    case("no name", logging(lambda m, b: 1.0, name=7), "no name: self.log in training_step", "Got 7"),
    case("a metric of many numbers", logging(lambda m, b: Confusion.empty()), "computes no scalar", "Got (3, 3)"),
    case("outside a step", lambda: Works().log("score", 1.0), "outside a step: Works.log('score')"),
    case(
        "in configure_optimizers",
        lambda: fit(module(configure_optimizers=lambda self: self.log("score", 1.0))),
        "outside a step: Broken.log('score')",
    ),
    case(
        "in predict_step",
        lambda: walk("predict", module(predict_step=lambda self, m, b, c: self.log("score", 1.0))),
        "outside a step: Broken.log('score')",
    ),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), LOGS)
def test_a_log_call_that_cannot_be_kept_is_refused_and_names_the_value(run, parts):
    assert missing_from(message_of(hx.ModuleError, run), parts) == []


def linen(variables, step):
    return lambda: fit(module(configure_model=lambda self, key: variables, training_step=step))


PARTS = [
    case("no configure_model", lambda: fit(module(configure_model=hx.HydraModule.configure_model)), "configure_model"),
    case("no training_step", lambda: fit(module(training_step=hx.HydraModule.training_step)), "training_step"),
    case(
        "no configure_optimizers",
        lambda: fit(module(configure_optimizers=hx.HydraModule.configure_optimizers)),
        "A method is missing: Broken.configure_optimizers",
        "optax",
    ),
    case("no test_step", lambda: walk("test"), "A method is missing: Works.test_step", "def test_step(self, model"),
    case("no validation_step", lambda: walk("validate"), "A method is missing: Works.validation_step"),
    case("no optimiser", lambda: fit(module(configure_optimizers=lambda self: None)), "Got NoneType", "optax.adamw"),
    case("optimiser not called", lambda: fit(module(configure_optimizers=lambda self: optax.adam)), "Got function"),
    case("optimiser and schedule", lambda: fit(module(configure_optimizers=lambda self: ([], []))), "Got tuple"),
    case(
        "no model", lambda: fit(module(configure_model=lambda s, k: None)), "nothing to train: Broken.configure_model"
    ),
    case("a class as model", lambda: fit(module(configure_model=lambda s, k: nnx.Linear)), "nothing to train"),
    case(
        "a model of integers",
        lambda: fit(module(configure_model=lambda s, k: jnp.arange(3))),
        "no floating-point array",
    ),
    case(
        "predictions without slots", lambda: walk("predict", module(predict_step=lambda s, m, b, c: m.bias[...])), "[3]"
    ),
    case("no predictions", lambda: walk("predict", module(predict_step=lambda *a: None)), "predict_step. Got nothing"),
    case(
        "a scalar prediction",
        lambda: walk("predict", module(predict_step=lambda s, m, b, c: m(b["image"]).sum())),
        "A prediction has the wrong shape: Broken.predict_step",
        "Got float32[] for one head, expected [4, ...]",
    ),
    case(
        "state of another shape",
        linen(
            {"params": {"w": jnp.ones(4)}, "stats": {"mean": jnp.zeros(())}},
            lambda s, m, b, c: {"loss": b["image"] @ m["params"]["w"], "model": m | {"stats": {"mean": b["image"]}}},
        ),
        "['mean'] of one head",
        "Got float32[4, 4], expected float32[]",
    ),
    case(
        "fractions in whole numbers",
        linen(
            {"params": {"w": jnp.ones(4)}, "stats": {"seen": jnp.zeros((), jnp.int32)}},
            lambda s, m, b, c: {
                "loss": b["image"] @ m["params"]["w"],
                "model": m | {"stats": {"seen": m["stats"]["seen"] + 0.5}},
            },
        ),
        "['seen'] of one head",
        "Got float32[], expected int32[]",
    ),
    case(
        "state that is gone",
        linen(
            {"params": {"w": jnp.ones(4)}, "stats": {"mean": jnp.zeros(())}},
            lambda s, m, b, c: {"loss": b["image"] @ m["params"]["w"], "model": {"params": m["params"]}},
        ),
        "changes the structure of a head: its state",
        "expected PyTreeDef({'stats': {'mean': *}})",
    ),
    case("hyper-parameters outside __init__", lambda: Works().save_hyperparameters(), "Works.save_hyperparameters"),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), PARTS)
def test_a_method_that_is_missing_or_answers_wrongly_is_refused_by_name(run, parts):
    assert missing_from(message_of(hx.ModuleError, run), parts) == []


PER_HEAD = [
    case("too short", lambda: fit(Works(hx.PerHead([1, 2]))), "Works, hparams.width", "Got 2 values, expected 3"),
    case("strings", lambda: hx.PerHead(["relu", "tanh"]), "not numbers", "<U4"),
    case("None among them", lambda: hx.PerHead([None, 1.0]), "not numbers", "object"),
    case("NaN", lambda: hx.PerHead([1.0, np.nan]), "head 1", "Got nan", "values[1]"),
    case("Inf", lambda: hx.PerHead([[1.0, 2.0], [np.inf, 1.0]]), "head 1", "inf"),
    case("empty", lambda: hx.PerHead([]), "needs a sequence of values", "Got []"),
    case("one number", lambda: hx.PerHead(1e-3), "needs a sequence of values", "Got 0.001"),
    case("ragged", lambda: hx.PerHead([[1.0], [1.0, 2.0]]), "different shapes", "expected [H, ...]"),
    case("beyond 32 bits", lambda: hx.PerHead([0, 2**40]), "beyond 32 bits", "Got 0 to 1099511627776"),
    case("no such head", lambda: hx.PerHead([1, 2])[9], "No such head: PerHead[...]. Got 9", "ints below 2"),
    case("a head before the first", lambda: hx.PerHead([1, 2])[[0, -3]], "Got [0, -3]"),
    case("a float for a head", lambda: hx.PerHead([1, 2])[0.5], "Got 0.5"),
    case("a name for a head", lambda: hx.PerHead([1, 2])["lr"], "Got 'lr'"),
    case("a step of 0", lambda: hx.PerHead([1, 2])[::0], "Got slice(None, None, 0)"),
    case("a mask of other heads", lambda: hx.PerHead([1, 2])[np.array([True])], "a mask of 2 bools"),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), PER_HEAD)
def test_a_per_head_value_that_no_program_can_take_is_refused(run, parts):
    assert missing_from(message_of(hx.ArgumentError, run), parts) == []


# ---- the data


def fit_on(train, **how):
    return lambda: fit(datamodule=data(train=train, **how))


def with_row(row, value, dtype):
    column = np.zeros(ROWS, dtype)
    column[row] = value
    return arrays(label=column)


def with_nan():
    image = arrays()["image"]
    image[[2, 7], 1] = np.nan, np.inf
    return arrays(image=image)


DATASETS = [
    case(
        "unequal lengths",
        fit_on(arrays(label=np.zeros(11, int))),
        "train dataset['label']",
        "Got 11 rows, expected 12",
        "train dataset['image']",
    ),
    case("no rows", fit_on({"image": np.zeros((0, 4))}), "train dataset['image']", "Got 0"),
    case("objects", fit_on(arrays(label=np.array([[1], [1, 2]] * 6, object))), "dataset['label']", "Got object"),
    case("strings", fit_on(arrays(label=np.array(["cat"] * ROWS))), "dataset['label']", "Got <U3"),
    case("dates", fit_on(arrays(label=np.zeros(ROWS, "datetime64[s]"))), "dataset['label']", "Got datetime64[s]"),
    case("ragged lists", fit_on(arrays(label=[[1], [1, 2]])), "dataset['label'][0][0]", "Got int '1'", "numpy.asarray"),
    case("a list of numbers", fit_on(arrays(label=[0, 1, 2])), "dataset['label'][0]", "Got int '0'", "numpy.asarray"),
    case("a path", fit_on("rows.npz"), "train dataset", "Got str 'rows.npz'"),
    case("large int64", fit_on(with_row(5, 2**31, np.int64)), "dataset['label'], row 5", "Got 2147483648 of int64"),
    case("large uint64", fit_on(with_row(3, 2**63, np.uint64)), "dataset['label'], row 3", "of uint64"),
    case("small int64", fit_on(with_row(4, -(2**31) - 1, np.int64)), "row 4", "expected -2147483648 to 2147483647"),
    case("an empty dict", fit_on({}), "no columns: train dataset", "Got {}"),
    case("None", fit_on(None), "A dataset is missing", "train_dataset. Got None"),
    case("None for every column", fit_on({"image": None}), "no columns: train dataset", "Got {'image': None}"),
    case("NaN and Inf", fit_on(with_nan(), check_finite="raise"), "dataset['image']", "Got 2 such rows (first: 2, 7)"),
    case(
        "bfloat16 NaN",
        fit_on(arrays(image=jnp.full((ROWS, 4), jnp.nan, jnp.bfloat16)), check_finite="raise"),
        "Got 12 such rows (first: 0, 1, 2, 3, 4)",
    ),
    case("beyond float32", fit_on(arrays(image=np.full((ROWS, 4), 1e300)), check_finite="raise"), "Got 12 such rows"),
    case(
        "validation without rows",
        lambda: fit(module(validation_step=loss_of), data(val={"image": np.zeros((0, 4))})),
        "val dataset['image']",
    ),
    case("no test set", lambda: walk("test", datamodule=data()), "ArrayDataModule.test_dataset", "Got None"),
    case("no train_dataset", lambda: fit(datamodule=hx.DataModule()), "DataModule.train_dataset", "def train_dataset"),
    case(
        "no slices",
        lambda: fit(datamodule=type("Mine", (hx.DataModule,), {"train_dataset": lambda self: arrays()})()),
        "Mine.slices",
        "Slices.full",
    ),
    case(
        "None for slices",
        lambda: fit(datamodule=data(slices=None)),
        "The slices are missing: ArrayDataModule.slices",
        "Got none",
    ),
    case("time spans", fit_on(arrays(label=np.arange(ROWS).astype("m8[s]"))), "dataset['label']", "timedelta64[s]"),
    case("keys of two types", fit_on({**arrays(), 1: np.ones(ROWS)}), "not a pytree: train dataset", "by a string"),
    case("typed keys", fit_on(arrays(key=jax.random.split(jax.random.key(0), ROWS))), "dataset['key']", "PRNGKey"),
    case("masked rows", fit_on(arrays(label=np.ma.array(range(ROWS), mask=[1, *[0] * 11]))), "masked", "Got 1 masked"),
    case(
        "masked rows on the host",
        fit_on(arrays(label=np.ma.array(range(ROWS), mask=[1, *[0] * 11])), residence="host"),
        "A column is masked: train dataset['label']",
    ),
    case("a sparse column", fit_on(arrays(image=csr_array(np.eye(ROWS)))), "dataset['image']", "csr_array[12, 12]"),
    case("a sparse dataset", fit_on(csr_array(np.eye(ROWS))), "sparse matrix: train dataset. Got csr_array[12, 12]"),
    case(
        "a sparse column of JAX", fit_on(arrays(image=BCOO.fromdense(jnp.eye(ROWS)))), "Got BCOO[12, 12]", "todense()"
    ),
    case("a table with words", fit_on(pandas.DataFrame({"a": ["x"] * ROWS})), "train dataset['a']", "Got object"),
    case("a table with one name twice", fit_on(pandas.DataFrame(np.eye(ROWS), columns=["a"] * 12)), "'a' twice"),
    case(
        "a method without self",
        lambda: fit(datamodule=type("Mine", (hx.DataModule,), {"train_dataset": lambda: arrays()})()),
        "A method failed: Mine.train_dataset. Got TypeError",
    ),
    case("ragged rows to predict", lambda: some_heads().predict((np.ones((3, 4)), np.ones(2))), "predict dataset[1]"),
    case("no rows to predict", lambda: some_heads().predict(np.ones((0, 4))), "predict dataset", "Got 0"),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), DATASETS)
def test_a_dataset_that_no_device_holds_is_refused_by_column_and_row(run, parts):
    assert missing_from(message_of(hx.DataError, run), parts) == []


@before_any_program
def test_rows_that_are_not_finite_are_told_once_with_column_count_and_first_rows():
    broken = module(training_step=lambda *a: None)  # ends the fit before a program
    with pytest.warns(
        UserWarning, match=r"dataset\['image'\]. Got 2 such rows \(first: 2, 7\), expected finite"
    ) as told:
        message_of(hx.ModuleError, lambda: fit(broken, data(train=with_nan())))
    assert len(told) == 1


@before_any_program
def test_rows_that_are_not_finite_pass_where_the_check_is_off():
    broken = module(training_step=lambda *a: None)
    message_of(hx.ModuleError, lambda: fit(broken, data(train=with_nan(), check_finite="off")))


SLICES = [
    case(
        "of other rows",
        lambda: fit(datamodule=data(slices=hx.Slices.full(3, 13))),
        "DataModule.slices",
        "Got slices of 13",
    ),
    case("a list", lambda: fit(datamodule=data(slices=[[0, 1], [2]])), "DataModule.slices", "Got list"),
    case("the class", lambda: fit(datamodule=data(slices=hx.Slices)), "DataModule.slices", "Got the class Slices"),
    case("no arguments", lambda: fit(datamodule=data(slices=lambda: 1)), "ArrayDataModule(slices=)", "Got TypeError"),
    case("a failing function", lambda: fit(datamodule=data(slices=lambda rows: rows["site"])), "Got KeyError: 'site'"),
    case(
        "val_slices of other heads",
        lambda: fit(module(validation_step=loss_of), data(val=arrays(), val_slices=hx.Slices.full(2, ROWS))),
        "DataModule.val_slices",
        "Got 2 heads, expected 3",
    ),
    case(
        "val_slices of other rows",
        lambda: fit(module(validation_step=loss_of), data(val=arrays(), val_slices=hx.Slices.full(HEADS, 5))),
        "DataModule.val_slices",
        "Got slices of 5 rows, expected 12",
    ),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), SLICES)
def test_slices_that_do_not_fit_the_dataset_are_refused(run, parts):
    assert missing_from(message_of(hx.SliceError, run), parts) == []


def settings(**how):
    name, value = next(iter(how.items()))
    return pytest.param(how, [f"ArrayDataModule.{name}", f"Got {value!r}"], id=f"{name}={value!r}")


@before_any_program
@pytest.mark.parametrize(
    ("how", "parts"),
    [
        settings(batch_size=0),
        settings(batch_size=-1),
        settings(batch_size=4.0),
        settings(batch_size=True),
        settings(batch_size="32"),
        settings(eval_batch_size=0),
        settings(eval_batch_size=2.5),
        settings(small_slices="pad"),
        settings(check_finite="error"),
        settings(check_finite=True),
    ],
)
def test_an_attribute_of_the_data_module_out_of_range_is_refused(how, parts):
    assert missing_from(message_of(hx.ArgumentError, lambda: fit(datamodule=data(**how))), parts) == []


@before_any_program
def test_an_attribute_of_the_class_out_of_range_is_refused():
    mine = type("Mine", (ArrayDataModule,), {"batch_size": None})
    run = lambda: fit(datamodule=mine(arrays(), slices=hx.Slices.full(HEADS, ROWS)))  # noqa: E731
    assert missing_from(message_of(hx.ArgumentError, run), ["Mine.batch_size", "Got None"]) == []


class Elements:
    """A Grain source of what a function gives."""

    def __init__(self, element, length=100):
        self._element, self._length = element, length

    def __len__(self):
        return self._length

    def __getitem__(self, number):
        return self._element(number)


def element(rows=0, dtype=np.int32, heads=HEADS, slots=SLOTS):
    return {"rows": np.full((heads, slots), rows, dtype), "mask": np.ones((heads, slots), bool)}


def indexed(index):
    """Fits on index batches of the user's own."""
    mine = type("Mine", (ArrayDataModule,), {"index_dataset": lambda self, seed=0: index})
    return lambda: fit(datamodule=mine(arrays(), slices=hx.Slices.full(HEADS, ROWS), batch_size=SLOTS))


def elements(at_each, length=100):
    return indexed(grain.MapDataset.source(Elements(at_each, length)))


INDEX = [
    case("a list", indexed([element()]), "Mine.index_dataset", "Got list", "grain.MapDataset"),
    case("other keys", elements(lambda t: {"row": 1}), "element 0", "Got {'row': 1}", '"rows" and "mask"'),
    case("no dict", elements(lambda t: [1, 2]), "element 0", "Got [1, 2]"),
    case(
        "no head axis",
        elements(lambda t: element() | {"rows": np.zeros(4, int)}),
        "Got rows [4]",
        "expected both [3, B]",
    ),
    case("other heads", elements(lambda t: element(heads=2)), "Got rows [2, 4]", "[3, B]"),
    case("mask of another shape", elements(lambda t: element() | {"mask": np.ones((3, 2), bool)}), "mask [3, 2]"),
    case("no slots", elements(lambda t: element(slots=0)), "Got rows [3, 0]"),
    case("rows of floats", elements(lambda t: element(dtype=float)), "Got rows float64 and mask bool"),
    case("mask of ints", elements(lambda t: element() | {"mask": np.ones((3, 4), int)}), "mask int64"),
    case("row N", elements(lambda t: element(rows=ROWS)), "element 0, place (0, 0)", "Got 12, expected 0 <= row < 12"),
    case("row -1", elements(lambda t: element(rows=-1)), "element 0, place (0, 0)", "Got -1"),
    case("no elements", elements(lambda t: element(), length=0), "element 0", "Got no more", ".repeat()"),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), INDEX)
def test_index_batches_of_the_users_own_are_checked_before_anything_compiles(run, parts):
    assert missing_from(message_of(hx.DataError, run), parts) == []


LATER = [
    case(
        "rows outside", elements(lambda t: element(rows=0 if t == 0 else ROWS + t)), "element 1, place (0, 0)", "Got 13"
    ),
    case("other slots", elements(lambda t: element(slots=SLOTS + t)), "element 1", "Got rows [3, 5]"),
    case("other dtype", elements(lambda t: element(dtype=float if t else int)), "element 1", "Got rows float64"),
    case("no keys", elements(lambda t: {} if t else element()), "element 1", "Got {}"),
    case("the end", elements(lambda t: element(), length=1), "element 1", "Got no more"),
]


@pytest.mark.parametrize(("run", "parts"), LATER)
def test_index_batches_that_go_wrong_later_are_refused_by_element_and_not_trained_on(run, parts, monkeypatch):
    monkeypatch.setattr(Engine, "superstep", lambda *a: pytest.fail("trained on a batch that is wrong"))
    assert missing_from(message_of(hx.DataError, run), parts) == []


# ---- the Trainer


class NetOfAnotherLibrary:
    def parameters(self):
        return []

    def forward(self, x):
        return x


def wrong(what, run, argument, got):
    return pytest.param(run, [f"An argument has the wrong type: {argument}", f"Got {got}"], id=what)


@before_any_program
@pytest.mark.parametrize(
    ("run", "parts"),
    [
        wrong("a class as module", lambda: hx.Trainer(max_steps=1).fit(Works, data()), "module", "the class Works"),
        wrong(
            "a class as data module",
            lambda: hx.Trainer(max_steps=1).fit(Works(), ArrayDataModule),
            "datamodule",
            "the class ArrayDataModule",
        ),
        wrong("swapped", lambda: hx.Trainer(max_steps=1).fit(data(), Works()), "module", "ArrayDataModule"),
        wrong("another library's", lambda: fit(NetOfAnotherLibrary()), "module", "NetOfAnotherLibrary"),
        wrong("arrays for data", lambda: fit(datamodule=arrays()), "datamodule", "dict"),
        wrong("a path for heads", lambda: walk("test", heads="runs/heads"), "heads", "str"),
        wrong("a number for ckpt_path", lambda: fit(ckpt_path=3), "ckpt_path", "int"),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused_by_name(run, parts):
    assert missing_from(message_of(hx.ArgumentError, run), parts) == []


@before_any_program
def test_a_fit_without_an_end_names_both_ways_to_give_one():
    message = message_of(hx.ArgumentError, lambda: fit(max_steps=None))
    assert missing_from(message, ["max_steps", "max_epochs", "Got neither"]) == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("max_step", "max_steps"),
        ("epochs", "max_epochs"),
        ("callback", "callbacks"),
        ("accumulate_grad_batch", "accumulate_grad_batches"),
        ("default_root", "default_root_dir"),
        ("val_check_intervall", "val_check_interval"),
    ],
)
def test_an_unknown_argument_names_the_nearest_one(name, nearest):
    message = message_of(hx.ArgumentError, lambda: hx.Trainer(**{name: 1}))
    assert missing_from(message, [f": {name}.", f"the nearest name is {nearest}."]) == []


def test_an_argument_like_no_other_points_at_the_list():
    assert "help(Trainer)" in message_of(hx.ArgumentError, lambda: hx.Trainer(zzz=1))


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("accelerator", "JAX_PLATFORMS"),
        ("strategy", "leave it out"),
        ("num_nodes", "slices[heads]"),
        ("benchmark", "leave it out"),
        ("inference_mode", "leave it out"),
        ("use_distributed_sampler", "slices"),
        ("plugins", "callbacks"),
        ("sync_batchnorm", "leave it out"),
        ("reload_dataloaders_every_n_epochs", "leave it out"),
        ("model_registry", "heads.save"),
        ("enable_autolog_hparams", "save_hyperparameters"),
    ],
)
def test_an_argument_of_lightning_without_a_meaning_here_names_what_to_use(name, instead):
    assert instead in message_of(hx.ArgumentError, lambda: hx.Trainer(**{name: 1})).partition("Fix: ")[2]


def values(name, *wrong_values):
    return [pytest.param(name, value, id=f"{name}={value!r}") for value in wrong_values]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *values("max_steps", 0, -1, 10.0, True, "10"),
        *values("max_epochs", 0, -1, 1.5, False),
        *values("limit_train_batches", 0, 0.0, -1, 1.5, True, "all", None),
        *values("limit_val_batches", -1, 2.0),
        *values("limit_test_batches", -0.5, False),
        *values("limit_predict_batches", 0, "1.0"),
        *values("num_sanity_val_steps", -2, 0.5, True, "all", None),
        *values("overfit_batches", -1, 1.5, True, "all", None),
        *values("fast_dev_run", -1, 1.5, "yes", None),
        *values("val_check_interval", 0, 0.0, 1.5, -2, True, "epoch", None),
        *values("check_val_every_n_epoch", 0, -1, 1.0, True),
        *values("log_every_n_steps", 0, 1.0, True, None),
        *values("accumulate_grad_batches", 0, 2.0, True, {0: 0}, {0.5: 1}, None),
        *values("gradient_clip_val", 0, -1.0, float("nan"), float("inf"), True, "1"),
        *values("gradient_clip_algorithm", "value_norm", None),
        *values("precision", "16-mixed", "16-true", 16, 32, "bf16", None),
        *values("seed", -1, 2**32, 1.0, True, None),
        *values("min_steps", 0, -1, 1.5, True),
        *values("min_epochs", 0, 2.0),
        *values("profiler", "advanced", True),
        *values("matmul_precision", "float16", 1, "tf32"),
        *values("chunk", 0, -4, 2.0, True, "max", None),
        *values("steps_per_call", 0, 2.5, False, "all"),
        *values("logger", "tb", None, ModelCheckpoint),
        *values("enable_checkpointing", 1, None),
        *values("enable_progress_bar", "on", 0),
        *values("default_root_dir", None, 3),
        *values("barebones", 1, None),
        *values("sampling", "both", "Shared", None, True, ["own"]),
        *values("budget", "epochs", "pass", None, 3, False),
    ],
)
def test_a_trainer_argument_out_of_range_is_refused_with_its_name_and_value(name, value):
    message = message_of(hx.ArgumentError, lambda: hx.Trainer(**{name: value}))
    assert missing_from(message, [f": {name}. ", f"Got {value!r}, expected"]) == []


@pytest.mark.parametrize("name", ["overfit_batches", "limit_val_batches"])
def test_where_0_switches_something_off_the_range_begins_there(name):
    message = message_of(hx.ArgumentError, lambda: hx.Trainer(**{name: 1.5}))
    assert missing_from(message, ["expected an int of 0 or more (batches)"]) == []
    hx.Trainer(**{name: 0})


def test_float16_is_refused_with_the_reason():
    message = message_of(hx.ArgumentError, lambda: hx.Trainer(precision="16-mixed"))
    assert missing_from(message, ["overflows without loss scaling", 'use "bf16-mixed"']) == []


@before_any_program
def test_a_validation_interval_longer_than_the_epoch_is_refused_with_the_epochs_length():
    run = lambda: fit(module(validation_step=loss_of), data(val=arrays()), val_check_interval=4)  # noqa: E731
    message = message_of(hx.ArgumentError, run)
    assert missing_from(message, [": val_check_interval. Got 4", "at most 3", "check_val_every_n_epoch=None"]) == []


def test_a_fraction_of_an_epoch_cannot_be_counted_across_epochs():
    run = lambda: hx.Trainer(max_steps=1, val_check_interval=0.5, check_val_every_n_epoch=None)  # noqa: E731
    assert missing_from(message_of(hx.ArgumentError, run), ["val_check_interval. Got 0.5", "an int of batches"]) == []


@pytest.mark.parametrize(
    ("callbacks", "got"),
    [
        pytest.param(ModelCheckpoint, "ModelCheckpoint", id="a class"),
        pytest.param([ModelCheckpoint], "ModelCheckpoint", id="a class in a list"),
        pytest.param([hx.Callback(), object()], "<object object", id="an object"),
        pytest.param("checkpoint", "'checkpoint'", id="a string"),
        pytest.param({"save": hx.Callback()}, "{'save'", id="a dict"),
    ],
)
def test_callbacks_that_are_no_instances_are_refused(callbacks, got):
    message = message_of(hx.ArgumentError, lambda: hx.Trainer(callbacks=callbacks))
    assert missing_from(message, ["Trainer(callbacks=)", got, "pass an instance"]) == []


# ---- callbacks


class Answers(hx.Callback):
    """Answers one hook with what a function gives."""

    def __init__(self, answer):
        self.answer = answer

    def setup(self, event):
        return self.answer()


class InTheProgram(hx.Callback):
    def __init__(self, start=lambda: jnp.zeros(()), step=lambda state, loss: state):
        self.start, self.step = start, step

    def init(self, head):
        return self.start()

    def on_step(self, state, info):
        return self.step(state, info.loss)


def raise_full_disk(*args):
    raise OSError("disk full")


def answering(control):
    return lambda: fit(callbacks=Answers(lambda: control))


CALLBACKS = [
    case(
        "stop too short", answering(hx.Control(stop=np.ones(2, bool))), "Answers.setup", "Got bool[2]", "stop=bool[3]"
    ),
    case("stop of floats", answering(hx.Control(stop=np.ones(3))), "Answers.setup", "Got float64[3]"),
    case(
        "one bool for all", answering(hx.Control(snapshot=np.True_)), "Answers.setup", "Got bool[]", "snapshot=bool[3]"
    ),
    case("no Control", answering(True), "Answers.setup", "Got bool", "expected None or Control"),
    case("raises", lambda: fit(callbacks=Answers(raise_full_disk)), "Answers.setup at step 0", "OSError: disk full"),
    case(
        "init raises", lambda: fit(callbacks=InTheProgram(raise_full_disk)), "InTheProgram.init", "OSError: disk full"
    ),
    case(
        "on_step raises",
        lambda: fit(callbacks=InTheProgram(step=raise_full_disk)),
        "InTheProgram.on_step",
        "OSError: disk full",
    ),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), CALLBACKS)
def test_a_callback_that_fails_or_answers_wrongly_is_named_with_its_hook(run, parts):
    assert missing_from(message_of(hx.CallbackError, run), parts) == []


STATES = [
    case("structure", lambda s, loss: {"mean": s}, "its callbacks.InTheProgram", "Got PyTreeDef({'mean': *})"),
    case("shape", lambda s, loss: jnp.ones(3), "callbacks.InTheProgram", "Got float32[3], expected int32[]"),
    case("kind of number", lambda s, loss: s + loss, "callbacks.InTheProgram", "Got float32[], expected int32[]"),
]


@before_any_program
@pytest.mark.parametrize(("step", "parts"), STATES)
def test_a_callbacks_state_must_keep_its_form_from_step_to_step(step, parts):
    callback = InTheProgram(lambda: jnp.zeros((), jnp.int32), step)
    assert missing_from(message_of(hx.ModuleError, lambda: fit(callbacks=callback)), parts) == []


class FailsLate(hx.Callback):
    def on_train_steps_end(self, event):
        raise OSError("disk full")


def test_a_hook_that_raises_in_training_is_named_with_its_step_and_keeps_the_cause():
    with pytest.raises(hx.CallbackError, match=r"FailsLate.on_train_steps_end at step 2\. Got OSError") as failed:
        fit(callbacks=FailsLate())
    assert isinstance(failed.value.__cause__, OSError)


# ---- checkpoints and heads


@before_any_program
@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_a_walk_without_heads_says_how_to_get_some(method):
    message = message_of(hx.ArgumentError, getattr(hx.Trainer(), method))
    assert missing_from(message, ["No heads to evaluate", "no ckpt_path", "Heads.load(path, module)"]) == []


@before_any_program
@pytest.mark.parametrize("ckpt_path", ["last", "best", "nowhere/last"])
def test_a_checkpoint_that_is_not_there_is_an_error_and_no_fresh_start(ckpt_path, tmp_path):
    run = lambda: fit(ckpt_path=ckpt_path, default_root_dir=tmp_path)  # noqa: E731
    assert missing_from(message_of(hx.CheckpointError, run), ["There is no checkpoint", ckpt_path, "auto"]) == []


@before_any_program
def test_heads_of_another_module_are_refused_by_array():
    wide = module(configure_model=lambda self, key: nnx.Linear(4, 5, rngs=nnx.Rngs(key)), test_step=loss_of)
    message = message_of(hx.ArgumentError, lambda: walk("test", wide))
    assert (
        missing_from(message, ["Heads and module do not fit", "array bias", "Got [3] for one head, expected [5]"]) == []
    )


def some(what, index):
    return pytest.param(index, id=what)


@pytest.mark.parametrize(
    "index",
    [
        some("H", HEADS),
        some("-H - 1", -HEADS - 1),
        some("a string", "a"),
        some("a float", 1.0),
        some("None", None),
        some("a bool", True),
        some("a nested list", [[0, 1]]),
        some("an empty list", []),
        some("a slice of none", slice(5, None)),
        some("a mask of another length", [True, False]),
        some("a list past the end", [0, HEADS]),
        some("two axes", (0, 1)),
    ],
)
def test_an_index_that_names_no_head_is_refused(index):
    message = message_of(hx.ArgumentError, lambda: some_heads()[index])
    assert missing_from(message, [str(index), "heads count from 0"]) == []


USES = [
    case("calling what is no function", lambda: some_heads(lambda key: jnp.ones(3))(1.0), "cannot be called: heads"),
    case("Trainer.predict(reduce)", lambda: walk("predict", reduce="sum"), "Trainer.predict(reduce=)", "Got 'sum'"),
    case(
        "Heads.predict(reduce)", lambda: some_heads().predict(np.ones((2, 4)), reduce="sum"), "Heads.predict(reduce=)"
    ),
    case("Heads.predict(batch_size)", lambda: some_heads().predict(np.ones((2, 4)), 0), "Heads.predict(batch_size=)"),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), USES)
def test_asking_heads_for_what_they_cannot_do_is_refused(run, parts):
    assert missing_from(message_of(hx.ArgumentError, run), parts) == []


# ---- sampling, budget, held-out rows


@pytest.mark.parametrize(
    ("how", "parts"),
    [
        pytest.param({}, ["budget. Got 'passes', expected max_epochs too", "pass max_epochs too"], id="no epochs"),
        pytest.param({"max_steps": 9}, ["expected max_epochs too"], id="steps alone"),
        pytest.param(
            {"max_epochs": 2, "limit_train_batches": 0.5}, ["whole passes, not limit_train_batches=0.5"], id="half"
        ),
        pytest.param(
            {"max_epochs": 2, "limit_train_batches": 3}, ["leave limit_train_batches out"], id="three batches"
        ),
        pytest.param({"max_epochs": 2, "overfit_batches": 2}, ["leave overfit_batches out"], id="frozen batches"),
    ],
)
def test_a_budget_of_passes_needs_their_number_and_whole_passes(how, parts):
    message = message_of(hx.ArgumentError, lambda: hx.Trainer(budget="passes", **how))
    assert missing_from(message, ["Invalid Trainer argument: budget", *parts]) == []


@pytest.mark.parametrize(("name", "nearest"), [("budgets", "budget"), ("sample", "sampling"), ("max_passes", "max_")])
def test_an_unknown_argument_of_sampling_or_budget_names_the_nearest_one(name, nearest):
    message = message_of(hx.ArgumentError, lambda: hx.Trainer(**{name: 1}))
    assert missing_from(message, [f": {name}.", f"the nearest name is {nearest}"]) == []


def fit_on_slices(slices, **how):
    return lambda: fit(datamodule=data(slices=slices), **how)


REPEATS = [
    case("a bootstrap", fit_on_slices(hx.Slices.bootstrap(3, ROWS, seed=0), sampling="shared"), "bootstrap"),
    case(
        "a row listed twice",
        fit_on_slices(hx.Slices.from_indices([[1, 1], [2]], ROWS), sampling="shared"),
        "Got Slices(",
    ),
    case(
        "weights above one",
        fit_on_slices(hx.Slices.from_weights(np.eye(ROWS, dtype=int) * 2), sampling="shared"),
        "from_weights",
    ),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), REPEATS)
def test_rows_that_repeat_cannot_be_shared(run, parts):
    what = 'sampling="shared" requires slices without repeated rows: ArrayDataModule.slices'
    expected = [what, 'pass sampling="own"', *parts]
    assert missing_from(message_of(hx.SliceError, run), expected) == []


def scalar(slices, **how):
    return lambda: fit(module(training_step=lambda *a: loss_of(*a).mean()), data(slices=slices), **how)


SCALARS = [
    case(
        "rows of others",
        scalar(hx.Slices.prefix([9, 5, 12], ROWS), sampling="shared"),
        "head 1 owns 5 of the 12 rows that all heads meet",
    ),
    case(
        "passes that end inside a batch",
        scalar(hx.Slices.prefix([9, 5, 12], ROWS), budget="passes", max_epochs=2),
        "a head's last batch ends with its passes",
    ),
    case(
        "a dataset shorter than a batch",
        lambda: fit(module(training_step=lambda *a: loss_of(*a).mean()), data(batch_size=16), sampling="shared"),
        "head 0 has 12 rows for 16 slots",
    ),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), SCALARS)
def test_a_scalar_loss_is_refused_with_the_reason_why_a_slot_can_be_padding(run, parts):
    expected = ["A scalar loss would count padding: training_step. Got a scalar", "ctx.mask", *parts]
    assert missing_from(message_of(hx.ModuleError, run), expected) == []


def own_index(index_dataset, **how):
    mine = type("Mine", (ArrayDataModule,), {"index_dataset": index_dataset})
    return lambda: fit(datamodule=mine(arrays(), slices=hx.Slices.full(HEADS, ROWS), batch_size=SLOTS), **how)


def shared_elements(**parts):
    found = {"rows": np.zeros(SLOTS, np.int32), "mask": np.ones((HEADS, SLOTS), bool)} | parts
    index = grain.MapDataset.source(Elements(lambda t: found))
    return own_index(lambda self, seed=0, sampling="own": index, sampling="shared")


PASSES = {"budget": "passes", "max_epochs": 2}
OWN_INDEX = [
    case(
        "no passes",
        own_index(lambda self, seed=0: None, **PASSES),
        "does not accept passes: Mine.index_dataset. Got seed, expected passes too, since it is 2",
    ),
    case(
        "no sampling",
        own_index(lambda self, seed=0, passes=None: None, sampling="shared"),
        "does not accept sampling: Mine.index_dataset. Got seed, passes, expected sampling",
        "'shared'",
    ),
    case("neither", own_index(lambda self, seed: None, sampling="shared", **PASSES), "does not accept sampling"),
    case(
        "rows for each head",
        shared_elements(rows=np.zeros((HEADS, SLOTS), int)),
        "Got rows [3, 4]",
        "rows [B] and mask [3, B]",
    ),
    case("one mask for all", shared_elements(mask=np.ones(SLOTS, bool)), "Got rows [4] and mask [4]", "mask [3, B]"),
    case("a mask of other heads", shared_elements(mask=np.ones((2, SLOTS), bool)), "mask [2, 4]", "mask [3, B]"),
    case("a shared row N", shared_elements(rows=np.full(SLOTS, ROWS)), "place (0,)", "Got 12, expected 0 <= row < 12"),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), OWN_INDEX)
def test_index_batches_of_the_users_own_must_know_sampling_and_budget(run, parts):
    assert missing_from(message_of(hx.DataError, run), parts) == []


def held_out(slices=None, broken=None, **how):
    folds = hx.Slices.window([0, 4, 8], 4, ROWS)
    return lambda: walk("predict_held_out", broken, data(slices=folds if slices is None else slices), **how)


def refusal(what, error, run, *parts):
    return pytest.param(error, run, parts, id=what)


HELD_OUT = [
    refusal(
        "all rows",
        hx.DataError,
        held_out(hx.Slices.full(HEADS, ROWS)),
        "No rows are held out",
        "all 12 rows",
        "predict()",
    ),
    refusal("other heads", hx.SliceError, held_out(hx.Slices.prefix([3, 5], ROWS)), "Got 2 heads, expected 3"),
    refusal(
        "other rows", hx.SliceError, held_out(hx.Slices.prefix([3, 5, 6], 11)), "Got slices of 11 rows, expected 12"
    ),
    refusal("no slices", hx.SliceError, held_out([[0], [1], [2]]), "Slices have the wrong type", "Got list"),
    refusal("a path for heads", hx.ArgumentError, held_out(heads="runs/heads"), "wrong type: heads", "Got str"),
    refusal(
        "no predictions",
        hx.ModuleError,
        held_out(broken=module(predict_step=lambda *a: None)),
        "Broken.predict_step. Got nothing",
    ),
    refusal(
        "predictions without slots",
        hx.ModuleError,
        held_out(broken=module(predict_step=lambda s, m, b, c: m(b["image"]).mean(axis=0))),
        "A prediction has the wrong shape: Broken.predict_step",
        "expected [4, ...]",
    ),
    refusal(
        "heads of another module",
        hx.ArgumentError,
        held_out(broken=module(configure_model=lambda self, key: nnx.Linear(4, 5, rngs=nnx.Rngs(key)))),
        "Heads and module do not fit",
    ),
    refusal(
        "no training rows",
        hx.DataError,
        lambda: walk("predict_held_out", datamodule=data(train=None)),
        "No dataset to evaluate",
        "Got None",
    ),
]


@before_any_program
@pytest.mark.parametrize(("error", "run", "parts"), HELD_OUT)
def test_rows_that_cannot_be_predicted_out_of_the_slices_are_refused(error, run, parts):
    assert missing_from(message_of(error, run), parts) == []


def test_a_head_that_holds_all_rows_has_no_complement_to_be_validated_on():
    slices = hx.Slices.prefix([5, ROWS, 3], ROWS)
    message = message_of(hx.SliceError, lambda: data(slices=slices, val=arrays(), val_slices=slices.complement()))
    assert missing_from(message, ["Complement of head 1 is empty", "allow_empty=True"]) == []


# ---- sizes that cannot be meant, settings of JAX, callbacks to the host

SIZES = [
    case("chunk", lambda: fit(chunk=10**9), "Trainer(chunk=)", "at most 1,024, as there are 3 heads", "3 or fewer"),
    case("steps_per_call", lambda: fit(steps_per_call=10**9), "steps_per_call", "at most 100,000"),
    case("accumulate", lambda: fit(accumulate_grad_batches=10**7), "at most 1,024, as there are 3 batches"),
    case("batch_size", lambda: fit(datamodule=data(batch_size=10**6)), "ArrayDataModule.batch_size", "as there are 12"),
    case("batch_size, wrapped", lambda: fit(datamodule=data(batch_size=10**6, small_slices="wrap")), "batch_size"),
    case("batch_size beyond int32", lambda: fit(datamodule=data(batch_size=10**30)), "batch_size"),
    case("devices", lambda: fit(devices=10**9), "Trainer(devices=)"),
    case("a clip that float32 rounds to 0", lambda: fit(gradient_clip_val=1e-320), "gradient_clip_val", "above 0"),
]


@before_any_program
@pytest.mark.parametrize(("run", "parts"), SIZES)
def test_a_size_that_cannot_be_meant_is_refused_before_it_takes_the_memory(run, parts):
    assert missing_from(message_of(hx.ArgumentError, run), parts) == []


@pytest.fixture
def jax_config():
    """Sets options of JAX for one test."""
    names = ("jax_disable_jit", "jax_transfer_guard")
    before = {name: getattr(jax.config, name) for name in names}
    yield jax.config.update
    for name, value in before.items():
        jax.config.update(name, value or "allow" if name == "jax_transfer_guard" else value)


@before_any_program
@pytest.mark.parametrize("method", ["fit", "validate", "predict"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_disable_jit", True), ("jax_transfer_guard", "disallow"), ("jax_transfer_guard", "disallow_explicit")],
)
def test_a_setting_of_jax_under_which_nothing_runs_is_refused(jax_config, name, value, method):
    heads = some_heads()
    run = fit if method == "fit" else lambda: walk(method, module(validation_step=loss_of), heads=heads)
    jax_config(name, value)
    message = message_of(hx.ArgumentError, run)
    jax_config(name, False if value is True else "allow")
    assert missing_from(message, [f"jax.config.{name}", f"Got {value!r}", f'jax.config.update("{name}']) == []


@before_any_program
def test_a_setting_of_jax_in_a_with_block_is_refused_in_and_outside_of_it(jax_config):
    with jax.disable_jit():
        message_of(hx.ArgumentError, fit)
    jax_config("jax_disable_jit", True)
    with jax.disable_jit(False):  # for this thread alone; others would run the programs
        message = message_of(hx.ArgumentError, fit)
    jax_config("jax_disable_jit", False)
    assert 'jax.config.update("jax_disable_jit", False)' in message


def calling(callback):
    def step(self, model, batch, ctx):
        callback(batch["image"][:, 0])
        return loss_of(self, model, batch, ctx)

    return stepping(step)


LIKE_COLUMN = jax.ShapeDtypeStruct((SLOTS,), jnp.float32)


@before_any_program
@pytest.mark.parametrize(
    ("callback", "got"),
    [
        (lambda x: io_callback(print, None, x, ordered=True), "Got ValueError: Cannot `vmap` ordered IO callback"),
        (lambda x: jax.pure_callback(np.sin, LIKE_COLUMN, x), "Got NotImplementedError: vmap is only supported"),
    ],
    ids=["ordered", "without vmap_method"],
)
def test_a_callback_to_the_host_that_cannot_be_mapped_over_heads_is_refused_with_the_mend(callback, got):
    message = message_of(hx.ModuleError, calling(callback))
    assert missing_from(message, [got, 'vmap_method="sequential"', "ordered=False"]) == []


# ---- slices


HEADS_OF = [
    case("a step of 0", lambda: hx.Slices.full(3, 4)[::0], "Not a range of heads", "Got slice(None, None, 0)"),
    case("a bound that is text", lambda: hx.Slices.full(3, 4)["a":], "Not a range of heads", "Got slice('a', None"),
    case("a bound that is a float", lambda: hx.Slices.full(3, 4)[0.5:], "Not a range of heads"),
    case("beyond int64", lambda: hx.Slices.full(3, 4)[np.uint64(2**64 - 1)], "Got 18446744073709551615"),
    case("a seed beyond int64", lambda: hx.Slices.random_subset(2, 4, seed=np.uint64(2**64 - 1)), "argument seed"),
    case("too many heads", lambda: hx.Slices.full(2 * 10**9, 10), "num_heads", "Got 2000000000"),
    case("too many draws", lambda: hx.Slices.bootstrap(2 * 10**9, 10), "num_heads"),
    case("too many rows to leave out", lambda: hx.Slices.leave_one_out(2 * 10**9), "num_rows"),
    case("too many windows", lambda: hx.Slices.expanding_window(1, 1, 2**31 - 1), "makes 2147483647 heads"),
]


@pytest.mark.parametrize(("run", "parts"), HEADS_OF)
def test_heads_that_cannot_be_meant_are_refused(run, parts):
    assert missing_from(message_of(hx.ArgumentError, run), parts) == []


@pytest.mark.parametrize(
    "make",
    [lambda: hx.Slices.from_weights(np.ones((0, 3))), lambda: hx.Slices.from_weights(np.ones((0, 3), int), [2])],
)
def test_weights_of_no_head_are_refused(make):
    assert "No slices: a fit needs at least one head" in message_of(hx.SliceError, make)


# ---- what callbacks save


@pytest.mark.parametrize(
    ("state", "got"), [(None, "NoneType"), ([1], "list"), ({1: 2}, "other keys")], ids=["None", "a list", "int keys"]
)
def test_a_state_that_is_no_dict_of_names_is_blamed_on_its_callback(tmp_path, state, got):
    saves = type("Mine", (hx.Callback,), {"state_dict": lambda self: state, "on_train_start": lambda self, event: None})
    how = {"barebones": False, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = lambda: fit(callbacks=[saves()], default_root_dir=tmp_path, **how)  # noqa: E731
    message = message_of(hx.CallbackError, run)
    assert f"A callback's state has the wrong form: Mine.state_dict. Got {got}" in message


@pytest.mark.parametrize("due", ["soon", 1.5, [1], np.array([1, 2])], ids=str)
def test_a_next_due_that_is_no_step_is_blamed_on_its_callback(due):
    names = type("Mine", (hx.Callback,), {"next_due": lambda self, step: due})
    message = message_of(hx.CallbackError, lambda: fit(callbacks=[names()]))
    assert "A callback names no step: Mine.next_due. Got" in message


@pytest.mark.parametrize(
    "control",
    [hx.Control(stop=jax.random.key(0)), hx.Control(stop=[True, [False]]), hx.Control(reason=7)],
    ids=["a key", "a ragged list", "a number as reason"],
)
def test_a_control_that_numpy_cannot_read_is_blamed_on_its_hook(control):
    returns = type("Mine", (hx.Callback,), {"on_train_start": lambda self, event: control})
    message = message_of(hx.CallbackError, lambda: fit(callbacks=[returns()]))
    assert "A callback hook returned an invalid value: Mine.on_train_start. Got" in message


# ---- what runs


@pytest.fixture(scope="module")
def plain():
    return fit()


def arrays_of(result):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result.heads.trainable)]


def printing(method):
    def says(self, *args):
        jax.debug.print("hello")
        return getattr(Works, method)(self, *args)

    return module(**{method: says})


@pytest.mark.parametrize("method", ["training_step", "configure_model", "configure_optimizers"])
def test_jax_debug_print_in_a_method_prints_and_changes_no_bit(method, plain, capfd):
    result = fit(printing(method))
    jax.effects_barrier()
    # A step prints once for each head and step; the others at least once for each head.
    lines = capfd.readouterr().out.splitlines().count("hello")
    assert lines == HEADS * 2 if method == "training_step" else lines >= HEADS
    assert all(map(np.array_equal, arrays_of(result), arrays_of(plain)))


class KeepsArrays(nnx.Module):
    """Arrays that are neither parameters nor variables of Flax."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 3, rngs=rngs)
        self.shift, self.scales, self.calls = (
            jnp.full((1, 4), 0.5),
            nnx.data([jnp.full((1, 4), 2.0)]),
            jnp.zeros((), jnp.int32),
        )

    def __call__(self, x):
        self.calls = self.calls + 1
        return self.linear((x - self.shift) * self.scales[0])


def test_arrays_as_plain_attributes_of_an_nnx_module_are_state_of_the_model():
    result = fit(module(configure_model=lambda self, key: KeepsArrays(nnx.Rngs(key))))
    head, x = result.heads[1], arrays()["image"]
    assert head.calls == 2
    by_hand = (x - 0.5) * 2 @ np.asarray(head.linear.kernel[...]) + np.asarray(head.linear.bias[...])
    np.testing.assert_allclose(head(x), by_hand, rtol=1e-5, atol=1e-6)


def test_the_dense_form_of_a_sparse_column_trains_as_the_array_it_came_from(plain):
    dense = csr_array(arrays()["image"]).toarray()
    assert all(map(np.array_equal, arrays_of(fit(datamodule=data(train=arrays(image=dense)))), arrays_of(plain)))


def test_a_table_of_pandas_trains_as_a_dict_of_its_columns():
    def step(self, model, batch, ctx):
        x = jnp.stack([batch[name] for name in "abcd"], axis=1)
        return optax.softmax_cross_entropy_with_integer_labels(model(x), batch["label"])

    columns = {**dict(zip("abcd", arrays()["image"].T, strict=True)), "label": arrays()["label"]}
    found = [fit(module(training_step=step), data(train=rows)) for rows in (columns, pandas.DataFrame(columns))]
    assert all(map(np.array_equal, *map(arrays_of, found)))
