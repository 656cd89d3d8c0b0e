"""What TensorBoard shows of a run of many heads, as its protocol buffers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrax.files import encoded
from hydrax.loggers.plots import to_png
from hydrax.loggers.quantiles import count_not_finite, ordered, spreads_of_ordered

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from tensorboardX.proto.summary_pb2 import Summary

NUM_BINS = 30


Numbers = dict[str, float | dict[str, Any]]
"""What a log says, by tag: a scalar, or the fields of a histogram."""


def to_summary(numbers: Numbers) -> Summary:
    """The protocol buffer of a log; it takes longer to make than the numbers, so who can wait makes it."""
    from tensorboardX.proto.summary_pb2 import HistogramProto, Summary

    return Summary(
        value=[
            Summary.Value(tag=tag, histo=HistogramProto(**number))
            if isinstance(number, dict)
            else Summary.Value(tag=tag, simple_value=number)
            for tag, number in numbers.items()
        ]
    )


def of_all_heads(metrics: Mapping[str, np.ndarray], histograms: bool) -> Numbers:
    """The spread of each metric, float[H], over its finite heads; nothing of a metric that has none."""
    table, counts = ordered(metrics)
    numbers: Numbers = {
        f"{name}/{word}": number
        for name, spread in zip(metrics, spreads_of_ordered(table, counts), strict=True)
        for word, number in spread.items()
    }
    some = counts > 0
    if histograms and some.any():
        tags = [f"{name}/heads" for name in itertools.compress(metrics, some)]
        numbers |= zip(tags, _histograms(table[some], counts[some]), strict=True)
    numbers["heads/not_finite"] = count_not_finite(metrics)
    return numbers


def of_single_heads(metrics: Mapping[str, np.ndarray], places: Sequence[int]) -> list[Numbers]:
    """The finite values of the head at each of some places, each under its metric's plain name."""
    chosen = np.array([values[places] for values in metrics.values()], np.float64).T.tolist()
    return [
        {name: value for name, value in zip(metrics, of_head, strict=True) if math.isfinite(value)}
        for of_head in chosen
    ]


def of_figures(figures: Mapping[str, Figure]) -> Summary:
    """Figures by tag, as images."""
    from tensorboardX.proto.summary_pb2 import Summary

    summary = Summary()
    for tag, figure in figures.items():
        width, height = (int(inches * figure.dpi) for inches in figure.get_size_inches())
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=to_png(figure))
        summary.value.add(tag=tag, image=image)
    return summary


def margin_charts(metric_names: Sequence[str]) -> Summary:
    """A chart of each metric, over time: its median, between its least and its greatest head."""
    from tensorboardX.summary import custom_scalars

    # A margin chart takes [value, lower, upper].
    charts = {name: ["Margin", [f"{name}/{word}" for word in ("median", "min", "max")]] for name in metric_names}
    summary: Summary = custom_scalars({"heads": charts})
    return summary


def hyperparameters(values: Mapping[str, Any], metric_names: Sequence[str]) -> Summary:
    """One line of the table of hyper-parameters: a run's own, and the metrics that score it.

    Args:
      values: by name; what is neither a number nor a bool stands there as text, None is left out.
      metric_names: tags of scalars that the same run holds.
    """
    from tensorboardX.summary import hparams

    merged, *others = hparams({name: _plain(value) for name, value in values.items()}, dict.fromkeys(metric_names, 0.0))
    for other in others:
        merged.MergeFrom(other)
    summary: Summary = merged
    return summary


def _plain(value: Any) -> bool | int | float | str | None:
    value = value.item() if isinstance(value, np.generic) else value
    return value if value is None or isinstance(value, bool | int | float) else encoded(str(value)).decode()


def _histograms(table: np.ndarray, counts: np.ndarray) -> list[dict[str, Any]]:
    """A histogram of each row of what `ordered` gives, none of them empty, in the bins of `numpy.histogram`."""
    least, greatest = table[:, 0], table[np.arange(len(table)), counts - 1]
    margins = np.where(least == greatest, 0.5, 0.0)
    edges = np.linspace(least - margins, greatest + margins, NUM_BINS + 1, axis=1)
    below = np.array(
        [row[:count].searchsorted(bounds) for row, count, bounds in zip(table, counts, edges, strict=True)]
    )
    below[:, 0], below[:, -1] = 0, counts  # the last bin holds its right edge
    numbers = np.nan_to_num(table)  # zeros add nothing
    columns = {
        "min": least,
        "max": greatest,
        "num": counts,
        "sum": numbers.sum(axis=1),
        "sum_squares": np.einsum("mh,mh->m", numbers, numbers),
        "bucket_limit": edges,
        # TensorBoard wants the right edge of each bin, and takes the first one to begin at -infinity: so an empty one.
        "bucket": np.diff(below, axis=1, prepend=0),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
