"""Digests of what five fits and the demo train, to compare two versions of Hydrax bit by bit on one machine.

Bits depend on the machine and its libraries, so no digest is kept in the repository. To check that a change keeps them:

    python tests/golden/bits.py before.json                      # at the commit before
    python tests/golden/bits.py after.json --compare before.json

It uses public names only, so that the same script runs on both versions.
"""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import runpy
import sys
import tempfile
from pathlib import Path

import hydrax as hx  # isort: skip  # first: its guard must stand before JAX starts its backend

import jax
import numpy as np
import optax
from flax import nnx

from hydrax.callbacks import EarlyStopping, GradientNormMonitor, ModelCheckpoint
from hydrax.datamodules import ArrayDataModule, SourceDataModule

ROWS = 96


class Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(6, 32, rngs=rngs), nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


class Convolution(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.second = nnx.Conv(4, 8, (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.conv(x)), (2, 2), (2, 2))
        return self.out(nnx.relu(self.second(x)).mean(axis=(1, 2)))


class NormAndDropout(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.norm = nnx.Linear(6, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
        self.dropout, self.out = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


class Classifier(hx.HydraModule):
    def __init__(self, kind, lr):
        self.save_hyperparameters()

    def configure_model(self, key):
        return self.hparams.kind(nnx.Rngs(key))

    def configure_optimizers(self):
        return optax.adamw(self.hparams.lr)

    def training_step(self, model, batch, ctx):
        logits = model(batch["x"])
        self.log("accuracy", logits.argmax(-1) == batch["y"], on_epoch=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])

    validation_step = training_step


def columns(shape):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(ROWS, *shape)).astype(np.float32)
    return {"x": x, "y": (x.reshape(ROWS, -1)[:, :3].argmax(1)).astype(np.int32)}


class Rows:
    """A source that Grain can read, row by row."""

    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table["y"])

    def __getitem__(self, row):
        return {name: column[row] for name, column in self.table.items()}


def fit(kind, shape=(6,), source=False, **arguments):
    table = columns(shape)
    slices = hx.Slices.random_subset([8, 20, 33, 50, 64, 71, 90, 96, 12], num_rows=ROWS, seed=3)
    if source:
        data = SourceDataModule(Rows(table), val=table, slices=slices, batch_size=8)
    else:
        data = ArrayDataModule(table, val=table, slices=slices, batch_size=8)
    module = Classifier(kind, lr=hx.PerHead(np.linspace(1e-3, 2e-2, 9)))
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [GradientNormMonitor(), EarlyStopping("val_loss", patience=2), ModelCheckpoint(monitor="val_loss")]
        how = {"max_epochs": 6, "deterministic": True, "val_check_interval": 0.5, "default_root_dir": folder}
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        trainer = hx.Trainer(callbacks=callbacks, **{**how, **quiet, **arguments})
        result = trainer.fit(module, data)
        return digests({"heads": result.heads, "metrics": dict(result.metrics), "live": result.live})


def demo():
    """The ledger and the learning curve that `make demo` writes, shortened."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        script = Path(__file__).parents[2] / "examples" / "learning_curve.py"
        sys.argv = [str(script), "--lengths", "6", "--seeds", "3", "--steps", "60", "--out", folder]
        runpy.run_path(str(script), run_name="__main__")
        files = ("learning_curve.csv", "heads.csv")
        return {name: hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest() for name in files}


def digests(tree):
    def one(leaf):
        is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float64), jax.dtypes.prng_key)
        array = np.ascontiguousarray(jax.random.key_data(leaf) if is_key else leaf)
        return hashlib.sha256(f"{array.shape}{array.dtype}".encode() + array.tobytes()).hexdigest()

    return {jax.tree_util.keystr(path): one(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


FITS = {
    "mlp": lambda: fit(Perceptron),
    "cnn": lambda: fit(Convolution, shape=(12, 12, 1), accumulate_grad_batches=2),
    "batch norm and dropout": lambda: fit(NormAndDropout, gradient_clip_val=0.5),
    "streaming": lambda: fit(Perceptron, source=True),
    "shared sampling": lambda: fit(Perceptron, sampling="shared"),
    "demo": demo,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file for the digests")
    parser.add_argument("--compare", type=Path, help="digests of another version; the exit status is 1 if they differ")
    args = parser.parse_args()
    logging.getLogger("hydrax").setLevel(logging.ERROR)
    found = {name: run() for name, run in FITS.items()}
    args.out.write_text(json.dumps(found, indent=1))
    print(f"{sum(map(len, found.values()))} digests of {len(found)} fits in {args.out}, from {hx.__file__}")
    if args.compare:
        before = json.loads(args.compare.read_text())
        differing = [
            f"{fit}: {name}" for fit in before for name in before[fit] if before[fit][name] != found[fit].get(name)
        ]
        print("\n".join(differing) or "all equal")
        sys.exit(bool(differing))
