"""Figures of all heads at once: the learning curve, and a heat map of the heads over time."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from hydrax.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE_COLUMNS = ("length", "heads", "mean", "std", "min", "q10", "median", "q90", "max")
MAX_TIMES = 128
MAX_HEADS = 1024
MAX_DOTS = 20_000
_MAX_TICKS = 12
_MAX_LENGTHS = 30
_WIDE_SPAN = 20
"""Longest slice over shortest from which on the axis of lengths is logarithmic."""


def can_draw() -> bool:
    """Tells whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def curve_of(lengths: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Summarises scores by slice length, over the heads of each length whose score is finite.

    >>> curve_of(np.array([10, 20, 20]), np.array([0.9, 0.4, 0.6]))[:, :3]  # length, heads, mean
    array([[10. ,  1. ,  0.9],
           [20. ,  2. ,  0.5]])

    Args:
      lengths: int[H], number of rows in each head's slice.
      scores: float[H].

    Returns:
      float64[lengths, 9], with the columns `CURVE_COLUMNS`, in ascending order of length. A length without a finite
      score is left out.
    """
    lines = []
    finite = np.flatnonzero(np.isfinite(scores))
    finite = finite[np.argsort(lengths[finite], kind="stable")]
    present, starts = np.unique(lengths[finite], return_index=True)
    for length, heads in zip(present, np.split(finite, starts)[1:], strict=True):
        own = scores[heads].astype(np.float64)
        lines.append((length, own.size, own.mean(), own.std(), *np.quantile(own, [0, 0.1, 0.5, 0.9, 1])))
    return np.array(lines, np.float64).reshape(-1, len(CURVE_COLUMNS))


def learning_curve(lengths: np.ndarray, scores: np.ndarray, label: str, title: str = "") -> Figure:
    """Draws a metric against slice length: a dot per head, and the median and quantiles of each length.

    If there are many lengths, neighbouring lengths are summarised together. Of more than `MAX_DOTS` heads only some
    have a dot, evenly chosen from the shortest slice to the longest.

    Args:
      lengths: int[H], number of rows in each head's slice.
      scores: float[H]; NaN and infinite scores are left out.
      label: label of the metric's axis.
      title: title of the figure.
    """
    figure = _figure((7, 4.5))
    axes = figure.subplots()
    shown = np.flatnonzero(np.isfinite(scores))
    if len(shown) > MAX_DOTS:
        # Evenly from short to long: every k-th head in their own order might have one length only.
        shown = shown[np.argsort(lengths[shown], kind="stable")][:: -(-len(shown) // MAX_DOTS)]
    curve = curve_of(_grouped(lengths), scores)
    axes.plot(lengths[shown], scores[shown], ".", color="C0", markersize=3, alpha=0.35, label="one head")
    if (curve[:, 1] > 1).any():
        axes.fill_between(curve[:, 0], curve[:, 5], curve[:, 7], color="C0", alpha=0.2, label="10 % to 90 %")
        axes.plot(curve[:, 0], curve[:, 6], "o-", color="C0", markersize=3, label="median")
    if len(curve) and curve[-1, 0] > _WIDE_SPAN * curve[0, 0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="training rows", ylabel=label, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _grouped(lengths: np.ndarray) -> np.ndarray:
    """Returns float[H], the length to count each head under: its own, or the median of a group of similar lengths."""
    if len(np.unique(lengths)) <= _MAX_LENGTHS:
        return lengths
    edges = np.geomspace(max(1, lengths.min()), lengths.max() + 1, _MAX_LENGTHS + 1)
    groups = np.searchsorted(edges, lengths, side="right")
    present, places = np.unique(groups, return_inverse=True)
    return np.array([np.median(lengths[groups == group]) for group in present])[places]


class HeadsOverTime:
    """Keeps a metric of all heads over time, thinned out to at most `MAX_TIMES` times and `MAX_HEADS` heads.

    Args:
      order: int[H], the positions of the heads in the order to show them.

    Attributes:
      places: int64[h], the positions of the heads that are kept, in that order.
      latest: float[H], the values of all heads that were added last.
    """

    PARTS = ("places", "steps", "values", "counts", "latest")

    def __init__(self, order: np.ndarray) -> None:
        self.places = np.asarray(order)[np.unique(np.linspace(0, len(order) - 1, MAX_HEADS).round().astype(int))]
        self._steps: list[int] = []
        self._columns: list[np.ndarray] = []
        self._stride, self._count = 1, 0
        self._last_step, self.latest = 0, np.full(len(order), np.nan, np.float32)

    def add(self, step: int, values: np.ndarray) -> None:
        """Adds the values of all heads, float[H], after `step` updates; those of a step that is known are left out."""
        if self._count and step == self._last_step:
            return
        self._last_step, self.latest = step, np.asarray(values)
        if self._count % self._stride == 0:
            self._steps.append(step)
            self._columns.append(self.latest[self.places])
        self._count += 1
        if len(self._steps) > MAX_TIMES:
            # Dropping every second time, and from now on adding half as often, keeps the times evenly spaced.
            self._steps, self._columns, self._stride = self._steps[::2], self._columns[::2], 2 * self._stride

    @property
    def steps(self) -> np.ndarray:
        """int64[T], the steps that are kept; the last one always is."""
        steps = np.array(self._steps, np.int64)
        return steps if self._is_last_kept else np.append(steps, self._last_step)

    @property
    def values(self) -> np.ndarray:
        """float[h, T], the values at those steps."""
        kept = self._columns if self._is_last_kept else [*self._columns, self.latest[self.places]]
        return np.stack(kept, axis=1)

    @property
    def _is_last_kept(self) -> bool:
        return self._steps[-1:] == [self._last_step]

    def state(self) -> dict[str, np.ndarray]:
        """Returns the state as arrays by the names in `PARTS`; `add` must have been called before."""
        counts = np.array([self._stride, self._count, self._last_step])
        values = np.stack(self._columns, axis=1)
        return dict(zip(self.PARTS, (self.places, np.array(self._steps), values, counts, self.latest), strict=True))

    @classmethod
    def of_state(cls, state: Mapping[str, np.ndarray]) -> HeadsOverTime:
        """Restores what `state` returned."""
        own = cls(np.arange(len(state["latest"])))
        own.places, own.latest = np.array(state["places"]), np.array(state["latest"])
        own._steps, own._columns = state["steps"].tolist(), list(np.array(state["values"]).T)
        own._stride, own._count, own._last_step = state["counts"].tolist()
        return own


def heat_map(steps: np.ndarray, values: np.ndarray, names: np.ndarray, label: str, title: str = "") -> Figure:
    """Draws a metric of all heads over time, with a row per head and a column per time; values not finite are grey.

    Args:
      steps: int[T], number of updates done at each time.
      values: float[H, T], the metric.
      names: [H], a name for each head.
      label: label of the colour bar.
      title: title of the figure.
    """
    figure = _figure((7, 6))
    axes = figure.subplots()
    axes.set_facecolor("0.7")
    # Colours span the middle 98 % of the values, so that one outlier does not give all other heads the same colour.
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.01, 0.99]) if finite.size else (0, 1)
    shown = np.ma.masked_invalid(values)
    image = axes.imshow(shown, aspect="auto", interpolation="nearest", cmap="viridis", vmin=low, vmax=high)
    figure.colorbar(image, label=label, extend="both")
    for axis, ticks in ((axes.xaxis, steps), (axes.yaxis, names)):
        places = range(0, len(ticks), -(-len(ticks) // _MAX_TICKS))  # evenly spaced, unlike rounded quantiles
        axis.set_ticks(places, [str(ticks[place]) for place in places])
    axes.set(xlabel="step", ylabel="head", title=title)
    return figure


def to_png(figure: Figure, dots_per_inch: int = 100) -> bytes:
    """Returns a figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dots_per_inch)
    return file.getvalue()


def to_pixels(figure: Figure) -> np.ndarray:
    """Returns a figure as uint8[height, width, 4]: red, green, blue and opacity."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _figure(inches: tuple[float, float]) -> Figure:
    if not can_draw():
        raise ArgumentError(
            "Missing package: matplotlib, which draws figures. Got none, expected it to be installed. Fix: pip install "
            "'hydrax-heads[plots]'."
        )
    # Not through pyplot, which keeps every figure alive and looks for a window system.
    from matplotlib.figure import Figure

    return Figure(figsize=inches, layout="constrained")
