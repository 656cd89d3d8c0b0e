"""One model for each client, on rows that are split unevenly among clients: local against global accuracy.

scikit-learn's digits are split among ten clients in three ways: evenly mixed, one class per client, and by a Dirichlet
distribution, under which clients differ in classes and number of rows. That makes 30 models in one fit. Each learns
alone, without averaging or exchange, so this is the baseline that federated learning has to beat.
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


class Client(hx.HydraModule):
    def configure_model(self, key: jax.Array) -> nnx.Linear:
        return nnx.Linear(64, 10, rngs=nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(0.02)

    def training_step(self, model: nnx.Linear, batch: Batch, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["digit"])

    def validation_step(self, model: nnx.Linear, batch: Batch, ctx: hx.Context) -> None:
        self.log("local_accuracy", model(batch["image"]).argmax(-1) == batch["digit"])

    def test_step(self, model: nnx.Linear, batch: Batch, ctx: hx.Context) -> None:
        self.log("global_accuracy", model(batch["image"]).argmax(-1) == batch["digit"])


# 1. Local accuracy: the test rows are weighted by the mix of classes that the client has in its training rows.
def local_slices(slices: hx.Slices, train_digits: np.ndarray, test_digits: np.ndarray) -> hx.Slices:
    mixes = np.array([np.bincount(train_digits[slices.rows(h)], minlength=10) for h in range(len(slices))])
    weights = mixes[:, test_digits] / np.bincount(test_digits)[test_digits]  # [H, test rows]
    return hx.Slices.from_weights(weights, lengths=len(test_digits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpha", type=float, default=0.3, help="concentration of the Dirichlet distribution")
    parser.add_argument("--passes", type=int, default=20, help="passes of each client over its own rows")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(digits)), test_size=500, stratify=digits, random_state=0)
    train, test = ({"image": images[rows] / 16, "digit": digits[rows]} for rows in parts)

    # 2. Three ways to split the rows. If your data has a client for each row, use `partition_by(client)`.
    deals = {
        "evenly mixed": hx.Slices.dirichlet(train["digit"], alpha=1000, num_heads=10),
        "one class a client": hx.Slices.partition_by(train["digit"]),
        f"uneven, alpha={args.alpha:g}": hx.Slices.dirichlet(train["digit"], args.alpha, num_heads=10, min_size=10),
    }
    slices = hx.Slices.concatenate(deals.values())
    val_slices = local_slices(slices, train["digit"], test["digit"])
    data = ArrayDataModule(train, val=test, val_slices=val_slices, test=test, slices=slices, batch_size=16)

    # 3. Here equal training means equal passes: a client with few rows finishes early and is then frozen.
    trainer = hx.Trainer(
        max_epochs=args.passes,
        budget="passes",
        check_val_every_n_epoch=args.passes,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    result = trainer.fit(Client(), data)

    # 4. One line per client: a pandas DataFrame, or a dict of arrays if pandas is not installed.
    table = result.table()
    table["global_accuracy"] = trainer.test(verbose=False)["global_accuracy"]
    columns = [np.asarray(table[name]) for name in ("length", "local_accuracy", "global_accuracy")]

    print(f"\n{'mean of 10 clients':<22}{'rows':>6}{'local accuracy':>16}{'global accuracy':>17}")
    for name, *means in zip(deals, *(column.reshape(3, 10).mean(axis=1) for column in columns), strict=True):
        print("{:<22}{:>6.0f}{:>16.3f}{:>17.3f}".format(name, *means))
    print("\nthe uneven clients")
    for recipe, *numbers in zip(table["recipe"][20:], *(column[20:] for column in columns), strict=True):
        print("{:<22}{:>6}{:>16.3f}{:>17.3f}".format(recipe, *numbers))
    ledger = result.save_ledger(args.out / "federated.csv", scores=table["global_accuracy"])
    print(f"Written: {ledger}, one line per client, with its global accuracy as score")


if __name__ == "__main__":
    main()
