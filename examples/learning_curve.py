"""The learning curve of a small network on scikit-learn's digits: how good does it get from 1, 2, 3, 4 ... rows?

21 slice lengths with 13 seeds each make 273 models, here called heads. They train side by side from one copy of the
data, and each sees only the rows of its own slice. `make demo` runs it.
"""

import argparse
import os
import sys
import time
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
COLUMNS = ("length", "heads", "accuracy_mean", "accuracy_std", "loss_mean", "loss_std")


# 1. The model of one head: an ordinary Flax module, which knows nothing of the others.
class MLP(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, width, rngs=rngs)
        self.out = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.hidden(image)))


# 2. What one head does with one batch. Losses and metrics are [B], one for each row: Hydrax takes the mean.
class DigitClassifier(hx.HydraModule):
    def __init__(self, width: int = 64, lr: float = 3e-3) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> MLP:
        return MLP(self.hparams.width, nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adamw(self.hparams.lr)

    def training_step(self, model: MLP, batch: Batch, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["digit"])

    def validation_step(self, model: MLP, batch: Batch, ctx: hx.Context) -> jax.Array:
        return self.evaluate("val", model, batch)

    def test_step(self, model: MLP, batch: Batch, ctx: hx.Context) -> jax.Array:
        return self.evaluate("test", model, batch)

    def evaluate(self, stage: str, model: MLP, batch: Batch) -> jax.Array:
        logits = model(batch["image"])
        self.log(f"{stage}_accuracy", logits.argmax(-1) == batch["digit"], prog_bar=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["digit"])


# 3. The data, and the rows of each head: the first n of the order that its seed shuffles.
def make_data(num_lengths: int, num_seeds: int) -> ArrayDataModule:
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)  # pixels of 0..16 become 0..1
    train_and_val, test = train_test_split(np.arange(len(digits)), test_size=360, stratify=digits, random_state=0)
    train, val = train_test_split(train_and_val, test_size=180, stratify=digits[train_and_val], random_state=0)
    parts = [{"image": images[rows], "digit": digits[rows]} for rows in (train, val, test)]

    lengths = np.unique(np.geomspace(1, len(train), num_lengths).round().astype(int))
    seeds = np.tile(np.arange(num_seeds), len(lengths))
    slices = hx.Slices.prefix(np.repeat(lengths, num_seeds), num_rows=len(train), seed=seeds)
    return ArrayDataModule(parts[0], val=parts[1], test=parts[2], slices=slices, batch_size=32, eval_batch_size=180)


# 4. From one score for each head to one line for each slice length.
def summarise(lengths: np.ndarray, scores: dict[str, np.ndarray]) -> np.ndarray:
    lines = []
    for length in np.unique(lengths):
        heads = lengths == length  # bool[H]: those that differ in the seed only
        accuracy, loss = scores["test_accuracy"][heads], scores["test_loss"][heads]
        lines.append((length, heads.sum(), accuracy.mean(), accuracy.std(), loss.mean(), loss.std()))
    return np.array(lines)


def draw(curve: np.ndarray, path: Path) -> None:
    lengths, heads, *numbers = curve.T
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = (("test accuracy", "linear", *numbers[:2]), ("test loss (nats)", "log", *numbers[2:]))
    for axes, (label, yscale, mean, std) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.fill_between(lengths, mean - std, mean + std, alpha=0.25, label="± 1 standard deviation")
        axes.plot(lengths, mean, "o-", markersize=4, label=f"mean of {heads[0]:.0f} seeds")
        axes.set(xscale="log", yscale=yscale, xlabel="rows to learn from", ylabel=label)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle("Learning curve of an MLP (64-64-10) on scikit-learn's digits")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, default=22, help="slice lengths, before rounding makes some equal")
    parser.add_argument("--seeds", type=int, default=13, help="heads of each length")
    parser.add_argument("--steps", type=int, default=600, help="optimiser updates of every head")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for all that is written")
    args = parser.parse_args()
    start = time.perf_counter()

    # 5. The run. `test` gives one number for each head: scores["test_accuracy"] is float[H].
    module, data = DigitClassifier(), make_data(args.lengths, args.seeds)
    trainer = hx.Trainer(max_steps=args.steps, default_root_dir=args.out, enable_checkpointing=False)
    result = trainer.fit(module, data)
    scores = trainer.test(verbose=False)

    curve = summarise(data.slices().lengths, scores)
    print(f"\n{'rows':>6}{'heads':>7}{'test accuracy':>18}{'test loss':>16}   mean ± std over seeds; loss in nats")
    for line in curve:
        print("{:>6.0f}{:>7.0f}{:>10.3f} ± {:.3f}{:>10.3f} ± {:.3f}".format(*line))

    out, python = args.out, os.path.relpath(sys.executable)
    np.savetxt(out / "learning_curve.csv", curve, "%.6g", delimiter=",", header=",".join(COLUMNS), comments="")
    draw(curve, out / "learning_curve.png")
    result.save_ledger(out / "heads.csv", scores=scores["test_accuracy"])
    print(f"\n{len(result.heads)} heads of {result.step} steps took {time.perf_counter() - start:.0f} s. Written:")
    print(f"  {out}/learning_curve.png and .csv: the curve")
    print(f"  {out}/heads.csv: every head with its recipe, seed, length, score (test accuracy) and status")
    print(f"  {result.log_dir}: events for TensorBoard. To see them:")
    print(f"    {python} -m tensorboard.main --logdir {result.log_dir}")


if __name__ == "__main__":
    main()
