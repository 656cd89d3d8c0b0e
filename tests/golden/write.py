"""Writes the golden checkpoints: `python tests/golden/write.py`, only where the format's number goes up."""

import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

import hydrax as hx
from hydrax.callbacks import EarlyStopping, ModelCheckpoint
from hydrax.datamodules import ArrayDataModule

FOLDER = Path(__file__).parent
STEPS = 6


class Golden(hx.HydraModule):
    """A small network with batch statistics and dropout keys."""

    def __init__(self, lr, width=4):
        self.save_hyperparameters()

    def configure_model(self, key):
        rngs = nnx.Rngs(key)
        width = self.hparams.width
        norm, drop = nnx.BatchNorm(width, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)
        return nnx.Sequential(nnx.Linear(3, width, rngs=rngs), norm, drop, nnx.Linear(width, 1, rngs=rngs))

    def configure_optimizers(self):
        return optax.adam(self.hparams.lr)

    def training_step(self, model, batch, ctx):
        return (model(batch["x"])[:, 0] - batch["y"]) ** 2

    validation_step = training_step


def module():
    return Golden(lr=hx.PerHead([0.5, 0.25, 0.125]))


def data():
    """Rows without chance, which another version of NumPy could draw otherwise."""
    x = (np.arange(60).reshape(20, 3) * 7 % 11 / 8 - 0.5).astype(np.float32)
    columns = {"x": x, "y": x @ np.array([1, -2, 0.5], np.float32)}
    return ArrayDataModule(columns, val=columns, slices=hx.Slices.prefix([4, 9, 20], num_rows=20), batch_size=4)


def fit(folder, max_steps=STEPS, ckpt_path=None):
    callbacks = [EarlyStopping("val_loss", patience=50), ModelCheckpoint(monitor="val_loss", dirpath=folder)]
    how = {"logger": False, "enable_progress_bar": False, "default_root_dir": folder}
    return hx.Trainer(max_steps=max_steps, callbacks=callbacks, **how).fit(module(), data(), ckpt_path)


def named(heads):
    """Arrays by name, of keys their words, as lists that JSON keeps exactly."""
    leaves = jax.tree_util.tree_flatten_with_path((heads.trainable, heads.state))[0]
    keys = lambda a: jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a  # noqa: E731
    return {jax.tree_util.keystr(path): np.asarray(keys(leaf)).tolist() for path, leaf in leaves}


if __name__ == "__main__":
    logging.getLogger("hydrax").setLevel(logging.WARNING)
    for name in ("run", "heads"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    scratch = FOLDER / "scratch"
    result = fit(scratch)
    shutil.move(scratch / "last", FOLDER / "run")
    shutil.rmtree(scratch)
    result.heads.save(FOLDER / "heads")
    (FOLDER / "values.json").write_text(json.dumps(named(result.heads)))
