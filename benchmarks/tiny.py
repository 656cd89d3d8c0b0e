"""Compares many tiny heads, as data valuation, bootstrap and permutation tests have them, with a program by hand.

The program by hand is the best that we could write: blocks of C heads, all steps of a pass in a row, all cores. NumPy
shuffles the rows of each head once per pass, so that each head meets each of its rows at most once in it. Hydrax runs
as its users run it, with the plan that it chooses; compilation, its timing of plans and its first superstep are not
counted. Both take turns in one process, and the median over turns counts. Results: benchmarks/README.md.

    python benchmarks/tiny.py
    python benchmarks/tiny.py --heads 262144 --models 'linear 10-1'
"""

import argparse
import concurrent.futures
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chunk_width import Clock, Perceptron, machine
from flax import nnx

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

NUM_ROWS, LENGTH, BATCH_SIZE = 1000, 208, 16  # 13 batches are a pass
K = 50  # steps per superstep
BY_HAND = (32, 128, 512)
HEADS = (1024, 16_384, 262_144)
MODELS = {"linear 10-1": (10, 1), "linear 64-10": (64, 10), "MLP 8-16-1": (8, 16, 1), "logistic 30-2": (30, 2)}


def loss_of(outputs: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the loss of each row: squared error of one output, or cross-entropy of several."""
    if outputs.shape[-1] == 1:
        return (outputs[..., 0] - target) ** 2
    return optax.softmax_cross_entropy_with_integer_labels(outputs, target)


def rows_of(sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_ROWS, sizes[0])).astype(np.float32)
    y = x.sum(axis=1) if sizes[-1] == 1 else rng.integers(0, sizes[-1], NUM_ROWS).astype(np.int32)
    return {"x": x, "y": y}


class Model(hx.HydraModule):
    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes

    def configure_model(self, key: jax.Array) -> Perceptron:
        return Perceptron(self.sizes, nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(1e-2)

    def training_step(self, model: Perceptron, batch: dict[str, jax.Array], ctx: hx.Context) -> jax.Array:
        return loss_of(model(batch["x"]), batch["y"])


def hydrax_secs(sizes: tuple[int, ...], num_heads: int, passes: int) -> tuple[float, str]:
    """Returns the seconds of one step of all heads, and the plan."""
    slices = hx.Slices.random_subset([LENGTH] * num_heads, NUM_ROWS, seed=range(num_heads))
    clock = Clock()
    steps = K * (1 + max(2, passes * (LENGTH // BATCH_SIZE) // K))  # those of the first superstep are not timed
    trainer = hx.Trainer(max_steps=steps, steps_per_call=K, callbacks=clock, barebones=True)
    trainer.fit(Model(sizes), ArrayDataModule(rows_of(sizes), slices=slices, batch_size=BATCH_SIZE))
    plan = trainer.plan().plan
    return clock.step_secs(), f"C = {plan.chunk}, {plan.how}"


class ByHand:
    """The program by hand for a part of the heads.

    Args:
      sizes: the widths of the layers.
      num_heads: heads of this part.
      chunk: C.
      seed: seed of the slices and of the order of rows.
    """

    def __init__(self, sizes: tuple[int, ...], num_heads: int, chunk: int, seed: int) -> None:
        self._rng, self._blocks = np.random.default_rng(seed), (num_heads // chunk, chunk)
        self._rows = np.stack([self._rng.permutation(NUM_ROWS)[:LENGTH] for _ in range(num_heads)]).astype(np.int32)
        self._optimizer = optax.adam(1e-2)
        data = {name: jnp.asarray(column) for name, column in rows_of(sizes).items()}
        self._pass = jax.jit(functools.partial(self._run, data), donate_argnums=0)
        self._state = jax.vmap(jax.vmap(lambda key: self._start(sizes, key)))(
            jax.random.split(jax.random.key(seed), self._blocks)
        )

    def _start(self, sizes: tuple[int, ...], key: jax.Array) -> Any:
        layers = [
            (jax.random.normal(key, (i, o)) / np.sqrt(i), jnp.zeros(o)) for i, o in zip(sizes, sizes[1:], strict=False)
        ]
        return layers, self._optimizer.init(layers)

    def _step(self, data: dict[str, jax.Array], state: Any, rows: jax.Array) -> Any:
        layers, moments = state

        def loss(layers: Any) -> jax.Array:
            x = data["x"][rows]
            for weights, bias in layers[:-1]:
                x = jax.nn.relu(x @ weights + bias)
            weights, bias = layers[-1]
            return loss_of(x @ weights + bias, data["y"][rows]).mean()

        value, gradients = jax.value_and_grad(loss)(layers)
        updates, moments = self._optimizer.update(gradients, moments)
        return (optax.apply_updates(layers, updates), moments), value

    def _run(self, data: dict[str, jax.Array], state: Any, rows: jax.Array) -> Any:
        def block(part: Any) -> Any:
            return jax.lax.scan(jax.vmap(functools.partial(self._step, data)), *part)

        return jax.lax.map(block, (state, rows))

    def train(self, passes: int) -> None:
        blocks, chunk = self._blocks
        losses: Any = None
        for _ in range(passes):
            rows = self._rng.permuted(self._rows, axis=1).reshape(blocks, chunk, -1, BATCH_SIZE)
            self._state, losses = self._pass(self._state, np.ascontiguousarray(rows.transpose(0, 2, 1, 3)))
        jax.block_until_ready(losses)


def by_hand(sizes: tuple[int, ...], num_heads: int, chunk: int) -> Callable[[int], float]:
    """Builds the program for all heads, a part on each core. Returns what trains passes, in seconds per step."""
    cores = os.cpu_count() or 1
    parts = [ByHand(sizes, num_heads // cores, chunk, seed) for seed in range(cores)]
    pool = concurrent.futures.ThreadPoolExecutor(cores)

    def train(passes: int) -> float:
        start = time.perf_counter()
        list(pool.map(lambda part: part.train(passes), parts))
        return (time.perf_counter() - start) / (passes * (LENGTH // BATCH_SIZE))

    train(1)  # compiles
    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, nargs="+", default=HEADS, help="numbers of heads")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="models to train")
    parser.add_argument("--turns", type=int, default=3, help="turns of each program")
    parser.add_argument("--head-steps", type=int, default=10**7, help="steps of all heads together in a turn, roughly")
    parser.add_argument("--quick", action="store_true", help="tiny, for CI")
    args = parser.parse_args()
    if args.quick:
        args.heads, args.turns, args.head_steps = (64,), 1, 1

    print(machine())
    print("\n| model | heads | us a head and step, by hand | Hydrax | ratio | fastest and slowest turn | plan |")
    print("|---|---|---|---|---|---|---|")
    for model in args.models:
        for num_heads in args.heads:
            sizes, passes = MODELS[model], max(1, args.head_steps // (num_heads * LENGTH // BATCH_SIZE))
            programs = {c: by_hand(sizes, num_heads, c) for c in BY_HAND if c * (os.cpu_count() or 1) <= num_heads}
            chunk = min(programs, key=lambda c: programs[c](passes))
            turns = [(programs[chunk](passes), *hydrax_secs(sizes, num_heads, passes)) for _ in range(args.turns)]
            hand, ours = (1e6 * statistics.median(turn[k] for turn in turns) / num_heads for k in (0, 1))
            ratios = sorted(turn[1] / turn[0] for turn in turns)
            row = f"{model} | {num_heads:,} | {hand:.3f} (C = {chunk}) | {ours:.3f} | {statistics.median(ratios):.2f}"
            print(f"| {row} | {ratios[0]:.2f} .. {ratios[-1]:.2f} | {turns[-1][2]} |", flush=True)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
