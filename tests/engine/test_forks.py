"""A process forked after JAX has started gets an error in place of waiting forever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, signal
import jax.numpy as jnp
import numpy as np
import hydrax as hx
from hydrax.datamodules import ArrayDataModule

class Scale(hx.HydraModule):
    def configure_model(self, key):
        return {"w": jnp.zeros(())}
    def configure_optimizers(self):
        import optax
        return optax.sgd(0.1)
    def training_step(self, model, batch, ctx):
        return (batch["y"] - model["w"]) ** 2
    def predict_step(self, model, batch, ctx):
        return batch["y"] * model["w"]

data = ArrayDataModule({"y": np.ones(4)}, predict={"y": np.ones(4)}, slices=hx.Slices.full(2, 4), batch_size=4)
trainer = hx.Trainer(max_steps=1, barebones=True)
if STARTED:
    heads = trainer.fit(Scale(), data).heads
calls = [lambda: trainer.fit(Scale(), data)]
if STARTED:
    calls += [lambda: trainer.predict(Scale(), data, heads)]
    calls += [lambda: heads(np.ones(1)), lambda: heads.predict(np.ones(1))]
if os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
signal.alarm(60)  # it would hang otherwise
for call in calls:
    try:
        call()
        print("ran", flush=True)
    except hx.HydraxError as error:
        print(str(error)[:40], flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("started", [True, False], ids=["after JAX started", "before JAX started"])
def test_fit_and_predict_in_a_forked_process_raise_only_if_they_would_hang(started):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("STARTED", str(started))],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    expected = ["A forked process cannot run JAX: its thr"] * 4 if started else ["ran"]
    assert done.stdout.splitlines() == expected
