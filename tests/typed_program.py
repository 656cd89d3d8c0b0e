"""A user's program with types: `mypy --strict` accepts it, knows what comes back, and finds what is wrong.

`make lint` checks it against the source, tests/project/test_packaging.py against the wheel; nothing runs it. An error
that is ignored here must be found: strict mypy refuses an ignore that nothing needs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import jax
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

import hydrax as hx
from hydrax.callbacks import EarlyStopping, ModelCheckpoint
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]


class Classifier(hx.HydraModule):
    def __init__(self, width: int = 8, lr: float | hx.PerHead = 1e-3) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Linear:
        return nnx.Linear(4, 3, rngs=nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(self.hparams.lr)

    def training_step(self, model: nnx.Linear, batch: Batch, ctx: hx.Context) -> jax.Array:
        assert_type(ctx.mask, jax.Array)
        logits: jax.Array = model(batch["x"])
        self.log("accuracy", logits.argmax(-1) == batch["y"], prog_bar=True)
        return -jax.nn.log_softmax(logits)[:, 0]

    def validation_step(self, model: nnx.Linear, batch: Batch, ctx: hx.Context) -> jax.Array:
        return self.training_step(model, batch, ctx)

    def update(self, head: hx.TrainingHead, batch: Batch, ctx: hx.Context) -> hx.TrainingHead:
        loss, gradients, head = head.gradient(self.training_step, batch, ctx)
        assert_type(loss, jax.Array)
        return head.apply(gradients)


class Rows(hx.DataModule):
    batch_size = 16
    small_slices = "wrap"

    def setup(self, stage: str) -> None:
        self.rows = {"x": np.zeros((20, 4), np.float32), "y": np.zeros(20, np.int32)}

    def train_dataset(self) -> dict[str, NDArray[Any]]:
        return self.rows

    def slices(self) -> hx.Slices:
        return hx.Slices.prefix([5, 20], num_rows=20)

    def val_dataset(self) -> dict[str, NDArray[Any]]:
        return self.rows

    def val_slices(self) -> hx.Slices | None:
        return self.slices().complement(allow_empty=True)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": 0}


class Best(hx.Callback):
    """Keeps each head's best model; a mean of its loss in the program."""

    def __init__(self) -> None:
        self.best: NDArray[np.float32] | None = None

    def on_validation_end(self, event: hx.Event) -> hx.Control | None:
        assert_type(event.trainer.heads, hx.Heads)
        assert_type(event.trainer.snapshots_of(self), hx.Heads | None)
        assert_type(event.step, int)
        loss = event.metrics["val_loss"]
        better = loss < (np.inf if self.best is None else self.best)
        self.best = np.where(better, loss, np.inf if self.best is None else self.best)
        return hx.Control(snapshot=better, stop=~event.live)

    def on_fit_end(self, event: hx.Event) -> None:
        event.trainer.save_ledger("ledger.csv", monitor="val_loss")

    def init(self, head: Any) -> jax.Array:
        return jax.numpy.zeros(())

    def on_step(self, state: jax.Array, info: hx.StepInfo) -> jax.Array:
        return 0.9 * state + 0.1 * info.loss

    def metrics(self, state: jax.Array, info: hx.StepInfo) -> Mapping[str, jax.Array]:
        return {"mean_loss": state}


def slices() -> hx.Slices:
    few = hx.Slices.random_subset([10, 20], num_rows=100, seed=1)
    assert_type(few, hx.Slices)
    assert_type(hx.Slices.product(few, seed=3), hx.Slices)
    assert_type(few[[0, 1]], hx.Slices)
    assert_type(few.lengths, NDArray[np.int32])
    assert_type(few.rows(0), NDArray[np.int32])
    assert_type(few.mask(), NDArray[np.bool_])
    return few


def main(folder: Path) -> None:
    rows = {"x": np.zeros((100, 4), np.float32), "y": np.zeros(100, np.int32)}
    data = ArrayDataModule(rows, slices=slices(), val=rows, test=rows, predict=rows, batch_size=16)
    module = Classifier(lr=hx.PerHead([1e-3, 1e-2]))
    callbacks = [Best(), EarlyStopping("val_loss", patience=3), ModelCheckpoint(monitor="val_loss")]
    trainer = hx.Trainer(max_steps=10, callbacks=callbacks, default_root_dir=folder)

    result = trainer.fit(module, data)
    assert_type(result, hx.FitResult)
    assert_type(result.metrics["val_loss"], np.ndarray)
    assert_type(result.heads, hx.Heads)
    assert_type(result.heads[[0, 1]], hx.Heads)
    assert_type(result.heads[result.live], hx.Heads)
    assert_type(result.best().score, float)
    assert_type(result.log_dir, Path | None)
    assert_type(result.plan, hx.Plan | None)
    model: nnx.Linear = result.heads[0]  # Any: what `configure_model` returns, no annotation can tell
    model(jax.numpy.asarray(rows["x"]))

    assert_type(trainer.validate(), dict[str, np.ndarray])
    assert_type(trainer.test(module, data, heads=result.heads), dict[str, np.ndarray])
    predictions: NDArray[np.float32] = trainer.predict(ckpt_path="last", reduce="mean")
    assert_type(trainer.predict_held_out(), hx.HeldOut)
    assert_type(trainer.plan(module, data).share_of_limit, float | None)
    assert_type(trainer.global_step, int)
    assert_type(trainer.callback_metrics, Mapping[str, np.ndarray])
    np.save(folder / "predictions.npy", predictions)

    assert_type(result.heads.save(folder / "heads"), Path)
    assert_type(hx.Heads.load(folder / "heads", module), hx.Heads)
    assert_type(Classifier.load_from_checkpoint(folder / "heads"), hx.Heads)


def mistakes(trainer: hx.Trainer, module: Classifier, data: Rows) -> None:
    hx.Trainer(max_step=10)  # type: ignore[call-arg]
    hx.Trainer(max_steps="10")  # type: ignore[arg-type]
    trainer.fit(data, module)  # type: ignore[arg-type]
    trainer.fit(Classifier, data)  # type: ignore[arg-type]
    hx.Slices.prefix([5, 20])  # type: ignore[call-arg]
    data.small_slices = "wrapped"  # type: ignore[assignment]
    hx.Control(stop=True)  # type: ignore[arg-type]
