"""Pictures of slices: which rows each head may learn from, and which of them it sees in the first ten steps.

`slices.png` has one panel per kind of slices of scikit-learn's wine data: each line is a head, each column one of the
178 rows, which are sorted by class. `rotation.png` shows the rows that a long and a short slice get in batches of 8
slots: with both ways to fill the slots of the short slice, and with shared sampling.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from sklearn.datasets import load_wine
from sklearn.model_selection import StratifiedKFold

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

LONG_AND_SHORT = hx.Slices.window(starts=[2, 8], lengths=[20, 5], num_rows=24)
PASSES = ListedColormap(["darkgrey", "white", *colormaps["Set3"].colors])


# 1. What each head may learn from: all kinds of slices.
def every_kind(labels: np.ndarray) -> dict[str, hx.Slices]:
    n, seeds = len(labels), np.arange(10)
    return {
        "prefix": hx.Slices.prefix(np.linspace(10, n, 10).astype(int), n),
        "window": hx.Slices.window(seeds * 13, 60, n),
        "expanding_window": hx.Slices.expanding_window(40, 15, n),
        "random_subset, half": hx.Slices.random_subset(0.5, n, seed=seeds),
        "random_subset, 10 %, stratified": hx.Slices.random_subset(0.1, n, seed=seeds, stratify=labels),
        "from_splits, stratified folds": hx.Slices.from_splits(StratifiedKFold(10).split(labels, labels), n),
        "bootstrap": hx.Slices.bootstrap(10, n),
        "bootstrap.complement()": hx.Slices.bootstrap(10, n).complement(),
        "leave_one_out": hx.Slices.leave_one_out(n),
        "partition_by class": hx.Slices.partition_by(labels),
        "leave_group_out": hx.Slices.leave_group_out(labels),
        "dirichlet, alpha 0.3": hx.Slices.dirichlet(labels, 0.3, num_heads=10, min_size=5),
    }


def draw_slices(axes: Axes, slices: hx.Slices) -> None:
    copies = [np.bincount(slices.rows(head), minlength=slices.num_rows) for head in range(len(slices))]
    axes.imshow(copies, aspect="auto", cmap="Blues", vmin=0, vmax=4, interpolation="nearest")
    axes.set(xlabel="row", ylabel="head", yticks=range(0, len(slices), 1 + len(slices) // 6))


# 2. What the heads see: the batches that the Trainer would give them.
def meetings(small_slices: str, sampling: str, steps: int) -> np.ndarray:
    """Counts how often each head sees each row in each step, int[H, steps, N]."""
    heads, n = range(len(LONG_AND_SHORT)), LONG_AND_SHORT.num_rows
    data = ArrayDataModule(np.zeros(n), slices=LONG_AND_SHORT, batch_size=8, small_slices=small_slices)
    batches = [data.index_dataset(seed=0, sampling=sampling)[t] for t in range(steps)]
    rows = [np.where(batch["mask"], batch["rows"], n) for batch in batches]  # padding counts as a row after the last
    return np.array([[np.bincount(met[head], minlength=n + 1)[:n] for met in rows] for head in heads])


def draw_meetings(axes: Axes, head: int, met: np.ndarray) -> None:
    times = np.cumsum(met, axis=0)  # the n-th time that a row is seen is pass n, because a pass has each row once
    colour = np.where(met, 2 + (times - 1) % 12, LONG_AND_SHORT.mask()[head])
    axes.imshow(colour.T, cmap=PASSES, vmin=0, vmax=13, aspect="auto")
    for step, row in np.argwhere(met):
        passes = range(times[step, row] - met[step, row] + 1, times[step, row] + 1)
        axes.text(step, row, "+".join(map(str, passes)), ha="center", va="center", fontsize=6)
    axes.set(xlabel="step", ylabel="row", xticks=range(len(met)), yticks=range(0, met.shape[1], 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="number of steps to draw")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    print(f"\n{'slices of wine':<34}{'heads':>6}{'lengths':>12}")
    figure = Figure(figsize=(13, 11), layout="constrained")
    for axes, (name, slices) in zip(figure.subplots(4, 3).flat, every_kind(load_wine().target).items(), strict=True):
        print(f"{name:<34}{len(slices):>6}{f'{slices.lengths.min()}..{slices.lengths.max()}':>12}")
        draw_slices(axes.set_title(name).axes, slices)
    figure.suptitle("Slices of the 178 rows of wine: white rows are not in a slice, dark rows are in it several times")
    figure.savefig(args.out / "slices.png", dpi=110)

    figure = Figure(figsize=(13, 10), layout="constrained")
    ways = (("mask", "own"), ("wrap", "own"), ("mask", "shared"))
    for panels, (small_slices, sampling) in zip(figure.subplots(2, 3).T, ways, strict=True):
        for head, met in enumerate(meetings(small_slices, sampling, args.steps)):
            draw_meetings(panels[head], head, met)
            panels[head].set_title(f'"{small_slices}", {sampling} sampling: {met.sum() / args.steps:g} slots live')
    figure.suptitle("Rows in batches of 8 slots: the number is the pass; grey rows are not in the slice")
    figure.savefig(args.out / "rotation.png", dpi=110)
    print(f"Written: {args.out}/slices.png and rotation.png")


if __name__ == "__main__":
    main()
