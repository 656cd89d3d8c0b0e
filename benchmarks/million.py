"""Measures a fit of very many tiny heads in one process, phase by phase, from the slices to the exported file.

The heads are linear, 10 -> 1, B = 16, Adam, each on a random half of 2,000 rows; 50 steps with the Trainer's default
callbacks. Each phase is reported with the CPU seconds of the whole process, seconds on the clock, and the peak memory
of the process by its end. "first superstep" and "other supersteps" count from the start of training to the metrics of
the superstep; "to the first step" is everything before, from the call of `fit`: checks, plan, compiling, callbacks.
`hydrax heads` and "loaded afresh" are processes of their own, imports included. Results: benchmarks/README.md.

    python benchmarks/million.py
    python benchmarks/million.py --heads 100000
    python benchmarks/million.py --quick    # few heads, for CI
"""

import argparse
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydrax as hx  # isort: skip  # first: its guard must stand before JAX starts its backend

import numpy as np
import optax
from flax import nnx
from peers import machine
from peers.report import table

from hydrax.datamodules import ArrayDataModule

NUM_ROWS, FEATURES, BATCH_SIZE, STEPS = 2_000, 10, 16, 50
QUICK_HEADS = 64
WANTED = "Wanted of a million: the fit below 240 s and 3 GB, table and lists within 3 s, loading within 8 s."
LOADED_AFRESH = "import sys, million; million.load(sys.argv[1])"


class Linear(hx.HydraModule):
    def configure_model(self, key: Any) -> nnx.Linear:
        return nnx.Linear(FEATURES, 1, rngs=nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(1e-2)

    def training_step(self, model: Any, batch: Any, ctx: Any) -> Any:
        loss = (model(batch["x"])[:, 0] - batch["y"]) ** 2
        self.log("train_loss", loss)
        return loss


def make_data(num_heads: int) -> ArrayDataModule:
    draws = np.random.default_rng(0)
    x = draws.normal(size=(NUM_ROWS, FEATURES)).astype(np.float32)
    y = (x @ draws.normal(size=FEATURES)).astype(np.float32)
    slices = hx.Slices.random_subset([NUM_ROWS // 2] * num_heads, num_rows=NUM_ROWS)
    return ArrayDataModule({"x": x, "y": y}, slices=slices, batch_size=BATCH_SIZE)


def load(path: str) -> None:
    hx.Heads.load(path, Linear())


class Phases(hx.Callback):
    """Times what happens between two calls of `end`; as the first callback of a fit it also tells its phases apart."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []
        self._supersteps = 0
        self._began = self._now()

    def _now(self) -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    def end(self, name: str) -> None:
        (cpu, clock), (cpu_before, clock_before) = self._now(), self._began
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
        self.rows.append((name, f"{cpu - cpu_before:.2f}", f"{clock - clock_before:.2f}", f"{peak_gb:.2f}"))
        print(f"{name}: {self.rows[-1][1]} CPU s", file=sys.stderr, flush=True)
        self._began = self._now()

    def time(self, name: str, run: Callable[[], Any]) -> Any:
        self._began = self._now()
        found = run()
        self.end(name)
        return found

    def time_process(self, name: str, *arguments: str) -> None:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)
        clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.rows.append((name, f"{cpu:.2f}", f"{clock:.2f}", "-"))

    def on_train_start(self, event: hx.Event) -> None:
        self.end("fit: to the first step")

    def on_train_steps_end(self, event: hx.Event) -> None:
        self._supersteps += 1
        if self._supersteps == 1:
            self.end(f"fit: first superstep, {len(event.steps)} steps")

    def on_train_end(self, event: hx.Event) -> None:
        self.end(f"fit: other supersteps, {self._supersteps - 1}")


def run(num_heads: int, folder: Path, plan: Mapping[str, int]) -> list[tuple[str, ...]]:
    phases = Phases()
    data = phases.time("slices and rows", lambda: make_data(num_heads))
    trainer = hx.Trainer(max_steps=STEPS, callbacks=phases, default_root_dir=folder, **plan)
    began = phases._now()
    result = phases.time("fit: last save, heads.csv", lambda: trainer.fit(Linear(), data))
    whole = [f"{after - before:.2f}" for after, before in zip(phases._now(), began, strict=True)]
    phases.rows.append(("fit, whole", *whole, phases.rows[-1][-1]))
    saved, run_folder = folder / "heads", str(result.log_dir)
    last = Path(run_folder, "checkpoints", "last")
    phases.time("result.table()", result.table)
    phases.time("Heads.save", lambda: result.heads.save(saved))
    phases.time("Heads.load", lambda: hx.Heads.load(saved, Linear()))
    phases.time("Heads.load, one head", lambda: hx.Heads.load(saved, Linear(), head=num_heads // 2))
    phases.time("Heads.load, of the checkpoint", lambda: hx.Heads.load(last, Linear()))
    phases.time("export, .npz", lambda: result.heads.export(folder / "heads.npz"))
    phases.time("pickled and back", lambda: pickle.loads(pickle.dumps(result)))
    resumed = hx.Trainer(max_steps=STEPS, default_root_dir=folder, **plan)
    phases.time("fit, resumed at its end", lambda: resumed.fit(Linear(), data, ckpt_path=last))
    command = ("-c", "from hydrax.cli import main; raise SystemExit(main())", "heads", run_folder)
    phases.time_process("hydrax heads --sort train_loss --limit 10", *command, "--sort", "train_loss", "--limit", "10")
    phases.time_process("hydrax heads --status stopped", *command, "--status", "stopped")
    phases.time_process("loaded afresh", "-c", LOADED_AFRESH, str(saved))
    return phases.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, help="the Trainer's argument; left out, the plan decides")
    parser.add_argument("--steps-per-call", type=int, help="the same")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_HEADS} heads")
    args = parser.parse_args()
    num_heads = QUICK_HEADS if args.quick else args.heads
    print(f"{machine.describe()}\n\n{num_heads:,} heads, {STEPS} steps. {WANTED}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        given = {"chunk": args.chunk, "steps_per_call": args.steps_per_call}
        rows = run(num_heads, Path(folder), {name: value for name, value in given.items() if value is not None})
    print(table(("phase", "CPU s", "s", "peak GB"), rows))
    print(f"\n{machine.load()} at the end")


if __name__ == "__main__":
    main()
