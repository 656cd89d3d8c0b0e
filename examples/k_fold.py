"""Five-fold cross-validation in one fit, compared with scikit-learn, which trains one fold after another.

Five heads fit a multinomial logistic regression to scikit-learn's digits, each on all folds except its own. One call
then predicts every row with the head that has not seen it. The loss is convex and the same as scikit-learn's, so both
must reach the same probabilities; the table shows how close they come.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

C = 0.02  # scikit-learn's: it minimises C * (sum of the rows' losses) + |w|^2 / 2
Batch = dict[str, jax.Array]


# 1. One head. Divided by C * n, scikit-learn's objective is a mean over n rows, so the penalty depends on n.
class LogisticHead(hx.HydraModule):
    def __init__(self, l2: hx.PerHead, lr: float = 0.3) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Linear:
        return nnx.Linear(64, 10, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.sgd(self.hparams.lr, momentum=0.9, nesterov=True)

    def training_step(self, model: nnx.Linear, batch: Batch, ctx: hx.Context) -> jax.Array:
        loss = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["digit"])
        return loss + self.hparams.l2 / 2 * jnp.sum(model.kernel[...] ** 2)

    def predict_step(self, model: nnx.Linear, batch: Batch, ctx: hx.Context) -> jax.Array:
        return jax.nn.softmax(model(batch["x"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimiser updates per head")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    pixels, digits = load_digits(return_X_y=True)
    x = StandardScaler().fit_transform(pixels)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)

    # 2. Any scikit-learn splitter gives slices. A batch as large as the longest slice gives exact gradients.
    slices = hx.Slices.from_splits(folds.split(x, digits), num_rows=len(x))
    data = ArrayDataModule({"x": x, "digit": digits}, slices=slices, batch_size=slices.lengths.max())

    # 3. One fit trains all folds; one call predicts the rows that each head did not see: [N, 10].
    start = time.perf_counter()
    trainer = hx.Trainer(max_steps=args.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(LogisticHead(l2=hx.PerHead(1 / (C * slices.lengths))), data)
    ours = trainer.predict_held_out().per_row()
    ours_secs = time.perf_counter() - start

    # 4. The same folds and penalty in scikit-learn.
    start = time.perf_counter()
    solver = LogisticRegression(C=C, tol=1e-7, max_iter=1000)
    theirs = cross_val_predict(solver, x, digits, cv=folds, method="predict_proba")
    theirs_secs = time.perf_counter() - start

    print(f"\n{'out of fold':<14}{'accuracy':>10}{'log-loss':>10}{'seconds':>10}")
    for name, found, secs in (("hydrax", ours, ours_secs), ("scikit-learn", theirs, theirs_secs)):
        print(
            f"{name:<14}{accuracy_score(digits, found.argmax(1)):>10.4f}{log_loss(digits, found):>10.4f}{secs:>10.1f}"
        )
    print(f"largest difference between probabilities: {abs(ours - theirs).max():.1e}")
    args.out.mkdir(parents=True, exist_ok=True)
    np.savetxt(args.out / "k_fold.csv", ours, "%.7g", delimiter=",", header=",".join(map(str, range(10))), comments="")
    print(f"Written: {args.out}/k_fold.csv, the out-of-fold probabilities of every row")


if __name__ == "__main__":
    main()
