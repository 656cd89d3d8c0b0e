"""Measures what one log of 20 metrics of 1,000 heads costs the fit that writes it.

python benchmarks/log_cost.py
"""

import argparse
import statistics
import sys
import tempfile
import time

import hydrax as hx  # isort: skip  # first: its guard must stand before JAX starts its backend

import jax.numpy as jnp
import numpy as np
import optax
from peers import machine

from hydrax.callbacks import TensorBoardLogger
from hydrax.datamodules import ArrayDataModule

PARTS = {"training": "on_train_steps_end", "validation": "on_validation_end"}


class Logs(hx.HydraModule):
    """A model of one number that logs many metrics."""

    def __init__(self, num_metrics):
        self.save_hyperparameters()

    def configure_model(self, key):
        return {"w": jnp.zeros(())}

    def configure_optimizers(self):
        return optax.sgd(0.1)

    def training_step(self, model, batch, ctx):
        for number in range(self.hparams.num_metrics - 1):
            self.log(f"metric_{number}", batch["x"] * number + model["w"])
        return (batch["x"] - model["w"]) ** 2

    def validation_step(self, model, batch, ctx):
        for number in range(self.hparams.num_metrics - 1):
            self.log(f"val_metric_{number}", batch["x"] * number + model["w"])
        return (batch["x"] - model["w"]) ** 2


class Timed(TensorBoardLogger):
    """Records how long the hooks of the logger take."""

    def __init__(self):
        super().__init__(figures=False)
        self.secs = {hook: [] for hook in PARTS.values()}

    def on_train_steps_end(self, event):
        self.timed("on_train_steps_end", event)

    def on_validation_end(self, event):
        self.timed("on_validation_end", event)

    def timed(self, hook, event):
        start = time.perf_counter()
        getattr(super(), hook)(event)
        self.secs[hook].append(time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, default=1_000)
    parser.add_argument("--metrics", type=int, default=20)
    parser.add_argument("--logs", type=int, default=100)
    args = parser.parse_args()
    x = np.random.default_rng(0).normal(size=1_000).astype(np.float32)
    data = ArrayDataModule(
        {"x": x}, val={"x": x[:8]}, slices=hx.Slices.random_subset(np.full(args.heads, 8), 1_000), batch_size=8
    )
    timed = Timed()
    with tempfile.TemporaryDirectory() as root:
        hx.Trainer(
            max_steps=args.logs, log_every_n_steps=1, val_check_interval=1, check_val_every_n_epoch=None,
            callbacks=[timed], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=root,
        ).fit(Logs(args.metrics), data)  # fmt: skip
    print(machine.describe())
    print(f"{args.metrics} metrics of {args.heads} heads, {args.logs} logs, {timed.num_dropped} dropped\n")
    print("| log of | median, ms | least and most | wanted, at most | |\n|---|---|---|---|---|")
    for part, hook in PARTS.items():
        milliseconds = [1e3 * secs for secs in timed.secs[hook][2:]]
        median = statistics.median(milliseconds)
        verdict = "reached" if median < 2 else "missed"
        print(f"| {part} | {median:.2f} | {min(milliseconds):.2f} .. {max(milliseconds):.2f} | 2 | {verdict} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
