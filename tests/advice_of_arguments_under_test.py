"""Advice of the arguments of the Trainer, of callbacks and of models."""

import jax
import jax.numpy as jnp
import numpy as np
from advice_of_fits_under_test import fit

import hydrax as hx
from hydrax import callbacks
from hydrax.nn import MLP

# ---- arguments of the Trainer, of callbacks and of models


def trainer(**arguments):
    return lambda: hx.Trainer(**{"max_steps": 1, **arguments})


def argument(name, wrong, right):
    return (
        f"Invalid Trainer argument: {name}",
        trainer(**{name: wrong}),
        trainer(**({} if right is None else {name: right})),
    )


def of_callback(name, wrong, right, **others):
    """One argument of a callback; None leaves it out."""
    kind, argument = name.split(".")
    make = getattr(callbacks, kind)
    return (
        f"Invalid argument: {kind}({argument}=...)",
        lambda: make(**others, **{argument: wrong}),
        lambda: make(**others, **({} if right is None else {argument: right})),
    )


ARGUMENTS = [
    argument("max_steps", 0, 8),
    argument("log_every_n_steps", 0, 8),
    argument("chunk", 0, "auto"),
    argument("steps_per_call", 0, "auto"),
    argument("steps_per_call", 2**40, "auto"),
    argument("device_memory", 0, "auto"),
    argument("devices", 0, 1),
    argument("devices", [1, 1], jax.devices()[:1]),
    argument("max_steps", np.array([1, 2]), np.array(2).item()),
    argument("min_steps", 2, None),
    argument("accumulate_grad_batches", 0, 8),
    argument("accumulate_grad_batches", {}, {0: 8, 4: 1}),
    argument("limit_val_batches", 1.5, 1.0),
    argument("limit_train_batches", 0, 1.0),
    argument("num_sanity_val_steps", -2, None),
    argument("val_check_interval", 0, 1.0),
    argument("gradient_clip_algorithm", "both", "norm"),
    argument("precision", "16-mixed", "bf16-mixed"),
    argument("precision", "half", "32-true"),
    argument("gradient_clip_val", 0, None),
    argument("seed", -1, 0),
    argument("deterministic", 1, True),
    argument("fast_dev_run", "yes", True),
    argument("logger", "tb", True),
    argument("default_root_dir", 3, None),
    argument("max_step", 3, None),
    (
        "Invalid Trainer argument: budget",
        trainer(budget="passes"),
        trainer(budget="passes", max_epochs=2),
    ),
    (
        "Invalid Trainer argument: budget",
        trainer(budget="passes", max_epochs=2, limit_train_batches=3),
        trainer(budget="passes", max_epochs=2),
    ),
    (
        "Invalid Trainer argument: max_epochs",
        trainer(budget="passes", max_epochs=2**31 + 1),
        trainer(budget="passes", max_epochs=2),
    ),
    (
        "Invalid Trainer argument: val_check_interval",
        trainer(check_val_every_n_epoch=None, val_check_interval=0.5),
        trainer(check_val_every_n_epoch=None, val_check_interval=5),
    ),
    ("Invalid Trainer argument: strategy", trainer(strategy="ddp"), trainer()),
    ("Wrong number of arguments: Trainer.fit", lambda: trainer()().fit(), lambda: fit()),
    ("A callback has the wrong type", trainer(callbacks=[hx.Callback]), trainer(callbacks=[hx.Callback()])),
    ("An attribute does not exist", lambda: trainer()().validat, lambda: trainer()().validate),
    ("There is no run", lambda: trainer()().ledger(), lambda: fit()),
    # ---- callbacks
    of_callback("CSVLogger.filename", 3, None),
    of_callback("EarlyStopping.patience", -1, 3, monitor="val_loss"),
    of_callback("ExponentialMovingAverage.decay", 2, 0.999),
    of_callback("ExponentialMovingAverage.start_step", -1, None),
    of_callback("ExponentialMovingAverage.evaluate", 1, None),
    of_callback("GradientNormMonitor.by_group", 1, None),
    of_callback("LambdaCallback.on_fit_start", 3, lambda event: ...),
    of_callback("ModelCheckpoint.save_last", 1, True),
    of_callback("ModelSummary.max_lines", 0, None),
    of_callback("ProgressBar.refresh_per_second", 0, None),
    of_callback("StochasticWeightAveraging.start_step", -1, 3),
    of_callback("StochasticWeightAveraging.every_n_steps", 0, None, start_step=3),
    of_callback("StochasticWeightAveraging.evaluate", 1, None, start_step=3),
    of_callback("TensorBoardLogger.max_head_runs", -1, 3),
    of_callback("ThroughputMonitor.window_secs", 0, None),
    of_callback("WandbLogger.mode", "on", None),
    (
        "Invalid argument: Timer.time_elapsed(stage=...)",
        lambda: callbacks.Timer().time_elapsed("fit"),
        lambda: callbacks.Timer().time_elapsed(),
    ),
    ("Invalid duration", lambda: callbacks.Timer("2 minutes"), lambda: callbacks.Timer("00:02:00:00")),
    ("Invalid duration", trainer(max_time="2 minutes"), trainer(max_time="00:02:00:00")),
    ("Unknown mode", lambda: callbacks.ModelCheckpoint(mode="low"), lambda: callbacks.ModelCheckpoint(mode="min")),
    ("Time out of range", lambda: callbacks.ModelCheckpoint(train_time_interval=0), callbacks.ModelCheckpoint),
    *(
        (f"Count out of range: ModelCheckpoint({name}", lambda name=name: callbacks.ModelCheckpoint(**{name: 0}), right)
        for name, right in (
            ("save_top_k", callbacks.ModelCheckpoint),
            ("keep_last", lambda: callbacks.ModelCheckpoint("val_loss", save_last=False)),
            ("every_n_train_steps", callbacks.ModelCheckpoint),
            ("every_n_epochs", callbacks.ModelCheckpoint),
        )
    ),
    (
        "No learning rate found",
        lambda: callbacks.LearningRateMonitor(3),
        lambda: fit(callbacks=callbacks.LearningRateMonitor(lambda step, hparams: 0.1)),
    ),
    (
        "Unknown metric: LearningCurvePlot",
        lambda: callbacks.LearningCurvePlot(3),
        lambda: callbacks.LearningCurvePlot("val_accuracy"),
    ),
    ("Invalid argument: MLP(sizes=)", lambda: MLP([3]), lambda: MLP([784, 128, 10])),
    (
        "Invalid argument: MLP(activation=)",
        lambda: MLP([3, 1], activation=3),
        lambda: MLP([3, 1]),
    ),
    (
        "Rows of the wrong shape",
        lambda: MLP([4, 1])(jax.random.key(0))(jnp.ones((2, 3))),
        lambda: MLP([4, 1])(jax.random.key(0))(jnp.ones((2, 2, 2))),
    ),
]
