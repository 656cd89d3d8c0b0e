"""Measures the cost of the rotation: a training step of 784 linear heads with index batches from different sources.

First the draw alone runs as its own program, chunk by chunk for a superstep of 50 steps. Then whole steps run with

- program: the program draws the batches, as it does whenever it can;
- host: the host draws them with NumPy while the device computes, as for data that is fetched;
- none: one batch, drawn in advance, serves every step, so that the rotation costs nothing.

The variants take turns in one process; the median over turns counts. Results: benchmarks/README.md.

    python benchmarks/index_batches.py
"""

import argparse
import statistics
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
from chunk_width import Classifier, Clock, machine

import hydrax as hx
from hydrax.data.batches import ProgramBatches
from hydrax.datamodules import ArrayDataModule
from hydrax.engine.draw import OwnRotation

BATCH_SIZE, NUM_ROWS, STEPS_PER_CALL = 32, 784, 50


class DrawnOnHost(ArrayDataModule):
    """Overrides `index_dataset` with the same batches. The program does not know them, so the host draws them."""

    def index_dataset(self, seed: int = 0) -> grain.MapDataset:
        return super().index_dataset(seed)


class DrawnOnce(ArrayDataModule):
    def index_dataset(self, seed: int = 0) -> grain.MapDataset:
        return grain.MapDataset.source([super().index_dataset(seed)[0]]).repeat()


WAYS = {"none": DrawnOnce, "host": DrawnOnHost, "program": ArrayDataModule}


def make_slices(kind: str, num_heads: int) -> hx.Slices:
    lengths = np.linspace(1, NUM_ROWS, num_heads).astype(int)
    return {"prefixes": hx.Slices.prefix, "random subsets": hx.Slices.random_subset}[kind](lengths, NUM_ROWS)


def measure(way: str, slices: hx.Slices, steps: int) -> float:
    """Returns the seconds of one step of all heads."""
    rng = np.random.default_rng(0)
    train = {"x": rng.random((NUM_ROWS, 784), np.float32), "y": rng.integers(0, 2, NUM_ROWS)}
    clock = Clock()
    trainer = hx.Trainer(
        max_steps=steps, callbacks=clock, barebones=True, steps_per_call=min(STEPS_PER_CALL, steps // 2)
    )
    trainer.fit(Classifier((784, 2)), WAYS[way](train, slices=slices, batch_size=BATCH_SIZE))
    return clock.step_secs()


def draw_alone(slices: hx.Slices, turns: int) -> list[float]:
    """Returns the seconds that the program takes to draw the index batches of one step, one head after another."""
    law = slices.law()
    fixed = {"columns": law.columns, "tables": law.tables}
    how = {"max_steps": STEPS_PER_CALL, "accumulate": 1, "seed": 0, "small_slices": "mask", "passes": None}
    batches = ProgramBatches(OwnRotation(law.take, BATCH_SIZE), fixed, slices.lengths, **how)
    axes = batches.draw.axes

    @jax.jit
    def draw(parts, ids):
        own = {name: part for name, part in parts.items() if axes[name] == 0}
        whole = {name: part for name, part in parts.items() if axes[name] is None}

        def head(one):
            own, head_id = jax.tree.map(lambda a: a[None], one)
            rows, mask = batches.draw(own | whole, head_id)
            return jnp.where(mask, rows, 0).sum()

        return jax.lax.map(head, (own, ids))

    parts, secs = batches.superstep(0, [1] * STEPS_PER_CALL), []
    draw(parts, slices.ids).block_until_ready()
    for _ in range(turns):
        start = time.perf_counter()
        draw(parts, slices.ids).block_until_ready()
        secs.append((time.perf_counter() - start) / STEPS_PER_CALL)
    return secs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="number of fits per variant")
    parser.add_argument("--steps", type=int, default=250, help="steps per fit; the first superstep is not timed")
    parser.add_argument("--heads", type=int, default=784)
    args = parser.parse_args()

    print(machine())
    for kind in ("prefixes", "random subsets"):
        slices = make_slices(kind, args.heads)
        alone = draw_alone(slices, 4 * args.turns)
        secs: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(args.turns):
            for way in WAYS:
                secs[way].append(measure(way, slices, args.steps))
        free = statistics.median(secs["none"])
        print(f"\n{args.heads} linear heads 784-2, {kind}; {args.turns} turns\n")
        print("| index batches | median, ms a step | to none | fastest and slowest turn, to none |\n|---|---|---|---|")
        for way, found in {"the draw alone": alone, **secs}.items():
            median, low, high = statistics.median(found), min(found), max(found)
            print(f"| {way} | {1e3 * median:.2f} | {median / free:.2f} | {low / free:.2f} .. {high / free:.2f} |")


if __name__ == "__main__":
    main()
