"""Draws the pictures of README.md and docs/concepts.md from what the library computes: scores, slices, batches, a plan.

    .venv/bin/python docs/pictures.py [FOLDER]

Needs matplotlib, scikit-learn and two cores. tests/project/test_pictures.py checks the numbers behind the pictures.
"""

import contextlib
import functools
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.model_selection import KFold

import hydrax as hx
from hydrax.datamodules import ArrayDataModule
from hydrax.engine.layout import Layout, lay_out
from hydrax.engine.plan import Plan

IMAGES = Path(__file__).parent / "images"
README = Path(__file__).parents[1] / "README.md"
# Figures are opaque white, so that they can be read on a dark page; viridis can be read by colour-blind people.
COLOURS = colormaps["viridis"]
PADDING = {"facecolor": "white", "hatch": "//", "edgecolor": "darkgrey", "linewidth": 0.5}

NUM_ROWS, NUM_HEADS = 30, 6
WALKERS = hx.Slices.window(starts=[0, 6, 3, 12], lengths=[24, 12, 7, 4], num_rows=24)
SLOTS, STEPS, PASSES = 6, 8, 2


# 0. The learning curve of README.md, by the program printed there.
@functools.cache
def readme_accuracy() -> np.ndarray:
    """float[1000]: the accuracy of each head, as the first example of README.md computes it."""
    program = re.search(r"^```python\n(.*?)^```$", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert program is not None
    names: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(compile(program[1], "README.md", "exec"), names)
    return np.asarray(names["accuracy"])


def draw_learning_curve() -> Figure:
    figure = Figure(figsize=(8, 3.2), layout="constrained", facecolor="white")
    axes, accuracy = figure.subplots(), readme_accuracy()
    rows = np.arange(1, len(accuracy) + 1)
    axes.scatter(rows, accuracy, s=7, c=accuracy, cmap=COLOURS, linewidths=0)
    axes.set(xscale="log", ylim=(0, 1), xlabel="rows that a head learns from", ylabel="test accuracy")
    axes.set_title(f"{len(accuracy):,} models, one dot each, trained in one call", fontsize=10)
    axes.grid(alpha=0.3)
    return figure


# 1. Slices.
def every_kind() -> dict[str, hx.Slices]:
    """Makes slices of 30 rows in six ways."""
    folds = hx.Slices.from_splits(KFold(NUM_HEADS, shuffle=True, random_state=0).split(range(NUM_ROWS)), NUM_ROWS)
    return {
        "prefix([5, 10, ...])": hx.Slices.prefix(range(5, NUM_ROWS + 1, 5), NUM_ROWS),
        "window(starts, 10)": hx.Slices.window(range(0, 21, 4), 10, NUM_ROWS),
        "random_subset(0.5)": hx.Slices.random_subset([0.5] * NUM_HEADS, NUM_ROWS),
        "bootstrap": hx.Slices.bootstrap(NUM_HEADS, NUM_ROWS),
        "from_splits(KFold(6))": folds,
        "from_splits(KFold(6)).complement()": folds.complement(),
    }


def copies(slices: hx.Slices) -> np.ndarray:
    """Counts how often each head holds each row, int[H, N]. Only a bootstrap holds a row more than once."""
    counted = np.array([np.bincount(slices.rows(head), minlength=slices.num_rows) for head in range(len(slices))])
    assert np.array_equal(counted > 0, slices.mask())
    return counted


def draw_slices() -> Figure:
    figure = Figure(figsize=(9, 4.4), layout="constrained", facecolor="white")
    shades = colormaps["viridis_r"].resampled(5)
    for axes, (name, slices) in zip(figure.subplots(3, 2).flat, every_kind().items(), strict=True):
        held = np.ma.masked_equal(copies(slices), 0)
        axes.pcolormesh(held, cmap=shades, vmin=-0.5, vmax=4.5, edgecolors="white", linewidth=0.5)
        for head, row in np.argwhere(copies(slices) > 1):
            axes.text(row + 0.5, head + 0.5, str(held[head, row]), ha="center", va="center", fontsize=7, color="white")
        axes.set_title(name, fontsize=10, family="monospace")
        axes.set(xlabel="row", ylabel="head", xlim=(0, NUM_ROWS), ylim=(NUM_HEADS, 0))
        axes.set_xticks(np.arange(0, NUM_ROWS, 5) + 0.5, range(0, NUM_ROWS, 5))
        axes.set_yticks(np.arange(0, NUM_HEADS, 2) + 0.5, range(0, NUM_HEADS, 2))
    return figure


# 2. Rotation.
@dataclass(frozen=True)
class Walk:
    """The slots of all heads over some steps: rows int[steps, H, B], mask bool[...], and passes, counted from 1."""

    rows: np.ndarray
    mask: np.ndarray
    passes: np.ndarray


def walk(**how: Any) -> Walk:
    """Returns the index batches that a fit would get; `how` is passed to `DataModule.index_dataset`."""
    data = ArrayDataModule(np.zeros(WALKERS.num_rows), slices=WALKERS, batch_size=SLOTS)
    batches = [data.index_dataset(seed=0, **how)[step] for step in range(STEPS)]
    mask = np.array([batch["mask"] for batch in batches])
    rows = np.array([np.broadcast_to(batch["rows"], batch["mask"].shape) for batch in batches])
    passes = np.zeros(rows.shape, int)
    met = np.zeros((len(WALKERS), WALKERS.num_rows), int)
    for step, head, slot in np.argwhere(mask):  # a pass has each row once, so the n-th meeting is in pass n
        met[head, rows[step, head, slot]] += 1
        passes[step, head, slot] = met[head, rows[step, head, slot]]
    return Walk(rows, mask, passes)


def draw_walk(axes: Axes, found: Walk, title: str, norm: BoundaryNorm, padding_text: bool) -> None:
    for (step, head, slot), live in np.ndenumerate(found.mask):
        at, colour = (step, head * (SLOTS + 1) + slot), COLOURS(norm(found.passes[step, head, slot]))
        look = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.5} if live else PADDING
        axes.add_patch(Rectangle(at, 1, 1, **look))
        if live or padding_text:
            ink = "dimgrey" if not live else "white" if sum(colour[:3]) < 1.25 else "black"
            box = None if live else {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            row = str(found.rows[step, head, slot])
            axes.text(at[0] + 0.5, at[1] + 0.52, row, ha="center", va="center", fontsize=7, color=ink, bbox=box)
    middles = np.arange(len(WALKERS)) * (SLOTS + 1) + SLOTS / 2
    names = [f"head {head}\n{length} rows" for head, length in enumerate(WALKERS.lengths)]
    axes.set(xlim=(0, STEPS), ylim=(len(WALKERS) * (SLOTS + 1) - 1, 0), xlabel="step", title=title)
    axes.set_xticks(np.arange(STEPS) + 0.5, range(STEPS))
    axes.set_yticks(middles, names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_walks(panels: dict[str, dict[str, Any]], width: float) -> Figure:
    figure = Figure(figsize=(width, 6), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    walks = {title: walk(**how) for title, how in panels.items()}
    most = max(found.passes.max() for found in walks.values())
    norm = BoundaryNorm(np.arange(0.5, most + 1), COLOURS.N)
    for panel, (title, found) in zip(axes, walks.items(), strict=True):
        draw_walk(panel, found, title, norm, padding_text="sampling" in panels[title])
    figure.colorbar(ScalarMappable(norm, COLOURS), ax=list(axes), label="pass", ticks=range(1, most + 1))
    return figure


# 3. The plan.
class Supersteps(hx.Callback):
    """Records the steps at which supersteps end."""

    def __init__(self) -> None:
        self.ends = [0]

    def on_train_steps_end(self, event: hx.Event) -> None:
        self.ends.append(int(event.steps[-1]))


class Line(hx.HydraModule):
    """The smallest module with a validation step."""

    def configure_model(self, key: jax.Array) -> jax.Array:
        return jax.random.normal(key)

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.sgd(0.1)

    def training_step(self, model: jax.Array, batch: jax.Array, ctx: hx.Context) -> jax.Array:
        return (model - batch) ** 2

    validation_step = training_step


def plan_of_a_fit() -> tuple[Plan, Layout, list[int]]:
    """Runs a fit with epochs of 30 steps. Returns its plan, its layout, and the steps after which supersteps ended."""
    rows, noted = np.zeros(240, np.float32), Supersteps()
    data = ArrayDataModule(rows, val=rows, slices=hx.Slices.full(9, num_rows=240), batch_size=8)
    how: dict[str, Any] = {"chunk": 2, "devices": 2, "steps_per_call": 16, "lowering": "plain"}
    trainer = hx.Trainer(max_steps=70, callbacks=noted, barebones=True, **how)
    trainer.fit(Line(), data)
    plan = trainer.plan().plan
    return plan, lay_out(len(data.slices()), plan.chunk, jax.devices()[:1] * plan.devices), noted.ends


def draw_plan() -> Figure:
    plan, layout, ends = plan_of_a_fit()
    figure = Figure(figsize=(9, 4.2), layout="constrained", facecolor="white")
    axes, names, top = figure.subplots(), [], 0
    for block in layout.blocks:
        for number in range(block.num_chunks):
            heads = block.heads[number * plan.chunk : (number + 1) * plan.chunk].tolist()
            copy = [head in names for head in heads]
            names += [f"{head} again" if again else head for head, again in zip(heads, copy, strict=True)]
            for first, last in zip(ends, ends[1:], strict=False):
                left = first * layout.longest + number * (last - first)
                colour = COLOURS(0.15 if block.lane else 0.75)
                axes.add_patch(Rectangle((left, top), last - first, plan.chunk, facecolor=colour, edgecolor="white"))
                steps = f"{first + 1}-{last}"
                ink = "white" if block.lane else "black"
                axes.text(left + (last - first) / 2, top + 1, steps, ha="center", va="center", fontsize=7, color=ink)
            top += plan.chunk
        axes.axhline(top, color="black", linewidth=1)
        axes.text(ends[-1] * layout.longest * 1.01, top - plan.chunk * block.num_chunks / 2, f"core {block.lane}")
    for end in ends:
        axes.axvline(end * layout.longest, color="black", linewidth=1, linestyle=":")
    axes.set(xlim=(0, ends[-1] * layout.longest), ylim=(top, 0), xlabel="step at which a superstep ends")
    axes.set_title(
        f"chunk={plan.chunk} steps_per_call={plan.steps_per_call} devices={plan.devices}", family="monospace"
    )
    axes.set_xticks([end * layout.longest for end in ends], ends)
    axes.set_yticks(np.arange(top) + 0.5, names)
    axes.set_ylabel("head")
    return figure


def main(folder: Path = IMAGES) -> None:
    """Writes all pictures into a folder: the same bytes each time, given the same version of matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    panels = {f'budget="passes", {PASSES} of them': {"passes": PASSES}, 'sampling="shared"': {"sampling": "shared"}}
    pictures = {
        "readme-learning-curve": draw_learning_curve(),
        "concepts-slices": draw_slices(),
        "concepts-rotation": draw_walks({"Each head its own rows": {}}, width=6),
        "concepts-walks": draw_walks(panels, width=10),
        "concepts-plan": draw_plan(),
    }
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=85, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
