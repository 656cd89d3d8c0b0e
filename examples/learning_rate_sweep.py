"""A sweep of learning rates: seven rates with five seeds each make 35 heads, trained in one fit.

Every head learns from all training rows of scikit-learn's digits; its learning rate is a `PerHead` hyper-parameter. The
table has one line per rate; the best head follows. `python examples/learning_rate_sweep.py`.
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


# 1. One head. Inside it, `self.hparams.lr` is a single number, the rate of this head.
class Classifier(hx.HydraModule):
    def __init__(self, lr: float | hx.PerHead) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Sequential:
        rngs = nnx.Rngs(key)
        return nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.sgd(self.hparams.lr, momentum=0.9)

    def training_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["digit"])

    def validation_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        self.log("val_accuracy", model(batch["image"]).argmax(-1) == batch["digit"])
        return self.training_step(model, batch, ctx)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of heads per rate")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training rows")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(digits)), test_size=500, stratify=digits, random_state=0)
    train, val = ({"image": images[rows] / 16, "digit": digits[rows]} for rows in parts)

    # 2. Rates times seeds. The seed determines the initial values of a head and its order of rows.
    rates = [float(f"{rate:.1g}") for rate in np.geomspace(1e-4, 3, 7)]
    slices = hx.Slices.product(hx.Slices.full(1, num_rows=len(train["digit"])), lr=rates, repeat=args.seeds)
    data = ArrayDataModule(train, val=val, slices=slices, batch_size=32, eval_batch_size=500)
    module = Classifier(lr=hx.PerHead(slices.axes["lr"]))

    # 3. Only the last validation counts, so validate only once.
    trainer = hx.Trainer(
        max_epochs=args.epochs,
        check_val_every_n_epoch=args.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    result = trainer.fit(module, data)

    # 4. Heads are in the order of the product, with the last axis fastest: [rates, seeds].
    by_rate = {name: result.metrics[name].reshape(len(rates), args.seeds) for name in ("val_accuracy", "val_loss")}
    print(f"\n{'learning rate':<16}{'val accuracy':>14}{'spread':>10}{'val loss':>12}")
    for rate, accuracy, loss in zip(rates, by_rate["val_accuracy"], by_rate["val_loss"], strict=True):
        print(f"{rate:<16g}{accuracy.mean():>14.4f}{accuracy.std():>10.4f}{loss.mean():>12.4f}")
    best = result.best("val_accuracy", "max")  # place, score, settings, and the model itself: an nnx.Sequential
    print(f"best head:  {best.place}  lr={best.settings['lr']:g}  val accuracy {best.score:.4f}")
    args.out.mkdir(parents=True, exist_ok=True)
    ledger = result.save_ledger(args.out / "learning_rate_sweep.csv", scores=result.metrics["val_accuracy"])
    print(f"Written: {ledger}, one line per head, with its accuracy as score")


if __name__ == "__main__":
    main()
