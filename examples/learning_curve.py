"""The learning curve of a small network on scikit-learn's digits: how good is it after 1, 2, 3, 4, ... rows?

21 slice lengths with 13 seeds each make 273 models, called heads. They train side by side from one copy of the data,
and each sees only the rows of its own slice. `make demo` runs this example.
"""

import argparse
import os
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]


# 1. One head: its model and its steps. Losses and metrics have shape [B], and Hydrax averages them.
class DigitClassifier(hx.HydraModule):
    def __init__(self, width: int = 64, lr: float = 3e-3) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Sequential:
        rngs, width = nnx.Rngs(key), self.hparams.width
        return nnx.Sequential(nnx.Linear(64, width, rngs=rngs), nnx.relu, nnx.Linear(width, 10, rngs=rngs))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adamw(self.hparams.lr)

    def training_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["digit"])

    def validation_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        self.log("val_accuracy", model(batch["image"]).argmax(-1) == batch["digit"], prog_bar=True)
        return self.training_step(model, batch, ctx)

    def test_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        self.log("test_accuracy", model(batch["image"]).argmax(-1) == batch["digit"])
        return self.training_step(model, batch, ctx)


def draw(curve: np.ndarray, path: Path) -> None:
    lengths, heads, *numbers = curve.T
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = (("test accuracy", "linear", *numbers[:2]), ("test loss (nats)", "log", *numbers[2:]))
    for axes, (label, yscale, mean, std) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.fill_between(lengths, mean - std, mean + std, alpha=0.25, label="± 1 standard deviation")
        axes.plot(lengths, mean, "o-", markersize=4, label=f"mean of {heads[0]:.0f} seeds")
        axes.set(xscale="log", yscale=yscale, xlabel="rows to learn from", ylabel=label)
        axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, default=22, help="number of slice lengths; rounding may make some equal")
    parser.add_argument("--seeds", type=int, default=13, help="number of heads per length")
    parser.add_argument("--steps", type=int, default=600, help="optimiser updates per head")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    images, digits = load_digits(return_X_y=True)
    others, test = train_test_split(np.arange(len(digits)), test_size=360, stratify=digits, random_state=0)
    train, val = train_test_split(others, test_size=180, stratify=digits[others], random_state=0)
    parts = [{"image": images[rows] / 16, "digit": digits[rows]} for rows in (train, val, test)]

    # 2. The rows of each head: the first n in the order that its seed gives.
    lengths = np.unique(np.geomspace(1, len(train), args.lengths).round().astype(int))
    seeds = np.tile(np.arange(args.seeds), len(lengths))
    slices = hx.Slices.prefix(np.repeat(lengths, args.seeds), num_rows=len(train), seed=seeds)
    data = ArrayDataModule(parts[0], val=parts[1], test=parts[2], slices=slices, batch_size=32, eval_batch_size=180)
    trainer = hx.Trainer(max_steps=args.steps, default_root_dir=args.out, enable_checkpointing=False)
    result = trainer.fit(DigitClassifier(), data)

    # 3. One number per head, float[H], becomes one line per slice length.
    scores = trainer.test(verbose=False)
    accuracy, loss = (scores[name].reshape(len(lengths), args.seeds) for name in ("test_accuracy", "test_loss"))
    numbers = (accuracy.mean(axis=1), accuracy.std(axis=1), loss.mean(axis=1), loss.std(axis=1))
    curve = np.column_stack([lengths, np.full(len(lengths), args.seeds), *numbers])
    print(f"\n{'rows':>6}{'heads':>7}{'test accuracy':>18}{'test loss':>16}   mean ± std over seeds; loss in nats")
    print("\n".join("{:>6.0f}{:>7.0f}{:>10.3f} ± {:.3f}{:>10.3f} ± {:.3f}".format(*line) for line in curve))

    header = "length,heads,accuracy_mean,accuracy_std,loss_mean,loss_std"
    np.savetxt(args.out / "learning_curve.csv", curve, "%.6g", delimiter=",", header=header, comments="")
    draw(curve, args.out / "learning_curve.png")
    result.save_ledger(args.out / "heads.csv", scores=scores["test_accuracy"])
    print(f"\nWritten: {args.out}/learning_curve.csv and learning_curve.png, and heads.csv, one line per head")
    print(f"To see more, run: {os.path.relpath(sys.executable)} -m tensorboard.main --logdir {result.log_dir}")


if __name__ == "__main__":
    main()
