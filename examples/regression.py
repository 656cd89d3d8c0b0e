"""MLP regression on many slices: how the error on scikit-learn's diabetes data falls with the number of training rows.

Six lengths with twenty random subsets each make 120 heads, scored on the same test rows. The table compares them with
ridge regression on the same rows: 442 people are few for an MLP. `python examples/regression.py`.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]


# 1. One head: an MLP with one output. The loss is the squared error of each row, [B].
class Regressor(hx.HydraModule):
    def __init__(self, width: int = 16, lr: float = 3e-3, weight_decay: float = 0.1) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Sequential:
        rngs, width = nnx.Rngs(key), self.hparams.width
        return nnx.Sequential(nnx.Linear(10, width, rngs=rngs), nnx.tanh, nnx.Linear(width, 1, rngs=rngs))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adamw(self.hparams.lr, weight_decay=self.hparams.weight_decay)

    def training_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        return (self.predict_step(model, batch, ctx) - batch["y"]) ** 2

    def test_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> None:
        error = self.predict_step(model, batch, ctx) - batch["y"]
        self.log_dict({"squared_error": error**2, "absolute_error": abs(error)})

    def predict_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        return model(batch["x"])[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subsets", type=int, default=20, help="number of heads per length")
    parser.add_argument("--steps", type=int, default=300, help="optimiser updates per head")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    x, y = load_diabetes(return_X_y=True)
    x = x * len(x) ** 0.5  # the columns have a 2-norm of 1; this gives them a standard deviation of 1
    parts = train_test_split(np.arange(len(y)), test_size=122, random_state=0)
    centre, scale = y[parts[0]].mean(), y[parts[0]].std()
    train, test = ({"x": x[rows], "y": (y[rows] - centre) / scale} for rows in parts)

    # 2. Subsets with the same seed are nested: a longer one contains the shorter ones.
    lengths = np.array([10, 20, 40, 80, 160, 320])
    seeds = np.tile(np.arange(args.subsets), len(lengths))
    slices = hx.Slices.random_subset(np.repeat(lengths, args.subsets), num_rows=len(train["y"]), seed=seeds)
    data = ArrayDataModule(train, test=test, predict=test, slices=slices, batch_size=32, eval_batch_size=122)
    trainer = hx.Trainer(max_steps=args.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Regressor(), data)

    # 3. Means over the test rows, float32[H]. R^2 is 1 minus the squared error over the variance of the targets.
    errors = trainer.test(verbose=False)
    ours = 1 - errors["squared_error"] / test["y"].var()
    theirs = np.array([ridge_score(train, test, slices.rows(head)) for head in range(len(slices))])

    print(f"\n{'rows':<8}{'R^2 of MLPs':>14}{'spread':>10}{'mean error':>14}{'R^2 of ridge':>16}")
    by_length = (column.reshape(len(lengths), -1) for column in (ours, errors["absolute_error"] * scale, theirs))
    for length, mlp, error, ridge in zip(lengths, *by_length, strict=True):
        print(f"{length:<8}{mlp.mean():>14.3f}{mlp.std():>10.3f}{error.mean():>14.2f}{ridge.mean():>16.3f}")
    args.out.mkdir(parents=True, exist_ok=True)
    np.save(args.out / "regression.npy", trainer.predict() * scale + centre)
    print(f"Written: {args.out}/regression.npy, each head's predictions of the test rows")


def ridge_score(train: dict[str, np.ndarray], test: dict[str, np.ndarray], rows: np.ndarray) -> float:
    ridge = Ridge(alpha=10).fit(train["x"][rows], train["y"][rows])
    return float(r2_score(test["y"], ridge.predict(test["x"])))


if __name__ == "__main__":
    main()
