"""A grid of learning-rate schedules: three peaks times three warm-up lengths with three seeds each, in one fit.

A schedule is a function of the step, and may use a head's own hyper-parameters: each head warms up to its own peak for
its own number of steps and then decays to zero along a cosine. The table has one line per schedule; the best head
follows. examples/learning_rate_sweep.py is the shorter form. `python examples/hyperparameter_grid.py`.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]
Number = float | jax.Array


# 1. The schedule. Inside a head its numbers are traced, so it must not use a Python `if` on them, as optax's own do.
def rate(step: Number, peak: Number, warmup: Number, num_steps: int) -> jax.Array:
    """Rises from 0 to `peak` in `warmup` steps and falls back to 0 at step `num_steps`."""
    rise = step / jnp.maximum(warmup, 1)
    fall = (1 + jnp.cos(jnp.pi * (step - warmup) / (num_steps - warmup))) / 2
    return peak * jnp.where(step < warmup, rise, fall)


class Classifier(hx.HydraModule):
    def __init__(self, peak: hx.PerHead, warmup: hx.PerHead, num_steps: int) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Sequential:
        rngs = nnx.Rngs(key)
        return nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.sgd(lambda step: rate(step, **self.hparams), momentum=0.9)

    def training_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["digit"])

    def validation_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        self.log("val_accuracy", model(batch["image"]).argmax(-1) == batch["digit"])
        return self.training_step(model, batch, ctx)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of heads per schedule")
    parser.add_argument("--steps", type=int, default=200, help="optimiser updates per head")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(digits)), test_size=500, stratify=digits, random_state=0)
    train, val = ({"image": images[rows] / 16, "digit": digits[rows]} for rows in parts)

    # 2. The grid; the last axis varies fastest. Its axes become hyper-parameters of the heads.
    axes = {"peak": [0.03, 0.3, 1.0], "warmup": [0, args.steps // 10, args.steps // 2]}
    slices = hx.Slices.product(hx.Slices.full(1, num_rows=len(train["digit"])), **axes, seed=args.seeds)
    module = Classifier(**{name: hx.PerHead(slices.axes[name]) for name in axes}, num_steps=args.steps)
    data = ArrayDataModule(train, val=val, slices=slices, batch_size=32, eval_batch_size=500)
    trainer = hx.Trainer(
        max_steps=args.steps,
        check_val_every_n_epoch=None,
        val_check_interval=args.steps,  # once, at the end
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    result = trainer.fit(module, data)

    # 3. One row per head: slice, seed, axes and logged metrics. A pandas DataFrame if pandas is installed.
    table = result.table()
    print(f"\n{'peak':<8}{'warm-up':>10}{'val accuracy':>16}{'spread':>10}{'quarantined':>14}")
    for first in range(0, len(slices), args.seeds):
        heads = slice(first, first + args.seeds)  # the heads that differ only in the seed
        accuracy, lost = np.asarray(table["val_accuracy"])[heads], np.asarray(table["status"])[heads] == "quarantined"
        peak, warmup = (slices.axes[name][first] for name in axes)
        print(f"{peak:<8g}{warmup:>10}{accuracy.mean():>16.4f}{accuracy.std():>10.4f}{lost.sum():>14}")
    best = result.best("val_accuracy", "max")
    settings = "  ".join(f"{name}={best.settings[name]:g}" for name in (*axes, "seed"))
    print(f"best head:  {best.place}  {settings}  val accuracy {best.score:.4f}")
    print(f"Written: {result.save_ledger(args.out / 'hyperparameter_grid.csv', scores=result.metrics['val_accuracy'])}")


if __name__ == "__main__":
    main()
