"""A fit that is interrupted half-way and resumed ends with the same bits as an uninterrupted one.

The first Trainer trains without a break. The second trains the same heads, and a callback ends it half-way, as a crash
or Ctrl-C would. A third, which knows only the folder, resumes with `ckpt_path="last"`. At the end all parameters are
compared bit by bit. (The weights of pixels that are always blank never change, so even the second fit shares some.)
`python examples/resume.py`.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]


# 1. One head, with dropout: its random numbers are the same after a resume too.
class Classifier(hx.HydraModule):
    def configure_model(self, key: jax.Array) -> nnx.Sequential:
        rngs = nnx.Rngs(key)
        drop = nnx.Dropout(0.1, rngs=rngs)
        return nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, drop, nnx.Linear(32, 10, rngs=rngs))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(3e-3)

    def training_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["digit"])


# 2. The interruption. `next_due` makes a superstep end at exactly this step.
class CutAt(hx.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def next_due(self, step: int) -> int | None:
        return self.step if step < self.step else None

    def on_train_steps_end(self, event: hx.Event) -> None:
        if event.step >= self.step:
            event.trainer.should_stop = True


def parameters(result: hx.FitResult) -> np.ndarray:
    """Returns all parameters of all heads, float32[H, parameters]."""
    leaves = jax.tree.leaves(result.heads.trainable)
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in leaves], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="optimiser updates per head")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    images, digits = load_digits(return_X_y=True)

    def fit(root: Path, *callbacks: hx.Callback, ckpt_path: str | None = None) -> hx.FitResult:
        slices = hx.Slices.random_subset([10, 100, 1000], num_rows=len(digits), seed=[0, 1, 2])
        data = ArrayDataModule({"image": images / 16, "digit": digits}, slices=slices, batch_size=32)
        trainer = hx.Trainer(
            max_steps=args.steps,
            callbacks=[ModelCheckpoint(), *callbacks],
            logger=False,
            enable_progress_bar=False,
            default_root_dir=root,
        )
        return trainer.fit(Classifier(), data, ckpt_path=ckpt_path)

    # 3. Three fits: the unbroken run has its own folder, the other two share one.
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        whole = fit(Path(folder) / "whole")
        cut = fit(Path(folder) / "cut", CutAt(args.steps // 2))
        resumed = fit(Path(folder) / "cut", ckpt_path="last")

    print(f"\n{'fit':<12}{'step':>8}{'parameters as in the unbroken one':>38}")
    for name, result in (("unbroken", whole), ("cut off", cut), ("resumed", resumed)):
        same = (parameters(result) == parameters(whole)).mean()
        print(f"{name:<12}{result.step:>8}{same:>38.2%}")
    fits = {name: parameters(result) for name, result in (("whole", whole), ("cut", cut), ("resumed", resumed))}
    np.savez(args.out / "resume.npz", **fits)
    print(f"Written: {args.out}/resume.npz, the parameters at the end of each fit")


if __name__ == "__main__":
    main()
