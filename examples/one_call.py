"""The one-call form: arrays in, models out, without a module, data module or trainer.

Model k learns to tell two of scikit-learn's digits apart from the first k rows. It is an ordinary Flax module that
takes one row. The table has a line for some of the models. `python examples/one_call.py`.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

from hydrax import get_trained_models, unbatch_model


# 1. Any callable that makes a model from a key: here a class. The model takes one row.
class Net(nnx.Module):
    def __init__(self, key: jax.Array) -> None:
        rngs = nnx.Rngs(key)
        self.hidden, self.out = nnx.Linear(64, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.hidden(image)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=64, help="number of models; model k learns from k rows")
    parser.add_argument("--steps", type=int, default=100, help="optimiser updates per model")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    images, digits = load_digits(return_X_y=True)
    pair = np.isin(digits, (3, 8))
    x, y = (images[pair] / 16).astype(np.float32), (digits[pair] == 8).astype(int)

    # 2. Rows 0 to 199 are for training, the others for testing.
    models = get_trained_models(
        x, y, num_models=args.models, model_type=Net, start_slice="0_200", steps=args.steps, learning_rate=1e-2
    )

    # 3. All models at once ...
    logits = models.predict(x[200:])  # float32[models, rows, 2]
    accuracy = (logits.argmax(axis=-1) == y[200:]).mean(axis=1)
    print(f"\n{'rows learned from':<20}{'accuracy':>10}")
    for k in [2**i for i in range(args.models.bit_length())]:
        print(f"{k:<20}{accuracy[k - 1]:>10.3f}")

    # 4. ... or one of them, an ordinary nnx.Module.
    last = unbatch_model(models, args.models - 1)
    alone = (np.asarray(last(x[200:])).argmax(axis=-1) == y[200:]).mean()
    print(f"{'the last, alone':<20}{alone:>10.3f}")
    args.out.mkdir(parents=True, exist_ok=True)
    np.save(args.out / "one_call.npy", logits)
    print(f"Written: {args.out}/one_call.npy, the logits of all models")


if __name__ == "__main__":
    main()
