"""A deep ensemble: heads that differ only in their seed, and how much better their mean prediction is.

Each head learns scikit-learn's digits from all training rows, with its own initial values and its own order of rows.
The table compares one head, the mean score of all heads, and the ensemble by accuracy, log-loss and expected
calibration error. With few rows and long training a single head is overconfident. `python examples/deep_ensemble.py`.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]


# 1. One member. It predicts probabilities, so that the mean over heads is a prediction too.
class Member(hx.HydraModule):
    def configure_model(self, key: jax.Array) -> nnx.Sequential:
        rngs = nnx.Rngs(key)
        return nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(1e-2)

    def training_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["digit"])

    def predict_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        return jax.nn.softmax(model(batch["image"]))


# 2. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017: the mean of |accuracy - confidence| over bins of
# equal width, weighted by their rows.
def calibration_error(probabilities: np.ndarray, digits: np.ndarray, num_bins: int = 15) -> float:
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == digits
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, right, num_bins) - np.bincount(bins, confidence, num_bins)
    return float(abs(gaps).sum() / len(digits))


def scores(probabilities: np.ndarray, digits: np.ndarray) -> tuple[float, float, float]:
    accuracy = float((probabilities.argmax(axis=1) == digits).mean())
    probabilities = probabilities.astype(np.float64)
    surely = probabilities / probabilities.sum(axis=1, keepdims=True)  # float32 rows sum to 1 only up to rounding
    return accuracy, float(log_loss(digits, surely, labels=range(10))), calibration_error(probabilities, digits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=32, help="members of the ensemble")
    parser.add_argument("--steps", type=int, default=400, help="optimiser updates per head")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(digits)), train_size=300, stratify=digits, random_state=0)
    train, test = ({"image": images[rows] / 16, "digit": digits[rows]} for rows in parts)

    # 3. Every head sees every row; the id of a head determines its key.
    slices = hx.Slices.full(args.heads, num_rows=len(train["digit"]))
    data = ArrayDataModule(train, predict=test, slices=slices, batch_size=32, eval_batch_size=500)
    trainer = hx.Trainer(max_steps=args.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Member(), data)

    # 4. `reduce="mean"` averages on the device, so the array [H, rows, 10] never comes to the host.
    ensemble = trainer.predict(reduce="mean")
    single = trainer.predict()
    singly = np.array([scores(probabilities, test["digit"]) for probabilities in single])  # [H, 3]
    lines = {
        "head 0": singly[0],
        "heads, on average": singly.mean(axis=0),
        f"mean of {args.heads} heads": np.array(scores(ensemble, test["digit"])),
    }
    print(f"\n{'1,497 test rows':<22}{'accuracy':>10}{'log-loss':>12}{'calibration error':>20}")
    for name, (accuracy, loss, error) in lines.items():
        print(f"{name:<22}{accuracy:>10.4f}{loss:>12.4f}{error:>20.4f}")
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez(args.out / "deep_ensemble.npz", single=single, ensemble=ensemble, digit=test["digit"])
    print(f"Written: {args.out}/deep_ensemble.npz, the probabilities of each head and of the ensemble")


if __name__ == "__main__":
    main()
