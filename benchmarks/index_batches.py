"""What the rotation costs: a training step of 784 linear heads whose index batches come about in different ways.

- program: the program draws them, as it does wherever it can;
- host: the host draws them with NumPy while the device computes, as for data that is fetched;
- none: one batch drawn beforehand and used for every step, so that the rotation costs nothing.

The ways take turns in one process; the median over the turns counts. Results: benchmarks/README.md.

    python benchmarks/index_batches.py
"""

import argparse
import statistics

import grain
import numpy as np
from chunk_width import Classifier, Clock, machine

import hydrax as hx
from hydrax.datamodules import ArrayDataModule


class DrawnOnHost(ArrayDataModule):
    """Index batches of its own, the same ones: the program does not know them, so the host draws them."""

    def index_dataset(self, seed: int = 0) -> grain.MapDataset:
        return super().index_dataset(seed)


class DrawnOnce(ArrayDataModule):
    def index_dataset(self, seed: int = 0) -> grain.MapDataset:
        return grain.MapDataset.source([super().index_dataset(seed)[0]]).repeat()


WAYS = {"none": DrawnOnce, "host": DrawnOnHost, "program": ArrayDataModule}


def measure(way: str, heads: int, steps: int, prefixes: bool) -> float:
    """Seconds of one step of all heads."""
    num_rows, rng = 784, np.random.default_rng(0)
    train = {"x": rng.random((num_rows, 784), np.float32), "y": rng.integers(0, 2, num_rows)}
    lengths = np.linspace(1, num_rows, heads).astype(int)
    slices = hx.Slices.prefix(lengths, num_rows) if prefixes else hx.Slices.random_subset(lengths, num_rows)
    clock = Clock()
    trainer = hx.Trainer(max_steps=steps, callbacks=clock, barebones=True, log_every_n_steps=50)
    trainer.fit(Classifier((784, 2)), WAYS[way](train, slices=slices, batch_size=32))
    return clock.step_secs()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="fits of each way")
    parser.add_argument("--steps", type=int, default=250, help="steps of each fit, the first superstep not timed")
    parser.add_argument("--heads", type=int, default=784)
    args = parser.parse_args()

    print(machine())
    for prefixes in (True, False):
        secs: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(args.turns):
            for way in WAYS:
                secs[way].append(measure(way, args.heads, args.steps, prefixes))
        free = statistics.median(secs["none"])
        print(
            f"\n{args.heads} linear heads 784-2, {'prefixes' if prefixes else 'random subsets'}; {args.turns} turns\n"
        )
        print("| index batches | median, ms a step | to none | fastest and slowest turn, to none |\n|---|---|---|---|")
        for way, found in secs.items():
            median, low, high = statistics.median(found), min(found), max(found)
            print(f"| {way} | {1e3 * median:.2f} | {median / free:.2f} | {low / free:.2f} .. {high / free:.2f} |")


if __name__ == "__main__":
    main()
