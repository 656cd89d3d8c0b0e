"""A first fit: 40 small networks in one fit, the first trained on 10 rows and the last on 400.

`python examples/first_fit.py`. examples/learning_curve.py is the longer form, with a validation set, seeds and a plot.
"""

import jax
import optax
from flax import nnx
from sklearn.datasets import load_digits

import hydrax as hx
from hydrax.datamodules import ArrayDataModule


class Classifier(hx.HydraModule):
    def configure_model(self, key: jax.Array) -> nnx.Sequential:  # ONE head
        rngs = nnx.Rngs(key)
        return nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(3e-3)

    def training_step(self, model: nnx.Sequential, batch: dict[str, jax.Array], ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["digit"])  # [B]


def main() -> None:
    images, digits = load_digits(return_X_y=True)
    rows = {"image": images[:400] / 16, "digit": digits[:400]}
    slices = hx.Slices.prefix(range(10, 401, 10), num_rows=400)  # head k learns from the first 10 * (k + 1) rows
    data = ArrayDataModule(rows, slices=slices, batch_size=32)
    trainer = hx.Trainer(max_steps=300, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    heads = trainer.fit(Classifier(), data).heads

    logits = heads.predict(images[400:] / 16)  # NumPy, float32[40, 1397, 10]: all heads in one call
    accuracy = (logits.argmax(axis=-1) == digits[400:]).mean(axis=1)
    for head in (0, 1, 3, 9, 19, 39):
        print(f"{slices.lengths[head]:>4} rows  {accuracy[head]:.3f}")
    model = heads[39]  # an ordinary nnx.Sequential
    print(f"image 400 is a {digits[400]}, and the last model says {model(images[400] / 16).argmax()}")


if __name__ == "__main__":
    main()
