"""Metrics and figures of many heads as TensorBoard's protocol buffers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrax.files import encoded
from hydrax.loggers.plots import to_png
from hydrax.loggers.quantiles import count_not_finite, sort_finite, spread_of_sorted

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from tensorboardX.proto.summary_pb2 import Summary

NUM_BINS = 30

# The tab "Time Series" makes a group of each first part of a tag, in alphabetical order, and opens the first two: one
# card for each metric, then the figures. The others stay closed until someone asks for them.
METRICS, PLOTS, RUN, SPREAD = "metrics/", "plots/", "run/", "spread/"

Numbers = dict[str, float | dict[str, Any]]
"""The content of a log by tag: a scalar, or the fields of a histogram."""


def to_summary(numbers: Numbers) -> Summary:
    """Makes the protocol buffer of a log. This takes longer than the numbers did, so the background thread does it."""
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
    """Returns the numbers that show metrics, float[H] each by name, over all heads whose value is finite.

    Args:
      metrics: float[H] by name; a metric that is finite nowhere is left out.
      histograms: whether to add the histogram `spread/<metric>/heads` of each metric.
    """
    table, counts = sort_finite(metrics)
    numbers: Numbers = {}
    for tag, number in spread_of_sorted(metrics, table, counts).items():
        name, _, statistic = tag.rpartition("/")
        numbers[METRICS + name if statistic == "mean" else SPREAD + tag] = number
    some = counts > 0
    if histograms and some.any():
        tags = [f"{SPREAD}{name}/heads" for name in itertools.compress(metrics, some)]
        numbers |= zip(tags, _histograms(table[some], counts[some]), strict=True)
    numbers[f"{RUN}not_finite_heads"] = count_not_finite(metrics)
    return numbers


def of_single_heads(metrics: Mapping[str, np.ndarray], positions: Sequence[int]) -> list[Numbers]:
    """Returns the finite values of the head at each of some positions, under the tags of the means of all heads."""
    chosen = np.array([values[positions] for values in metrics.values()], np.float64).T.tolist()
    return [
        {METRICS + name: value for name, value in zip(metrics, of_head, strict=True) if math.isfinite(value)}
        for of_head in chosen
    ]


def of_figures(figures: Mapping[str, Figure]) -> Summary:
    """Returns figures by tag, drawn as images."""
    from tensorboardX.proto.summary_pb2 import Summary

    summary = Summary()
    for tag, figure in figures.items():
        width, height = (int(inches * figure.dpi) for inches in figure.get_size_inches())
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=to_png(figure))
        summary.value.add(tag=tag, image=image)
    return summary


def margin_charts(metric_names: Sequence[str]) -> Summary:
    """Returns a layout with a chart of each metric over time: its mean in the band of its 10 % and 90 % quantiles."""
    from tensorboardX.summary import custom_scalars

    # The tags of a margin chart are [value, lower, upper].
    charts = {
        name: ["Margin", [METRICS + name, *(f"{SPREAD}{name}/{word}" for word in ("q10", "q90"))]]
        for name in metric_names
    }
    summary: Summary = custom_scalars({"heads": charts})
    return summary


def hyperparameters(values: Mapping[str, Any], metric_names: Sequence[str]) -> Summary:
    """Returns one line of the table of hyper-parameters: those of a run, and the metrics that score it.

    Args:
      values: values by name; any that is neither a number nor a bool is shown as text, and None is left out.
      metric_names: tags of scalars that the same run logs.
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
    """Returns a histogram of each row of a sorted table, no row being empty, in the bins of `numpy.histogram`."""
    least, greatest = table[:, 0], table[np.arange(len(table)), counts - 1]
    margins = np.where(least == greatest, 0.5, 0.0)
    edges = np.linspace(least - margins, greatest + margins, NUM_BINS + 1, axis=1)
    below = np.array(
        [row[:count].searchsorted(bounds) for row, count, bounds in zip(table, counts, edges, strict=True)]
    )
    below[:, 0], below[:, -1] = 0, counts  # the last bin includes its right edge
    numbers = np.nan_to_num(table)  # zeros do not change the sums
    columns = {
        "min": least,
        "max": greatest,
        "num": counts,
        "sum": numbers.sum(axis=1),
        "sum_squares": np.einsum("mh,mh->m", numbers, numbers),
        "bucket_limit": edges,
        # TensorBoard takes the right edge of each bin, and lets the first bin begin at -infinity: hence an empty one.
        "bucket": np.diff(below, axis=1, prepend=0),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
