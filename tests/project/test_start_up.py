"""Start-up: few modules are imported and few programs compiled before the first step, so that it comes soon.

The tests count; benchmarks measure the seconds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys
import hydrax as hx
from hydrax.datamodules import ArrayDataModule

imported = list(sys.modules)

import jax, numpy as np, optax

class Logistic(hx.HydraModule):
    def configure_model(self, key):
        return {"kernel": jax.random.normal(key, (8, 3))}
    def configure_optimizers(self):
        return optax.adamw(1e-2)
    def training_step(self, model, batch, ctx):
        return optax.softmax_cross_entropy_with_integer_labels(batch["x"] @ model["kernel"], batch["y"])

class Watch(hx.Callback):
    def on_train_steps_end(self, event):
        watched.setdefault("modules", list(sys.modules))
        watched.setdefault("programs", list(programs))

watched, programs = {}, []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, secs, **more: name.endswith("backend_compile_duration") and programs.append(more.get("fun_name"))
)
x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
slices = hx.Slices.prefix(range(1, 10), num_rows=40)
data = ArrayDataModule({"x": x, "y": np.arange(40) % 3}, slices=slices, batch_size=4)
hx.Trainer(max_steps=20, callbacks=Watch(), default_root_dir=sys.argv[1]).fit(Logistic(), data)
print(json.dumps({"imported": imported, "modules": watched["modules"], "first": watched["programs"], "all": programs}))
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The imports of a fresh process after `import hydrax` and at its first step, and its compiled programs."""
    folder = tmp_path_factory.mktemp("start")
    # tensorboardX imports PyTorch if there is one: this one is empty.
    (folder / "torch.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder / "run")],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "name",
    [
        "grain",
        "orbax",
        "tensorstore",
        "flax",
        "clu",
        "tensorboardX",
        "tqdm",
        "matplotlib",
        "pandas",
        "sklearn",
        "torch",
    ],
)
def test_importing_hydrax_does_not_import(start, name):
    assert name not in start["imported"]


@pytest.mark.parametrize("name", ["grain", "orbax", "flax", "clu", "matplotlib", "pandas", "sklearn", "torch"])
def test_a_default_fit_of_a_plain_model_comes_to_its_first_step_without(start, name):
    assert name not in start["modules"]


def test_the_logger_that_could_import_torch_was_there(start):
    assert "tensorboardX" in start["modules"]


def test_a_default_fit_compiles_two_programs(start):
    # They start the heads and train them. On a CPU, NumPy makes the key and gathers the heads to save.
    assert start["first"] == start["all"] == ["jit(init)", "jit(superstep)"]


def test_importing_hydrax_leaves_the_garbage_collector_as_it_is():
    script = "import gc; import hydrax; print(gc.isenabled(), gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "0"], done.stderr
