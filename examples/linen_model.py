"""A Flax Linen model as a head: `configure_model` returns its variables, and the steps apply the model to them.

The model has batch norm, so a head has running statistics besides its parameters. A step that updates them returns them
with the loss. Five heads learn scikit-learn's wine data, each from all folds except its own, and one call scores the
rows that a head did not see. `python examples/linen_model.py`.
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_wine
from sklearn.model_selection import KFold

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]
Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(3)(nn.relu(nn.Dense(16)(x)))


# 1. "params" is trained. Every other collection is state of the head; only a returned "model" changes it.
class LinenHead(hx.HydraModule):
    def configure_model(self, key: jax.Array) -> Variables:
        return Net().init(key, np.zeros((1, 13), np.float32), train=False)

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(1e-2)

    def training_step(self, model: Variables, batch: Batch, ctx: hx.Context) -> dict[str, Any]:
        logits, moved = Net().apply(model, batch["x"], train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["class"])
        return {"loss": loss, "model": {**model, **moved}}

    def predict_step(self, model: Variables, batch: Batch, ctx: hx.Context) -> jax.Array:
        return jax.nn.softmax(Net().apply(model, batch["x"], train=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="optimiser updates per head")
    args = parser.parse_args()
    x, classes = load_wine(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(x))[:175]  # five folds of 35
    x, classes = np.log1p(x[chosen]), classes[chosen]  # the columns range from 0.1 to 1680

    # 2. A batch is a whole slice, so batch norm sees no padding, and the statistics of a head are those of its rows.
    slices = hx.Slices.from_splits(KFold(5).split(x), num_rows=len(x))
    data = ArrayDataModule({"x": x, "class": classes}, slices=slices, batch_size=slices.lengths.max())
    trainer = hx.Trainer(max_steps=args.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    result = trainer.fit(LinenHead(), data)

    # 3. `heads[k]` has the form that `configure_model` returns: variables for `Net().apply`.
    held_out = trainer.predict_held_out()
    right = held_out.predictions.argmax(axis=-1) == classes[held_out.rows]
    accuracy = np.bincount(held_out.heads, right) / np.bincount(held_out.heads)
    print(f"\n{'fold':<10}{'held-out accuracy':>18}{'mean alcohol by batch norm':>30}{'by NumPy':>12}")
    for head, variables in enumerate(result.heads):
        statistic = variables["batch_stats"]["BatchNorm_0"]["mean"][0]
        print(f"{head:<10}{accuracy[head]:>18.3f}{statistic:>30.4f}{x[slices.rows(head), 0].mean():>12.4f}")
    print(f"{'all':<10}{right.mean():>18.3f}")


if __name__ == "__main__":
    main()
