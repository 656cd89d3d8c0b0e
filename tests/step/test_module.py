"""HydraModule: hyper-parameters, what a step logs, and when the module is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hydrax as hx
from hydrax.datamodules import ArrayDataModule
from hydrax.step.context import Context
from hydrax.step.logged import masked_mean
from hydrax.step.module import bind, per_head_values

# ---- save_hyperparameters


class Plain(hx.HydraModule):
    def __init__(self, width, lr=1e-3, *, depth=2, **rest):
        scale = width * 2  # a local name is no hyper-parameter
        self.save_hyperparameters()
        self.scale = scale


class Ignoring(hx.HydraModule):
    def __init__(self, width, lr=1e-3, *, depth=2, **rest):
        self.save_hyperparameters(ignore=["lr", "secret"])


class Named(hx.HydraModule):
    def __init__(self, width, lr=1e-3, *, depth=2, **rest):
        self.save_hyperparameters("depth", "lr")


class NamedAndIgnoring(hx.HydraModule):
    def __init__(self, width, lr=1e-3, *, depth=2, **rest):
        self.save_hyperparameters("depth", "lr", ignore=("lr",))


class Child(Plain):
    def __init__(self, width, heads=4, lr=0.5):
        super().__init__(width * 10, momentum=0.9)
        self.save_hyperparameters()


class SilentChild(Plain):
    def __init__(self, activation="relu"):
        super().__init__(7)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        pytest.param(Plain(3), {"width": 3, "lr": 1e-3, "depth": 2}, id="defaults are kept"),
        pytest.param(Plain(3, 0.1, depth=5, a=1), {"width": 3, "lr": 0.1, "depth": 5, "a": 1}, id="keywords too"),
        pytest.param(Ignoring(3, secret=9, a=1), {"width": 3, "depth": 2, "a": 1}, id="ignore"),
        pytest.param(Named(3, 0.1, a=1), {"depth": 2, "lr": 0.1}, id="names"),
        pytest.param(NamedAndIgnoring(3), {"depth": 2}, id="names and ignore"),
        pytest.param(
            Child(2),
            {"width": 2, "lr": 0.5, "depth": 2, "momentum": 0.9, "heads": 4},
            id="the subclass wins",
        ),
        pytest.param(SilentChild(), {"width": 7, "lr": 1e-3, "depth": 2}, id="of the class that saves only"),
        pytest.param(hx.HydraModule(), {}, id="none without a call"),
    ],
)
def test_save_hyperparameters_keeps_the_arguments_of_the_calling_init(module, expected):
    assert dict(module.hparams) == expected


def test_a_name_that_is_no_argument_is_refused_and_the_arguments_are_listed():
    class Misspelt(hx.HydraModule):
        def __init__(self, width, depth=2):
            self.save_hyperparameters("widht")

    with pytest.raises(hx.ModuleError, match="Got 'widht', expected one of width, depth"):
        Misspelt(3)


def test_two_modules_of_a_class_keep_hyperparameters_of_their_own():
    first, second = Plain(1), Plain(2)
    assert (first.hparams.width, second.hparams.width) == (1, 2)


# ---- per-head values


class Swept(hx.HydraModule):
    def __init__(self, lr, width=8):
        self.save_hyperparameters()
        self.noise = hx.PerHead([0.0, 0.5])


def test_per_head_values_are_found_in_hyperparameters_and_attributes():
    rates = hx.PerHead([1e-3, 1e-2])
    assert per_head_values(Swept(rates)) == {"hparams.lr": rates, "noise": hx.PerHead([0.0, 0.5])}


def test_a_head_sees_its_own_values_and_the_users_module_keeps_all_of_them():
    module = Swept(hx.PerHead([1e-3, 1e-2]))
    bound, _ = bind(module, {"hparams.lr": 0.25, "noise": 0.75}, "training")
    assert (bound.hparams.lr, bound.hparams.width, bound.noise) == (0.25, 8, 0.75)
    assert (module.hparams.lr, module.noise) == (hx.PerHead([1e-3, 1e-2]), hx.PerHead([0.0, 0.5]))


# ---- log


@pytest.mark.parametrize(
    ("stage", "given", "expected"),
    [
        ("training", {}, (False, True, False)),
        ("validation", {}, (False, False, True)),
        ("test", {}, (False, False, True)),
        ("training", {"on_epoch": True}, (False, True, True)),
        ("training", {"on_step": False, "on_epoch": True, "prog_bar": True}, (True, False, True)),
        ("validation", {"on_step": True, "on_epoch": False}, (False, True, False)),
    ],
    ids=str,
)
def test_log_has_the_defaults_of_lightning(stage, given, expected):
    bound, recorder = bind(hx.HydraModule(), {}, stage)
    bound.log("score", 3.0, **given)
    entry = recorder.logged["score"]
    assert (entry.prog_bar, entry.on_step, entry.on_epoch) == expected
    assert entry.value == 3.0


def test_log_dict_logs_each_entry_with_the_same_flags():
    bound, recorder = bind(hx.HydraModule(), {}, "training")
    bound.log_dict({"a": 1.0, "b": 2.0}, prog_bar=True, on_epoch=True)
    assert {name: (e.value, e.prog_bar, e.on_step, e.on_epoch) for name, e in recorder.logged.items()} == {
        "a": (1.0, True, True, True),
        "b": (2.0, True, True, True),
    }


@pytest.mark.parametrize("stage", ["predict", "configure"])
def test_nothing_can_be_logged_where_nothing_is_reported(stage):
    bound, _ = bind(hx.HydraModule(), {}, stage)
    with pytest.raises(hx.ModuleError, match="outside a step"):
        bound.log("score", 1.0)


def test_the_default_prediction_calls_the_model_on_the_batch():
    assert hx.HydraModule().predict_step(lambda batch: batch + 1, 41, None) == 42


# ---- the mean over live slots


@pytest.mark.parametrize(
    ("values", "mask", "expected"),
    [
        ([1.0, 2.0, 6.0], [True, True, True], 3.0),
        ([1.0, 2.0, 6.0], [True, False, True], 3.5),
        ([1.0, np.nan, 6.0], [True, False, True], 3.5),
        ([1.0, np.inf], [False, False], 0.0),
        ([True, False, True, True], [True, True, True, True], 0.75),
        ([1, 2], [True, True], 1.5),
        (4.0, [True, False], 4.0),
    ],
    ids=str,
)
def test_the_mean_is_taken_over_live_slots_alone(values, mask, expected):
    assert masked_mean(jnp.asarray(values), jnp.asarray(mask)) == expected


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bfloat16", "float32"), ("float16", "float32"), ("int32", "float32"), ("bool", "float32")]
)
def test_a_mean_is_never_narrower_than_float32(dtype, expected):
    mean = masked_mean(jnp.ones(2, dtype), jnp.ones(2, bool))
    assert mean.dtype == expected


def test_a_context_goes_through_jax_with_its_mode_as_a_constant():
    key, flags, row = jax.random.key(0), jnp.ones(2, bool), jnp.zeros(2, jnp.int32)
    ctx = Context(key, flags, row, jnp.int32(3), jnp.int32(1), train=True)
    doubled = jax.tree.map(lambda leaf: leaf, ctx)
    assert doubled.train is True
    assert len(jax.tree.leaves(ctx)) == 5


# ---- frozen while a fit runs


class Recorded(hx.HydraModule):
    """Takes down when it is set up and torn down."""

    def __init__(self, loss=jnp.square):
        self.loss, self.heard = loss, []

    def setup(self, stage):
        self.seen_rows = 6  # allowed: the fit has not started
        self.heard.append(("setup", stage))

    def teardown(self, stage):
        self.seen_rows = 0  # allowed: the fit is over
        self.heard.append(("teardown", stage))

    def configure_model(self, key):
        return jnp.ones(())

    def configure_optimizers(self):
        return optax.sgd(0.1)

    def training_step(self, model, batch, ctx):
        return self.loss(batch * model)


class SetsAnAttribute(hx.Callback):
    """Tries to keep something on the module while the fit runs."""

    def __init__(self):
        self.refusals = []

    def on_train_start(self, event):
        with pytest.raises(hx.ModuleError) as refused:
            event.trainer.module.best = 1.0
        self.refusals.append(str(refused.value))


def fit(module, callbacks=()):
    rows = np.linspace(1, 2, 6, dtype=np.float32)
    data = ArrayDataModule(rows, slices=hx.Slices.full(2, 6), batch_size=2)
    return hx.Trainer(max_steps=1, barebones=True, callbacks=list(callbacks)).fit(module, data)


@pytest.fixture(scope="module")
def trained():
    module, callback = Recorded(), SetsAnAttribute()
    before = {name: value for name, value in vars(module).items() if name != "heard"}
    fit(module, [callback])
    return module, callback, before


def test_the_module_is_frozen_while_a_fit_runs(trained):
    _, callback, _ = trained
    assert [refusal.partition(". ")[0] for refusal in callback.refusals] == [
        "An attribute is set while the module is frozen: Recorded.best"
    ]


def test_the_module_is_thawed_after_a_fit(trained):
    module, _, _ = trained
    module.best = 1.0
    assert module.best == 1.0


def test_a_fit_leaves_the_users_module_as_it_was(trained):
    module, _, before = trained
    assert {name: vars(module)[name] for name in before} == before


def test_setup_and_teardown_hear_the_stage_and_may_set_attributes(trained):
    module, _, _ = trained
    assert module.heard == [("setup", "fit"), ("teardown", "fit")]
    assert module.seen_rows == 0


def test_the_module_is_thawed_and_torn_down_after_an_error_too():
    module = Recorded(loss=lambda x: None)
    with pytest.raises(hx.ModuleError, match="A step returned no loss"):
        fit(module)
    module.best = 1.0
    assert module.heard == [("setup", "fit"), ("teardown", "fit")]
