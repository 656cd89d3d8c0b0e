"""Logs a run for TensorBoard: the spread over all heads instead of one line per head."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrax import Callback, Event, TrainerView
from hydrax.arguments import is_int, require
from hydrax.loggers import (
    EventFiles,
    HeadsOverTime,
    can_draw,
    heat_map,
    learning_curve,
    of_live_heads,
    summaries,
    summary_writer,
)
from hydrax.results import column_of

if TYPE_CHECKING:
    from tensorboardX.proto.summary_pb2 import Summary

MAX_FIGURE_METRICS = 4
DRAW_SHARE = 50
"""Figures are drawn again after this many times the time that drawing them takes."""


class TensorBoardLogger(Callback):
    """Logs the spread of every metric over the heads to TensorBoard event files in `trainer.log_dir`.

    Training metrics are logged at every step that `trainer.log_every_n_steps` divides, all others whenever they are
    computed. If `trainer.log_dir` is None, nothing is written. The tags are

    - `metrics/<metric>`: the mean over heads whose value is finite;
    - `plots/learning_curve/<metric>`: figure, the metric against slice length, if there are three lengths or more;
    - `plots/heads_over_time/<metric>`: figure, a heat map of heads (ordered by slice length) and time;
    - `run/live_heads`: number of heads that still learn;
    - `run/not_finite_heads`: number of heads with NaN or infinity in one of the metrics logged together;
    - `run/head_steps_per_sec`: head-steps per second since the last training metrics, evaluation included;
    - `spread/<metric>/min`, `/q10`, `/median`, `/q90`, `/max`: over the same heads as the mean;
    - `spread/<metric>/heads`: a histogram over them, for validation metrics;
    - any other tag: a number of the whole run that a callback passed to `trainer.log_scalars`.

    A training metric, such as the learning rate, is taken over the heads that still learn; validation and test metrics
    over all heads, stopped or not.

    From the end of the first epoch on, "Custom Scalars" has a chart of each metric: its mean in the band between its
    10 % and 90 % quantiles. TensorBoard reads one layout per run, so a metric that is first logged later has no chart.

    Some heads also have a run of their own, `head_<id>`, with every metric under the same tag as the mean, so that one
    card shows both. "HParams" lists their hyper-parameters, slice length, seed and axes beside their scores.

    `experiment` writes anything else into the same run: figures, images, text, audio.

    Figures are drawn for the first four validation metrics and need matplotlib
    (`pip install 'hydrax-heads[plots]'`). They are drawn at the end of a fit and during it, but take at most 2 % of the
    time of a fit.

    A disk that is full or cannot be written never stops or delays a fit. Logs are dropped and counted, and the logger
    "hydrax" warns once.

    Args:
      max_head_runs: number of heads with a run of their own, evenly chosen from the shortest slice to the longest;
        0 for none. TensorBoard becomes slow beyond about 250 runs. Default: 8.
      heads: ids of the heads that have a run of their own, in place of an even choice.
      figures: whether to draw figures. Default: True.

    Raises:
      ArgumentError: an argument is out of range, or (in `on_train_start`) no head has one of the ids in `heads`.
    """

    def __init__(self, max_head_runs: int = 8, heads: Sequence[int] | None = None, figures: bool = True) -> None:
        whole = is_int(max_head_runs, least=0)
        _require(whole, "max_head_runs", max_head_runs, "an int of 0 or more", "leave it out for 8")
        listed = isinstance(heads, Iterable) and getattr(heads, "ndim", 1) > 0  # an array without axes has no items
        ids = heads is None or (listed and all(is_int(head) for head in heads))
        _require(ids, "heads", heads, "a list of head ids", "leave it out for an even choice")
        _require(isinstance(figures, bool), "figures", figures, "True or False", "leave it out for True")
        self.max_head_runs, self.heads, self.figures = max_head_runs, heads, figures
        self._files: EventFiles | None = None
        self._experiment: Any = None
        self._trainer: TrainerView
        self._waiting: list[tuple[Summary, int | None]] = []  # of `experiment`, before the files are open
        self._dropped = 0
        self._history: dict[str, HeadsOverTime] = {}
        self._begin()

    def _begin(self) -> None:
        """Forgets the previous run."""
        self._close()
        self._warned = self._charted = False
        self._metric_names: dict[str, None] = {}  # an ordered set
        self._counted_from: tuple[float, int] | None = None
        self._settings: Sequence[Mapping[str, Any]] = []
        self._lengths = self._ids = np.zeros(0, np.int64)
        self._own_runs: dict[str, int] = {}  # positions of heads by the name of their run
        self._without_hparams: set[str] = set()
        self._drawn_at, self._draw_secs = time.monotonic(), 1.0  # a guess until the first figures are drawn

    @property
    def num_dropped(self) -> int:
        """Number of logs that could not be written."""
        return self._dropped + (0 if self._files is None else self._files.num_dropped)

    @property
    def experiment(self) -> Any:
        """A `tensorboardX.SummaryWriter` that writes into this run, for figures, images, text and the like.

        Its methods, such as `add_figure(tag, figure)`, take the present step if they are given none. They return at
        once, never raise because of a disk, and write nothing if the run writes nothing. Use it in the hooks of a
        callback, up to and including `on_fit_end`.

        >>> class Confusion(hx.Callback):
        ...     def on_validation_end(self, event):
        ...         event.trainer.logger.experiment.add_text("note", f"validated at step {event.step}")
        """
        if self._experiment is None:
            self._experiment = summary_writer(self._write)
        return self._experiment

    def _write(self, summary: Summary, step: int | None) -> None:
        if self._files is None:
            self._waiting.append((summary, step))  # a callback before this one in the list hears each hook earlier
        else:
            self._files.add({"": summary}, self._trainer.global_step if step is None else step)

    @property
    def needs_every_epoch(self) -> bool:
        return False  # means over an epoch, if there are any, end a superstep with each epoch by themselves

    def on_train_start(self, event: Event) -> None:
        self._begin()
        if event.step == 0:
            self._history = {}
        if event.trainer.log_dir is None:
            return
        self._settings = event.trainer.head_settings()
        self._lengths, self._ids = column_of(self._settings, "length"), column_of(self._settings, "head")
        self._own_runs = {f"head_{self._ids[place]}": place for place in self._places()}
        self._without_hparams = set(self._own_runs)
        # An interrupted run may have logged beyond the step it resumes from. What it logged at that step itself stays,
        # as that step is not logged again.
        self._open(event, purge_step=event.step + 1 if event.step > 0 else None)
        event.trainer.save_hparams()

    def on_train_steps_end(self, event: Event) -> None:
        if self._counted_from is None and event.steps.size:
            # Counting starts after the first superstep, so that the speed leaves compile time out.
            self._counted_from = time.monotonic(), int(event.steps[-1])
        due = np.flatnonzero(event.steps % event.trainer.log_every_n_steps == 0)
        if due.size == 0:
            return
        rate = self._head_steps_per_sec(event)
        for row in due:
            step, values = int(event.steps[row]), of_live_heads(event, row)
            self._log(event, values, step, rate=rate)
        if not event.trainer.validation_metrics:
            self._remember(step, values)

    def on_validation_end(self, event: Event) -> None:
        self._log(event, event.metrics, event.step, histograms=True)
        if event.stage != "fit":
            return
        self._remember(event.step, event.metrics)
        if time.monotonic() - self._drawn_at > DRAW_SHARE * self._draw_secs:
            self._draw(event)

    def on_train_epoch_end(self, event: Event) -> None:
        self._log(event, event.metrics, event.step)
        if not event.trainer.validation_metrics:
            self._remember(event.step, event.metrics)
        self._chart()

    def on_save_checkpoint(self, event: Event) -> None:
        if self._files is not None:
            self._files.flush_soon()  # a killed run resumes from this checkpoint and does not log earlier steps again

    def on_fit_end(self, event: Event) -> None:
        self._draw(event)

    def on_test_end(self, event: Event) -> None:
        self._log(event, event.metrics, event.step)

    def teardown(self, event: Event) -> None:
        if self._waiting and self._files is None and event.trainer.log_dir is not None:
            self._open(event)  # such as in a prediction, in which this logger has nothing of its own to write
        self._close()
        self._waiting = []

    def state_dict(self) -> dict[str, Any]:
        arrays = {
            f"{part}/{name}": array for name, known in self._history.items() for part, array in known.state().items()
        }
        return {"metrics": list(self._history), **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._history = {
            name: HeadsOverTime.of_state({part: state[f"{part}/{name}"] for part in HeadsOverTime.PARTS})
            for name in state["metrics"]
        }

    def _head_steps_per_sec(self, event: Event) -> float | None:
        assert self._counted_from is not None
        now, step = time.monotonic(), int(event.steps[-1])
        secs, steps = now - self._counted_from[0], step - self._counted_from[1]
        if steps <= 0 or secs <= 0:
            return None
        self._counted_from = now, step
        return int(np.count_nonzero(event.live)) * steps / secs

    def _log(
        self,
        event: Event,
        metrics: Mapping[str, np.ndarray],
        step: int,
        *,
        rate: float | None = None,
        histograms: bool = False,
    ) -> None:
        if not metrics or event.trainer.log_dir is None:
            return
        self._metric_names |= dict.fromkeys(metrics)
        if self._files is None:
            self._open(event)  # validate or test, without a fit
        numbers = summaries.of_all_heads(metrics, histograms)
        numbers[f"{summaries.RUN}live_heads"] = int(np.count_nonzero(event.live))
        if rate is not None:
            numbers[f"{summaries.RUN}head_steps_per_sec"] = rate
        numbers.update(event.trainer.scalars)
        of_heads = summaries.of_single_heads(metrics, list(self._own_runs.values()))
        assert self._files is not None
        self._files.add({"": numbers, **dict(zip(self._own_runs, of_heads, strict=True))}, step)
        # TensorBoard takes the columns of the HParams table from the first entry, so it waits until all scores exist.
        scores = sorted(event.trainer.validation_metrics) or list(metrics)
        if self._without_hparams and set(scores) <= set(metrics):
            tags = [summaries.METRICS + name for name in scores]
            self._files.add({run: self._hparams(event, run, tags) for run in self._without_hparams}, step)
            self._without_hparams = set()

    def _hparams(self, event: Event, run: str, tags: Sequence[str]) -> Summary:
        hparams = event.trainer.module.hparams if event.trainer.module else {}
        values = {**hparams, **self._settings[self._own_runs[run]], "head": None}  # the name of its run has the id
        return summaries.hyperparameters(values, tags)

    def _places(self) -> list[int]:
        """Returns the positions of the heads that have runs of their own."""
        if self.heads is None:
            order = self._by_length()
            chosen = np.linspace(0, len(order) - 1, min(self.max_head_runs, len(order))).round().astype(int)
            return sorted(order[chosen].tolist())
        for head in self.heads:
            expected = f"ids of heads: {self._ids.min()} to {self._ids.max()}"
            _require(head in self._ids, "heads", head, expected, "leave it out for an even choice")
        return [int(np.flatnonzero(self._ids == head)[0]) for head in self.heads]

    def _by_length(self) -> np.ndarray:
        """Returns int64[H], the positions of the heads, the shortest slice first."""
        return np.argsort(self._lengths, kind="stable")

    def _remember(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Adds the metrics of a step to the history that the figures show."""
        if not self.figures or not self._settings:
            return
        for name, values in list(metrics.items())[:MAX_FIGURE_METRICS]:
            if name not in self._history:
                self._history[name] = HeadsOverTime(self._by_length())
            self._history[name].add(step, values)

    def _draw(self, event: Event) -> None:
        if self._files is None or not self._history or not can_draw():
            return
        start = time.monotonic()
        figures: dict[str, Any] = {}
        lengths, ids = self._lengths, self._ids
        for name, history in self._history.items():
            if len(np.unique(lengths)) > 2:
                title = f"after {history.steps[-1]} steps"
                figures[f"{summaries.PLOTS}learning_curve/{name}"] = learning_curve(
                    lengths, history.latest, name, title
                )
            if len(history.steps) > 1 and len(ids) > 1:
                shown = heat_map(history.steps, history.values, ids[history.places], name)
                figures[f"{summaries.PLOTS}heads_over_time/{name}"] = shown
        if figures:
            self._files.add({"": summaries.of_figures(figures)}, event.step)
        self._drawn_at = time.monotonic()
        self._draw_secs = self._drawn_at - start

    def _chart(self) -> None:
        if self._files is not None and self._metric_names and not self._charted:
            self._charted = True
            self._files.add({"": summaries.margin_charts(list(self._metric_names))}, 0)

    def _open(self, event: Event, purge_step: int | None = None) -> None:
        folder = event.trainer.log_dir
        assert folder is not None

        def report(trouble: str) -> None:
            if not self._warned:
                self._warned = True
                logging.getLogger("hydrax").warning(
                    "Logs for TensorBoard were dropped: TensorBoardLogger, folder %s. Got %s, expected a writable "
                    "folder with free space. Fix: free some space there, or pass another default_root_dir to Trainer; "
                    "the run continues without these logs.",
                    folder,
                    trouble,
                )

        self._charted = False
        self._files = EventFiles(folder, report, purge_step)
        self._trainer = event.trainer
        waiting, self._waiting = self._waiting, []
        for summary, step in waiting:
            self._write(summary, event.step if step is None else step)

    def _close(self) -> None:
        if self._files is None:
            return
        self._chart()
        self._files.close()
        self._dropped += self._files.num_dropped
        self._files = None


def _require(holds: bool, name: str, value: Any, expected: str, fix: str) -> None:
    require(holds, f"TensorBoardLogger({name}=...)", value, expected, fix)
