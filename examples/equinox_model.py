"""An unmodified Equinox model as a head: `configure_model` returns it, and `result.heads[k]` returns one.

Seven heads learn to classify tumours in scikit-learn's breast cancer data from 8, 16, ... rows. The last head is then
saved, loaded and evaluated by Equinox alone. `python examples/equinox_model.py`.
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]


# 1. The model takes one row, like any Equinox model. It contains nothing of Hydrax.
def make_model(key: jax.Array) -> eqx.nn.Sequential:
    first, last = jax.random.split(key)
    layers = [eqx.nn.Linear(30, 16, key=first), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Dropout(0.2)]
    return eqx.nn.Sequential([*layers, eqx.nn.Linear(16, 2, key=last)])


# 2. Hydrax trains the floating-point arrays of the model and carries other arrays along. Everything else, such as
# functions and the dropout rate, is the same for all heads, so no `eqx.partition` is needed.
class EquinoxHead(hx.HydraModule):
    def configure_model(self, key: jax.Array) -> eqx.nn.Sequential:
        return make_model(key)

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(3e-3)

    def training_step(self, model: eqx.nn.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        keys = jax.random.split(ctx.key, len(batch["x"]))  # dropout needs a key for each row
        logits = jax.vmap(model)(batch["x"], key=keys)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["malignant"])

    # Hydrax switches only Flax modules to evaluation mode, so these steps switch dropout off themselves.
    def test_step(self, model: eqx.nn.Sequential, batch: Batch, ctx: hx.Context) -> None:
        logits = jax.vmap(eqx.nn.inference_mode(model))(batch["x"])
        self.log("test_accuracy", logits.argmax(-1) == batch["malignant"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimiser updates per head")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    x, benign = load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x).astype(np.float32)
    parts = train_test_split(np.arange(len(x)), test_size=169, stratify=benign, random_state=0)
    train, test = ({"x": x[rows], "malignant": 1 - benign[rows]} for rows in parts)

    slices = hx.Slices.prefix([8, 16, 32, 64, 128, 256, 400], num_rows=400)
    data = ArrayDataModule(train, test=test, slices=slices, batch_size=32, eval_batch_size=169)
    trainer = hx.Trainer(max_steps=args.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    result = trainer.fit(EquinoxHead(), data)
    print(f"\n{'rows':<22}{'accuracy':>10}")
    for length, accuracy in zip(slices.lengths, trainer.test(verbose=False)["test_accuracy"], strict=True):
        print(f"{length:<22}{accuracy:>10.3f}")

    # 3. From here on only Equinox is used: save the head, load it into a new model, and evaluate that.
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "equinox_model.eqx"
    eqx.tree_serialise_leaves(file, result.heads[-1])
    model = eqx.tree_deserialise_leaves(file, make_model(jax.random.key(0)))
    logits = classify(eqx.nn.inference_mode(model), test["x"])
    print(f"{'the last, read back':<22}{(np.asarray(logits).argmax(-1) == test['malignant']).mean():>10.3f}")
    print(f"Written: {file}, the last head")


@eqx.filter_jit
def classify(model: eqx.nn.Sequential, x: jax.Array) -> jax.Array:
    return jax.vmap(model)(x)


if __name__ == "__main__":
    main()
