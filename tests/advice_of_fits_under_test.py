"""Advice of what a fit refuses: a fit that works is broken in one place."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from advice_of_slices_under_test import HEADS, ROWS, H, S
from flax import nnx

import hydrax as hx
from hydrax import callbacks
from hydrax.datamodules import (
    ArrayDataModule,
)

# ---- a fit that works, to be broken in one place

BOTH = S.full(HEADS, ROWS)
SHORT = S.prefix([2, 3], ROWS)  # slots of a batch of 4 are padding


def arrays(**columns):
    return {"x": np.ones((ROWS, 3), np.float32), "y": np.arange(ROWS, dtype=np.float32), **columns}


def loss(self, model, batch, ctx):
    return (model(batch["x"])[:, 0] - batch["y"]) ** 2


class Line(hx.HydraModule):
    def __init__(self, lr=0.1):
        self.save_hyperparameters()

    def configure_model(self, key):
        return nnx.Linear(3, 1, rngs=nnx.Rngs(key))

    def configure_optimizers(self):
        return optax.sgd(self.hparams.lr)

    training_step = validation_step = test_step = loss

    def predict_step(self, model, batch, ctx):
        return model(batch["x"])


def data(train=None, kind=ArrayDataModule, **how):
    return kind(arrays() if train is None else train, **{"slices": BOTH, "batch_size": 2, **how})


def run(datamodule=None, module=None, method="fit", heads=None, fit=None, **how):
    made = hx.Trainer(**{"max_steps": 1, "barebones": True, "chunk": 2, "steps_per_call": 1, **how})
    given = {"heads": heads} if heads is not None else fit or {}
    return getattr(made, method)(module or Line(), datamodule or data(), **given)


def fit(module=None, datamodule=None, **how):
    return run(datamodule, module, **how)


def on(train=None, **how):
    return lambda: run(data(train, **how))


def with_methods(kind=Line, given=None, datamodule=None, trainer=None, method="fit", heads=None, **methods):
    made = type("Mine", (kind,), methods)
    walk = {} if method == "fit" else {"method": method, "heads": some_heads()}
    return lambda: run(datamodule, made(*(given or ())), **walk, **(trainer or {}))


def some_heads():
    return HEADS_OF.setdefault("fit", fit().heads) if "fit" not in HEADS_OF else HEADS_OF["fit"]


HEADS_OF = {}


def log(value, name="score"):
    def step(self, model, batch, ctx):
        self.log(name, value(model, batch, ctx))
        return loss(self, model, batch, ctx)

    return step


def log_both(first, second):
    def step(self, model, batch, ctx):
        self.log("score", 1.0, **first)
        self.log(second, 2.0)
        return loss(self, model, batch, ctx)

    return step


def log_in_scan(self, model, batch, ctx):
    jax.lax.scan(lambda carry, row: (carry, self.log("inner", row.sum())), 0, batch["x"])
    return loss(self, model, batch, ctx)


def log_behind_scan(self, model, batch, ctx):
    self.log("inner", jax.lax.scan(lambda carry, row: (carry + row.sum(), None), 0.0, batch["x"])[0])
    return loss(self, model, batch, ctx)


def branch(self, model, batch, ctx):
    return loss(self, model, batch, ctx) if batch["x"].sum() > 0 else 0.0


def keep(self, model, batch, ctx):
    self.seen = batch["x"]
    return loss(self, model, batch, ctx)


def state_step(state):
    def step(self, model, batch, ctx):
        return {"loss": batch["x"] @ model["params"]["w"], "model": {**model, "stats": state(model["stats"])}}

    return step


def with_state(state):
    def configure(self, key):
        return {"params": {"w": jnp.ones(3)}, "stats": {"seen": jnp.zeros(())}}

    return with_methods(configure_model=configure, training_step=state_step(state))


def answer(control):
    return lambda: fit(callbacks=callbacks.LambdaCallback(on_fit_start=lambda event: control))


def no_rows(self):
    return None


TRIO_OF_SIX = S.prefix([2, 4, 6], ROWS)


class Misspelt(hx.Callback):
    def on_fit_strat(self, event):
        pass


STEPS = [
    ("A step returned no loss", with_methods(training_step=lambda *a: None), with_methods(training_step=loss)),
    (
        "A loss is complex",
        with_methods(training_step=lambda *a: loss(*a) + 1j),
        with_methods(training_step=lambda *a: jnp.abs(loss(*a) + 1j) ** 2),
    ),
    (
        "A loss has the wrong shape",
        with_methods(training_step=lambda s, m, b, c: m(b["x"])),
        with_methods(training_step=lambda s, m, b, c: m(b["x"]).mean(1)),
    ),
    (
        "A scalar loss would count padding",
        with_methods(training_step=lambda *a: loss(*a).mean(), datamodule=data(slices=SHORT, batch_size=4)),
        with_methods(
            training_step=lambda *a: jnp.broadcast_to(jnp.mean(loss(*a), where=a[3].mask), a[3].mask.shape),
            datamodule=data(slices=SHORT, batch_size=4),
        ),
    ),
    (
        "A logged scalar would count padding",
        with_methods(training_step=log(lambda m, b, c: b["y"].mean()), datamodule=data(slices=SHORT, batch_size=4)),
        with_methods(
            training_step=log(lambda m, b, c: jnp.broadcast_to(jnp.mean(b["y"], where=c.mask), c.mask.shape)),
            datamodule=data(slices=SHORT, batch_size=4),
        ),
    ),
    (
        "A logged value is not a number",
        with_methods(training_step=log(lambda *a: [1.0])),
        with_methods(training_step=log(lambda *a: jnp.array(1.0))),
    ),
    (
        "A logged value is complex",
        with_methods(training_step=log(lambda *a: 1j * jnp.ones(()))),
        with_methods(training_step=log(lambda *a: abs(1j * jnp.ones(())))),
    ),
    (
        "A logged value has the wrong shape",
        with_methods(training_step=log(lambda m, b, c: b["x"])),
        with_methods(training_step=log(lambda m, b, c: b["x"].sum(1))),
    ),
    (
        "A metric over a whole set is logged in training",
        with_methods(training_step=log(lambda m, b, c: hx.WholeSet(np.std, b["y"]))),
        with_methods(training_step=log(lambda m, b, c: b["y"].mean())),
    ),
    (
        "A metric over a whole set has the wrong arguments",
        with_methods(
            validation_step=lambda s, m, b, c: s.log("std", hx.WholeSet(np.std, 1.0)), datamodule=data(val=arrays())
        ),
        with_methods(
            validation_step=lambda s, m, b, c: s.log("std", hx.WholeSet(np.std, b["y"])), datamodule=data(val=arrays())
        ),
    ),
    (
        "A logged value has no name",
        with_methods(training_step=log(lambda *a: 1.0, 3)),
        with_methods(training_step=log(lambda *a: 1.0)),
    ),
    (
        "A name is logged twice in one step: self.log",
        with_methods(training_step=log_both({}, "score")),
        with_methods(training_step=log_both({}, "other")),
    ),
    (
        "Two logged values have one name",
        with_methods(training_step=log_both({"on_step": True, "on_epoch": True}, "score_step")),
        with_methods(training_step=log_both({"on_step": True, "on_epoch": True}, "other")),
    ),
    (
        "A value is logged inside an inner jax transformation",
        with_methods(training_step=log_in_scan),
        with_methods(training_step=log_behind_scan),
    ),
    (
        "A value is logged outside a step",
        lambda: Line().log("score", 1.0),
        with_methods(training_step=log(lambda *a: 1.0)),
    ),
    (
        "Python control flow depends on a traced value",
        with_methods(training_step=branch),
        with_methods(training_step=lambda *a: jnp.where(a[2]["x"].sum() > 0, loss(*a), 0.0)),
    ),
    (
        "Python needs the value of a traced array",
        with_methods(training_step=lambda *a: np.sqrt(loss(*a))),
        with_methods(training_step=lambda *a: jnp.sqrt(loss(*a))),
    ),
    (
        "A method failed while it was traced",
        with_methods(training_step=lambda s, m, b, c: b["z"]),
        with_methods(training_step=loss),
    ),
    (
        "An attribute is set while the module is frozen",
        with_methods(training_step=keep),
        with_methods(training_step=log(lambda m, b, c: b["x"].sum())),
    ),
    (
        "A step changes the structure of a head",
        with_state(lambda stats: {**stats, "more": jnp.ones(())}),
        with_state(lambda stats: {"seen": stats["seen"] + 1}),
    ),
    (
        "A step changes the form of an array",
        with_state(lambda stats: {"seen": jnp.ones(2)}),
        with_state(lambda stats: {"seen": stats["seen"] + 1}),
    ),
    ("A method is missing", with_methods(training_step=hx.HydraModule.training_step), with_methods(training_step=loss)),
    ("A method would never be called", with_methods(train_step=lambda *a: loss(*a)), with_methods(training_step=loss)),
    (
        "A method would never be called: Misspelt",
        lambda: fit(callbacks=Misspelt()),
        lambda: fit(callbacks=hx.Callback()),
    ),
    (
        "A method has other parameters",
        with_methods(training_step=lambda self, batch: 0),
        with_methods(training_step=lambda self, model, batch, ctx: loss(self, model, batch, ctx)),
    ),
    ("A model has nothing to train", with_methods(configure_model=lambda self, key: None), with_methods()),
    (
        "configure_optimizers returned no optimiser",
        with_methods(configure_optimizers=lambda self: None),
        with_methods(configure_optimizers=lambda self: optax.adamw(1e-3)),
    ),
    (
        "configure_optimizers has the wrong signature",
        with_methods(configure_optimizers=lambda self, a, b: optax.sgd(0.1)),
        with_methods(configure_optimizers=lambda self, key: optax.sgd(0.1)),
    ),
    (
        "An optimiser draws the same random numbers in all heads",
        with_methods(configure_optimizers=lambda self: optax.noisy_sgd(0.1, key=jax.random.key(0))),
        with_methods(configure_optimizers=lambda self, key: optax.noisy_sgd(0.1, key=key)),
    ),
    (
        "An optimiser needs one number for each head",
        with_methods(given=([0.1, 0.2],)),
        with_methods(given=(H([0.1, 0.2]),)),
    ),
    ("A PerHead has the wrong length", with_methods(given=(H([0.1]),)), with_methods(given=(H([0.1, 0.2]),))),
    (
        "is_trained returned no bool",
        with_methods(is_trained=lambda self, name, value: None),
        with_methods(is_trained=lambda self, name, value: not name.startswith("bias")),
    ),
    (
        "A parameter is a Python number",
        with_methods(
            configure_model=lambda s, k: {"w": 1.0, "v": jnp.ones(3)},
            training_step=lambda s, m, b, c: b["x"] @ m["v"] * m["w"],
        ),
        with_methods(
            configure_model=lambda s, k: {"w": jnp.array(1.0), "v": jnp.ones(3)},
            training_step=lambda s, m, b, c: b["x"] @ m["v"] * m["w"],
        ),
    ),
    (
        "A prediction has the wrong shape",
        with_methods(
            method="predict", datamodule=data(predict=arrays()), predict_step=lambda s, m, b, c: m(b["x"]).sum()
        ),
        with_methods(method="predict", datamodule=data(predict=arrays())),
    ),
    (
        "An update returned no head",
        with_methods(update=lambda self, head, batch, ctx: None),
        with_methods(
            update=lambda self, head, batch, ctx: head.apply(head.gradient(self.training_step, batch, ctx)[1])
        ),
    ),
    (
        "An update changes nothing",
        with_methods(update=lambda self, head, batch, ctx: head),
        with_methods(
            update=lambda self, head, batch, ctx: head.apply(head.gradient(self.training_step, batch, ctx)[1])
        ),
    ),
    ("save_hyperparameters was called outside __init__", lambda: Line().save_hyperparameters(), Line),
    ("An argument has the wrong type: module", lambda: run(module=Line), lambda: run(module=Line())),
    (
        "An argument has the wrong type: heads",
        lambda: run(data(test=arrays()), method="test", heads="x"),
        lambda: run(data(test=arrays()), method="test", heads=some_heads()),
    ),
    (
        "No heads to evaluate",
        lambda: run(data(test=arrays()), method="test"),
        lambda: run(data(test=arrays()), method="test", heads=some_heads()),
    ),
    (
        "No dataset to evaluate",
        lambda: run(method="test", heads=some_heads()),
        lambda: run(data(test=arrays()), method="test", heads=some_heads()),
    ),
    ("A fit has no end", lambda: fit(max_steps=None), lambda: fit(max_steps=1)),
    (
        "Invalid Trainer argument: val_check_interval",
        lambda: fit(datamodule=data(val=arrays()), val_check_interval=9),
        lambda: fit(datamodule=data(val=arrays()), val_check_interval=9, check_val_every_n_epoch=None),
    ),
    (
        "There is no checkpoint: ckpt_path",
        lambda: fit(fit={"ckpt_path": "last"}),
        lambda: fit(fit={"ckpt_path": "auto"}),
    ),
    (
        "An argument has the wrong type: ckpt_path",
        lambda: fit(fit={"ckpt_path": 3}),
        lambda: fit(fit={"ckpt_path": "auto"}),
    ),
    (
        "A fit cannot do both",
        lambda: fit(fit={"ckpt_path": "last", "init_from": some_heads()}),
        lambda: fit(fit={"ckpt_path": "auto", "init_from": some_heads()}),
    ),
    (
        "There is nothing to start from",
        lambda: fit(fit={"init_from": 3}),
        lambda: fit(fit={"init_from": some_heads()[0]}),
    ),
    (
        "The number of heads does not fit",
        lambda: fit(datamodule=data(slices=TRIO_OF_SIX), fit={"init_from": some_heads()}),
        lambda: fit(datamodule=data(slices=TRIO_OF_SIX), chunk=3, fit={"init_from": some_heads()[[0]]}),
    ),
    ("Too many devices requested", lambda: fit(devices=10_000), fit),
    ("Invalid argument: Trainer(chunk=)", lambda: fit(chunk=2000), lambda: fit(chunk=2)),
    (
        "A callback hook returned an invalid value",
        answer(hx.Control(stop=True)),
        answer(hx.Control(stop=np.zeros(HEADS, bool))),
    ),
    (
        "No snapshot to restore",
        lambda: fit(
            callbacks=callbacks.LambdaCallback(on_train_start=lambda event: hx.Control(restore=np.ones(HEADS, bool)))
        ),
        answer(None),
    ),
    (
        "Unknown metric to monitor",
        lambda: fit(datamodule=data(val=arrays()), callbacks=callbacks.EarlyStopping("val_los")),
        lambda: fit(datamodule=data(val=arrays()), callbacks=callbacks.EarlyStopping("val_loss")),
    ),
    ("There is no such head", lambda: some_heads()[2], lambda: some_heads()[1]),
    ("There are no such heads", lambda: some_heads()["a"], lambda: some_heads()[[0, 1]]),
    (
        "Invalid batch size: Heads.predict",
        lambda: some_heads().predict(np.ones((2, 3)), batch_size=0),
        lambda: some_heads().predict(np.ones((2, 3))),
    ),
    (
        "Unknown reduction",
        lambda: some_heads().predict(np.ones((2, 3)), reduce="sum"),
        lambda: some_heads().predict(np.ones((2, 3))),
    ),
    ("Unknown export format", lambda: some_heads().export("heads.zip"), lambda: some_heads().export("heads.npz")),
    ("There is no best head", lambda: fit().best("loss"), lambda: fit(datamodule=data(val=arrays())).best("val_loss")),
    (
        "There is no checkpoint: ",
        lambda: hx.Heads.load("nowhere", Line()),
        lambda: hx.Heads.load(some_heads().save("heads"), Line()),
    ),
]
