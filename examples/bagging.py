"""Bagging of neural networks: how good is the ensemble, and does the out-of-bag score tell?

Each head learns from a bootstrap of scikit-learn's digits: as many rows as the dataset has, drawn with replacement.
Each row is then predicted by the mean of the heads that did not draw it, which scores the ensemble without a separate
test set. The table compares this out-of-bag score with the score on rows that no head has seen.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]


# 1. One head: a small MLP. It predicts probabilities, so that the mean over heads is a prediction too.
class Bagged(hx.HydraModule):
    def __init__(self, width: int = 32, lr: float = 5e-3) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Sequential:
        rngs, width = nnx.Rngs(key), self.hparams.width
        return nnx.Sequential(nnx.Linear(64, width, rngs=rngs), nnx.relu, nnx.Linear(width, 10, rngs=rngs))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(self.hparams.lr)

    def training_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["digit"])

    def test_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> None:
        self.log("test_accuracy", model(batch["image"]).argmax(-1) == batch["digit"])

    def predict_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        return jax.nn.softmax(model(batch["image"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=64, help="number of bootstraps, and so of heads")
    parser.add_argument("--steps", type=int, default=300, help="optimiser updates per head")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(digits)), test_size=0.4, stratify=digits, random_state=0)
    train, test = ({"image": images[rows] / 16, "digit": digits[rows]} for rows in parts)

    # 2. Bootstraps take no memory. A head sees every copy of a row once per pass.
    slices = hx.Slices.bootstrap(args.heads, num_rows=len(train["digit"]))
    data = ArrayDataModule(train, test=test, predict=test, slices=slices, batch_size=32, eval_batch_size=512)
    trainer = hx.Trainer(max_steps=args.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Bagged(), data)

    # 3. Out of bag: one prediction for each pair of a head and an unseen row, then the mean over heads for each row.
    out_of_bag = trainer.predict_held_out()
    scored = out_of_bag.counts > 0  # with few heads, some rows are in every bag
    single_hits = out_of_bag.predictions.argmax(-1) == train["digit"][out_of_bag.rows]
    ensemble_hits = (out_of_bag.per_row().argmax(-1) == train["digit"])[scored]

    # 4. Test rows: a score for each head, and the mean probabilities of the ensemble, averaged on the device.
    single_test = trainer.test(verbose=False)["test_accuracy"]  # float32[H]
    ensemble_test = trainer.predict(reduce="mean").argmax(-1) == test["digit"]

    lines = (
        ("one head, on average", single_hits.mean(), single_test.mean()),
        (f"mean of {args.heads} heads", ensemble_hits.mean(), ensemble_test.mean()),
    )
    print(f"\n{'accuracy':<24}{'out of bag':>12}{'test rows':>12}")
    for line in lines:
        print("{:<24}{:>12.3f}{:>12.3f}".format(*line))
    print(f"{out_of_bag.mask.mean():.1%} of the rows are out of bag, on average over heads")

    args.out.mkdir(parents=True, exist_ok=True)
    scores = np.array([line[1:] for line in lines])
    np.savetxt(args.out / "bagging.csv", scores, "%.6f", ",", header="out_of_bag,test", comments="")
    print(f"Written: {args.out}/bagging.csv, the four scores")


if __name__ == "__main__":
    main()
