"""Measures how the chunk width C changes the time of a training step on this machine.

All widths train the same heads with `Trainer(barebones=True)` and take turns in one process; the median over turns
counts. Compilation and the first superstep are not timed. Results: benchmarks/README.md.

    python benchmarks/chunk_width.py
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import flax
import jax
import jaxlib
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

CHUNKS = (1, 2, 4, 8, 16, 32)
NUM_ROWS = 1600  # 50 batches of 32, so that an epoch is one superstep of 50 steps


class Perceptron(nnx.Module):
    """Layers of the given widths with relu between them; with two widths it is linear."""

    def __init__(self, widths: tuple[int, ...], rngs: nnx.Rngs) -> None:
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in pairs])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Classifier(hx.HydraModule):
    def __init__(self, widths: tuple[int, ...]) -> None:
        self.widths = widths

    def configure_model(self, key: jax.Array) -> Perceptron:
        return Perceptron(self.widths, nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adamw(1e-3)

    def training_step(self, model: Perceptron, batch: dict[str, jax.Array], ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])


class Clock(hx.Callback):
    """Records when the metrics of each superstep reach the host."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, float]] = []

    def on_train_steps_end(self, event: hx.Event) -> None:
        self.heard.append((event.step, time.perf_counter()))

    def step_secs(self) -> float:
        (first_step, first), (last_step, last) = self.heard[0], self.heard[-1]
        return (last - first) / (last_step - first_step)


def digits_mlp() -> tuple[hx.HydraModule, hx.DataModule]:
    x, y = load_digits(return_X_y=True)
    data = {"x": (x[:NUM_ROWS] / 16).astype(np.float32), "y": y[:NUM_ROWS]}
    return Classifier((64, 64, 10)), ArrayDataModule(data, slices=hx.Slices.full(256, NUM_ROWS), batch_size=32)


def linear_784() -> tuple[hx.HydraModule, hx.DataModule]:
    rng = np.random.default_rng(0)
    data = {"x": rng.random((NUM_ROWS, 784), np.float32), "y": rng.integers(0, 2, NUM_ROWS)}
    return Classifier((784, 2)), ArrayDataModule(data, slices=hx.Slices.full(784, NUM_ROWS), batch_size=32)


WORKLOADS: dict[str, Callable[[], tuple[hx.HydraModule, hx.DataModule]]] = {
    "256 heads, MLP 64-64-10, digits": digits_mlp,
    "784 heads, linear 784-2, random rows": linear_784,
}


def measure(workload: str, chunk: int, steps: int, steps_per_call: int | str) -> float:
    """Returns the seconds of one step of all heads."""
    module, data = WORKLOADS[workload]()
    clock = Clock()
    trainer = hx.Trainer(max_steps=steps, chunk=chunk, steps_per_call=steps_per_call, callbacks=clock, barebones=True)
    trainer.fit(module, data)
    return clock.step_secs()


def machine() -> str:
    """Returns versions, cores and load in one line."""
    versions = f"Python {platform.python_version()}, jax {jax.__version__}, jaxlib {jaxlib.__version__}"
    where = f"{jax.default_backend()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return f"{versions}, flax {flax.__version__}, {where}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="number of fits per width")
    parser.add_argument("--steps", type=int, default=200, help="steps per fit; the first superstep is not timed")
    parser.add_argument("--steps-per-call", type=int, default=50, help="steps per superstep")
    parser.add_argument("--chunks", type=int, nargs="+", default=CHUNKS, help="chunk widths to compare")
    args = parser.parse_args()

    print(machine())
    for workload in WORKLOADS:
        secs: dict[int, list[float]] = {chunk: [] for chunk in args.chunks}
        for _ in range(args.turns):
            for chunk in args.chunks:
                secs[chunk].append(measure(workload, chunk, args.steps, args.steps_per_call))
        medians = {chunk: statistics.median(found) for chunk, found in secs.items()}
        best = min(medians.values())
        print(f"\n{workload}; {args.turns} turns, supersteps of {args.steps_per_call}\n")
        print("| C | median, ms a step | to the best | fastest and slowest turn, to the best |\n|---|---|---|---|")
        for chunk, median in medians.items():
            low, high = (end(secs[chunk]) / best for end in (min, max))
            print(f"| {chunk} | {1e3 * median:.2f} | {median / best:.2f} | {low:.2f} .. {high:.2f} |")
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
