"""What is known of all heads at once, as pictures: scores against slice length, and heads over time."""

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
_MOST_TICKS = 12
_MOST_LENGTHS = 30
_WIDE_SPAN = 20  # from here on an axis of lengths is logarithmic


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def curve_of(lengths: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores against slice length: a line for each length, over the heads of that length whose score is finite.

    Args:
      lengths: int[H], rows of each head's slice.
      scores: float[H].

    Returns:
      float64[lengths, 9], columns `CURVE_COLUMNS`, ascending; a length without a finite score has no line.
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
    """Draws a metric against slice length: each head a dot, and median and spread of those of a length.

    Where there are many lengths, those of neighbouring lengths count together.

    Args:
      lengths: int[H], rows of each head's slice.
      scores: float[H]; NaN and infinite ones are left out.
      label: of the metric.
      title: of the figure.
    """
    figure = _figure((7, 4.5))
    axes = figure.subplots()
    shown = np.isfinite(scores)
    curve = curve_of(_grouped(lengths), scores)
    axes.plot(lengths[shown], scores[shown], ".", color="C0", markersize=3, alpha=0.35, label="a head")
    if (curve[:, 1] > 1).any():
        axes.fill_between(curve[:, 0], curve[:, 5], curve[:, 7], color="C0", alpha=0.2, label="10 % to 90 %")
        axes.plot(curve[:, 0], curve[:, 6], "o-", color="C0", markersize=3, label="median")
    if len(curve) and curve[-1, 0] > _WIDE_SPAN * curve[0, 0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="rows to learn from", ylabel=label, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _grouped(lengths: np.ndarray) -> np.ndarray:
    """float[H], the length to count each head under: its own, or where there are many the median of its neighbours."""
    if len(np.unique(lengths)) <= _MOST_LENGTHS:
        return lengths
    edges = np.geomspace(max(1, lengths.min()), lengths.max() + 1, _MOST_LENGTHS + 1)
    groups = np.searchsorted(edges, lengths, side="right")
    present, places = np.unique(groups, return_inverse=True)
    return np.array([np.median(lengths[groups == group]) for group in present])[places]


class HeadsOverTime:
    """A metric of all heads over time, thinned out: never more than `MAX_TIMES` times and `MAX_HEADS` heads.

    Args:
      order: int[H], places of the heads in the order in which they are to be shown.

    Attributes:
      places: int64[h], the heads kept, in that order.
      latest: float[H], what was added last, of all heads.
    """

    PARTS = ("places", "steps", "values", "counts", "latest")

    def __init__(self, order: np.ndarray) -> None:
        self.places = np.asarray(order)[np.unique(np.linspace(0, len(order) - 1, MAX_HEADS).round().astype(int))]
        self._steps: list[int] = []
        self._columns: list[np.ndarray] = []
        self._stride, self._count = 1, 0
        self._last_step, self.latest = 0, np.full(len(order), np.nan, np.float32)

    def add(self, step: int, values: np.ndarray) -> None:
        """Adds float[H] after `step` updates."""
        self._last_step, self.latest = step, np.asarray(values)
        if self._count % self._stride == 0:
            self._steps.append(step)
            self._columns.append(self.latest[self.places])
        self._count += 1
        if len(self._steps) > MAX_TIMES:
            # As even as before, and what was dropped was no better than what is kept.
            self._steps, self._columns, self._stride = self._steps[::2], self._columns[::2], 2 * self._stride

    @property
    def steps(self) -> np.ndarray:
        """int64[T], the times kept, and the last one."""
        steps = np.array(self._steps, np.int64)
        return steps if self._is_last_kept else np.append(steps, self._last_step)

    @property
    def values(self) -> np.ndarray:
        """float[h, T] at those times."""
        kept = self._columns if self._is_last_kept else [*self._columns, self.latest[self.places]]
        return np.stack(kept, axis=1)

    @property
    def _is_last_kept(self) -> bool:
        return self._steps[-1:] == [self._last_step]

    def state(self) -> dict[str, np.ndarray]:
        """All of it as arrays, by the names in `PARTS`; at least one time must have been added."""
        counts = np.array([self._stride, self._count, self._last_step])
        values = np.stack(self._columns, axis=1)
        return dict(zip(self.PARTS, (self.places, np.array(self._steps), values, counts, self.latest), strict=True))

    @classmethod
    def of_state(cls, state: Mapping[str, np.ndarray]) -> HeadsOverTime:
        """What `state` gave, back."""
        own = cls(np.arange(len(state["latest"])))
        own.places, own.latest = np.array(state["places"]), np.array(state["latest"])
        own._steps, own._columns = state["steps"].tolist(), list(np.array(state["values"]).T)
        own._stride, own._count, own._last_step = state["counts"].tolist()
        return own


def heat_map(steps: np.ndarray, values: np.ndarray, names: np.ndarray, label: str, title: str = "") -> Figure:
    """Draws a metric of all heads over time: a row for each head, a column for each time; what is not finite is grey.

    Args:
      steps: int[T], updates done at each time.
      values: float[H, T].
      names: [H], what each head is called.
      label: of the metric.
      title: of the figure.
    """
    figure = _figure((7, 6))
    axes = figure.subplots()
    axes.set_facecolor("0.7")
    # Colours span the middle 98 %, so that one odd head does not make all others one colour.
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.01, 0.99]) if finite.size else (0, 1)
    shown = np.ma.masked_invalid(values)
    image = axes.imshow(shown, aspect="auto", interpolation="nearest", cmap="viridis", vmin=low, vmax=high)
    figure.colorbar(image, label=label, extend="both")
    for axis, ticks in ((axes.xaxis, steps), (axes.yaxis, names)):
        places = np.unique(np.linspace(0, len(ticks) - 1, min(len(ticks), _MOST_TICKS)).round().astype(int))
        axis.set_ticks(places, [str(ticks[place]) for place in places])
    axes.set(xlabel="step", ylabel="head", title=title)
    return figure


def to_png(figure: Figure, dots_per_inch: int = 100) -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dots_per_inch)
    return file.getvalue()


def to_pixels(figure: Figure) -> np.ndarray:
    """A figure as uint8[height, width, 4], red, green, blue and opacity."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _figure(inches: tuple[float, float]) -> Figure:
    if not can_draw():
        raise ArgumentError(
            "Nothing can be drawn: hydrax.figures. Got no matplotlib, expected it to be installed. Fix: pip install "
            "'hydrax-heads[plots]'."
        )
    # Not pyplot: it keeps every figure alive, and asks which window system there is.
    from matplotlib.figure import Figure

    return Figure(figsize=inches, layout="constrained")
