"""Small convolutional networks on synthetic images of CIFAR-10's shape, 32 x 32 x 3.

A class is a direction and a colour of stripes. Their position is random and noise covers them, so no single pixel is
informative. The heads learn from 50, 100, ... images. The last line is the accuracy of the best possible classifier,
which knows how the images are made. `hydrax.datamodules.CIFAR10DataModule` reads the real CIFAR-10.
`python examples/cnn.py`.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]
STRENGTH = 25  # of the stripes, in grey levels; the noise has a standard deviation of 40
ANGLES = np.pi * np.arange(5)[:, None, None] / 5
ACROSS = np.cos(ANGLES) * np.arange(32)[:, None] + np.sin(ANGLES) * np.arange(32)  # radians, [5, 32, 32]


# 1. The images, as bytes, which take a quarter of the memory of floats. The model scales them.
def make_images(num_images: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    label, phase = random.integers(0, 10, num_images), random.uniform(0, 2 * np.pi, num_images)
    stripes = np.sin(ACROSS[label % 5] + phase[:, None, None])
    signal = STRENGTH * stripes[..., None] * np.eye(3)[label // 5][:, None, None]  # red or green
    image = 128 + signal + random.normal(0, 40, (num_images, 32, 32, 3))
    return {"image": image.clip(0, 255).astype(np.uint8), "label": label}


# 2. One head: a convolution, then the mean over positions, as stripes may be anywhere. A stripe fits into 7 pixels.
class CNN(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.filters = nnx.Conv(3, width, (7, 7), strides=3, rngs=rngs)
        self.out = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        x = nnx.relu(self.filters(image.astype(jnp.float32) / 128 - 1))
        return self.out(x.mean(axis=(1, 2)))


class Classifier(hx.HydraModule):
    def __init__(self, width: int = 16, lr: float = 1e-2) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> CNN:
        return CNN(self.hparams.width, nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(self.hparams.lr)

    def training_step(self, model: CNN, batch: Batch, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["label"])

    def test_step(self, model: CNN, batch: Batch, ctx: hx.Context) -> None:
        self.log("test_accuracy", model(batch["image"]).argmax(-1) == batch["label"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=800, help="number of images that the last head learns from")
    parser.add_argument("--steps", type=int, default=250, help="optimiser updates per head")
    args = parser.parse_args()
    train, test = make_images(args.images, seed=0), make_images(500, seed=1)

    lengths = [args.images // 2**k for k in (4, 3, 2, 1, 0)]
    slices = hx.Slices.prefix(lengths, num_rows=args.images)
    data = ArrayDataModule(train, test=test, slices=slices, batch_size=32, eval_batch_size=250)
    trainer = hx.Trainer(max_steps=args.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Classifier(), data)
    accuracy = trainer.test(verbose=False)["test_accuracy"]  # float32[H]

    print(f"\n{'images':<20}{'accuracy':>10}")
    for length, score in zip(lengths, accuracy, strict=True):
        print(f"{length:<20}{score:>10.3f}")
    print(f"{'the best possible':<20}{(most_likely(test['image']) == test['label']).mean():>10.3f}")


# 3. Under noise, the most likely wave of unknown phase is the one with the largest Fourier coefficient.
def most_likely(image: np.ndarray) -> np.ndarray:
    waves = np.einsum("nxyc,axy->nca", image[..., :2] - 128.0, np.exp(1j * ACROSS))
    return abs(waves).reshape(len(image), 10).argmax(axis=1)


if __name__ == "__main__":
    main()
