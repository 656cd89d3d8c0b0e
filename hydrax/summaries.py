"""What TensorBoard shows of a run of many heads, as its protocol buffers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrax.figures import to_png
from hydrax.spread import count_not_finite, finite, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from tensorboardX.proto.summary_pb2 import HistogramProto, Summary

NUM_BINS = 30


def of_all_heads(metrics: Mapping[str, np.ndarray], histograms: bool) -> Summary:
    """The spread of each metric, float[H], over its finite heads; nothing of a metric that has none."""
    from tensorboardX.proto.summary_pb2 import Summary

    summary = Summary()
    for name, values in metrics.items():
        for word, number in spread(values).items():
            summary.value.add(tag=f"{name}/{word}", simple_value=number)
        if histograms and (numbers := finite(values)).size:
            _fill(summary.value.add(tag=f"{name}/heads").histo, numbers)
    summary.value.add(tag="heads/not_finite", simple_value=count_not_finite(metrics))
    return summary


def of_one_head(metrics: Mapping[str, np.ndarray], place: int) -> Summary:
    """The finite values of the head at a place, each under its metric's plain name."""
    from tensorboardX.proto.summary_pb2 import Summary

    own = {name: float(values[place]) for name, values in metrics.items()}
    return Summary(
        value=[Summary.Value(tag=name, simple_value=value) for name, value in own.items() if math.isfinite(value)]
    )


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

    known = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    shown = {name: v if v is None or isinstance(v, bool | int | float) else str(v) for name, v in known.items()}
    merged, *others = hparams(shown, dict.fromkeys(metric_names, 0.0))
    for other in others:
        merged.MergeFrom(other)
    summary: Summary = merged
    return summary


def _fill(histogram: HistogramProto, numbers: np.ndarray) -> None:
    """Makes a histogram of numbers, with the bins of `numpy.histogram`, in a fifth of its time."""
    ordered = np.sort(numbers)
    least, greatest = ordered[0], ordered[-1]
    margin = 0.5 if least == greatest else 0.0
    edges = np.linspace(least - margin, greatest + margin, NUM_BINS + 1)
    below = [0, *np.searchsorted(ordered, edges[1:-1]).tolist(), len(ordered)]
    histogram.min, histogram.max = least, greatest
    histogram.num, histogram.sum, histogram.sum_squares = len(ordered), ordered.sum(), ordered @ ordered
    # TensorBoard wants the right edge of each bin, and takes the first one to begin at -infinity: so an empty one.
    histogram.bucket_limit.extend(edges.tolist())
    histogram.bucket.extend([0, *(after - before for before, after in itertools.pairwise(below))])
