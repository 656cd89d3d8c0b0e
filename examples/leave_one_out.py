"""Leave-one-out: 442 ridge regressions in one fit, each on all rows of scikit-learn's diabetes data except one.

The predictions of the left-out rows are compared with the closed form, so this also shows how exact a fit can be. It
runs once with each kind of sampling. Here a batch contains all rows, so both learn the same: with own sampling a step
gathers 441 rows for each of the 442 heads, with shared sampling 442 rows for all heads together. Much of the time is
compilation: try `--steps=2000`.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

ALPHA = 10.0  # Ridge minimises (sum of the squared errors) + ALPHA * |w|^2
Batch = dict[str, jax.Array]


# 1. One head, starting at zero. The loss is that of Ridge divided by 2 n; every head has n = N - 1 rows.
class RidgeHead(hx.HydraModule):
    def __init__(self, num_rows: int, lr: float = 0.2) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Linear:
        return nnx.Linear(10, 1, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.sgd(self.hparams.lr, momentum=0.9, nesterov=True)

    def training_step(self, model: nnx.Linear, batch: Batch, ctx: hx.Context) -> jax.Array:
        penalty = ALPHA / (self.hparams.num_rows - 1) * jnp.sum(model.kernel[...] ** 2)
        return ((model(batch["x"])[:, 0] - batch["y"]) ** 2 + penalty) / 2

    def predict_step(self, model: nnx.Linear, batch: Batch, ctx: hx.Context) -> jax.Array:
        return model(batch["x"])[:, 0]


# 2. The closed form from one fit to all rows: the error of a left-out row is residual / (1 - leverage) (Allen's PRESS).
def closed_form(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = np.column_stack([np.ones(len(x)), x])
    penalty = ALPHA * np.diag([0.0] + [1.0] * (x.shape[1] - 1))  # the intercept has no penalty
    hat = x @ np.linalg.solve(x.T @ x + penalty, x.T)
    return y - (y - hat @ y) / (1 - np.diag(hat))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimiser updates per head")
    parser.add_argument("--rows", type=int, default=442, help="number of rows to use, and so of heads")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    x, y = load_diabetes(return_X_y=True)
    x = StandardScaler().fit_transform(x[: args.rows])
    scale = y[: args.rows].std()
    y = y[: args.rows] / scale  # scaled to unit variance, so that one learning rate suits any target
    exact = closed_form(x, y) * scale

    # 3. Head h sees every row except row h. A slice takes thirteen bytes.
    slices = hx.Slices.leave_one_out(len(x))
    data = ArrayDataModule({"x": x, "y": y}, slices=slices, batch_size=len(x))

    print(f"\n{'sampling':<12}{'seconds':>9}{'rmse':>9}{'largest difference from the closed form':>42}")
    for sampling in ("own", "shared"):
        start = time.perf_counter()
        trainer = hx.Trainer(
            max_steps=args.steps, sampling=sampling, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(RidgeHead(len(x)), data)
        # 4. Every row is held out from exactly one head, so the mean over heads is the prediction of that head.
        found = trainer.predict_held_out().per_row() * scale
        secs, rmse = time.perf_counter() - start, np.sqrt(((found - y * scale) ** 2).mean())
        print(f"{sampling:<12}{secs:>9.1f}{rmse:>9.3f}{abs(found - exact).max():>42.1e}")
    print(f"{'closed form':<21}{np.sqrt(((exact - y * scale) ** 2).mean()):>9.3f}")

    args.out.mkdir(parents=True, exist_ok=True)
    columns = np.column_stack([y * scale, found, exact])
    np.savetxt(args.out / "leave_one_out.csv", columns, "%.6f", ",", header="target,left_out,closed_form", comments="")
    print(f"Written: {args.out}/leave_one_out.csv, the prediction of each row by the head that has not seen it")


if __name__ == "__main__":
    main()
