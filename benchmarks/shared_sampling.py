"""Measures what shared sampling gains: a step of heads that all get the same rows, against heads that get their own.

Shared sampling runs with several chunk widths, own sampling with the two that were best for it. All take turns in one
process, and the median over turns counts. Results: benchmarks/README.md.

    python benchmarks/shared_sampling.py
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
from chunk_width import Classifier, Clock, machine
from sklearn.datasets import load_digits
from sklearn.model_selection import KFold

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

NUM_ROWS = 1600
OWN, SHARED = (1, 4), (8, 32, 128)

# Widths of the layers, and the slices.
WORKLOADS: dict[str, tuple[tuple[int, ...], Callable[[], hx.Slices]]] = {
    "5-fold, MLP 64-256-10": ((64, 256, 10), lambda: hx.Slices.from_splits(KFold(5).split(range(NUM_ROWS)), NUM_ROWS)),
    "256 heads with a row left out each, linear 64-10": ((64, 10), lambda: hx.Slices.leave_one_out(NUM_ROWS)[:256]),
    "256 random halves, MLP 64-64-10": ((64, 64, 10), lambda: hx.Slices.random_subset([0.5] * 256, NUM_ROWS)),
}


def measure(workload: str, sampling: str, chunk: int, steps: int) -> float:
    """Returns the seconds of one step of all heads."""
    x, y = load_digits(return_X_y=True)
    train = {"x": (x[:NUM_ROWS] / 16).astype(np.float32), "y": y[:NUM_ROWS]}
    widths, slices = WORKLOADS[workload]
    clock = Clock()
    trainer = hx.Trainer(
        max_steps=steps, steps_per_call=50, chunk=chunk, sampling=sampling, callbacks=clock, barebones=True
    )
    trainer.fit(Classifier(widths), ArrayDataModule(train, slices=slices(), batch_size=32))
    return clock.step_secs()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="number of fits per variant")
    parser.add_argument("--steps", type=int, default=200, help="steps per fit; the first superstep is not timed")
    parser.add_argument("--workloads", type=int, default=len(WORKLOADS), help="number of workloads to run")
    args = parser.parse_args()

    print(machine())
    for workload, (_, slices) in list(WORKLOADS.items())[: args.workloads]:
        num_heads = len(slices())
        ways = [("own", chunk) for chunk in OWN]
        ways += [("shared", chunk) for chunk in dict.fromkeys(min(chunk, num_heads) for chunk in SHARED)]
        secs: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
        for _ in range(args.turns):
            for way in ways:
                secs[way].append(measure(workload, *way, args.steps))
        base = statistics.median(secs[ways[0]])
        print(f"\n{workload}; {args.turns} turns\n")
        print("| sampling | C | median, ms a step | to own, C = 1 | fastest and slowest turn |\n|---|---|---|---|---|")
        for (sampling, chunk), found in secs.items():
            median, low, high = statistics.median(found), min(found), max(found)
            times = f"{1e3 * median:.2f} | {median / base:.2f} | {low / base:.2f} .. {high / base:.2f}"
            print(f"| {sampling} | {chunk} | {times} |")


if __name__ == "__main__":
    main()
