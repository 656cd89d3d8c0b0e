"""Writes what a run logs for TensorBoard: one run for all heads, their spread instead of a line for each."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrax import Callback, Event
from hydrax.errors import ArgumentError
from hydrax.loggers import EventFiles, HeadsOverTime, can_draw, heat_map, learning_curve, summaries

if TYPE_CHECKING:
    from tensorboardX.proto.summary_pb2 import Summary

MAX_FIGURE_METRICS = 4
DRAW_SHARE = 50
"""Between figures drawn in a fit lies so many times the time that drawing takes."""


class TensorBoardLogger(Callback):
    """Writes the spread over heads of every metric into `trainer.log_dir`; writes nothing where that is None.

    Training metrics are written at every step that `trainer.log_every_n_steps` divides, the others whenever they come.

    - `<metric>/mean`, `/min`, `/q10`, `/median`, `/q90`, `/max`: over all heads, live or not, whose value is finite;
    - `<metric>/heads`: histogram over the same heads; validation metrics only;
    - `heads/live`: heads that still learn;
    - `heads/not_finite`: heads with a NaN or an infinity in one of the metrics written together;
    - `heads/steps_per_sec`: head-steps per second since training metrics were last written, evaluation included;
    - `learning_curve/<metric>`: figure, the metric against slice length, where there are three lengths or more;
    - `heads_over_time/<metric>`: figure, a heat map, heads (by slice length) x time;
    - others: numbers of the run as a whole, which callbacks gave to `trainer.log_scalars`.

    A margin chart of each metric (min, median, max) stands under "Custom Scalars" from the end of the first epoch on.
    TensorBoard takes one layout a run, so a metric that first comes later gets no chart.

    Some heads have a run of their own beside it, `head_<id>`, with every metric under its plain name. Their
    hyper-parameters, with slice length, seed and axes, stand under "HParams", with their scores.

    Figures, of the first four validation metrics, need matplotlib (`pip install 'hydrax-heads[plots]'`). They are drawn
    at the end of a fit, and during it as often as takes no more than 2 % of its time.

    A disk that is full or cannot be written never stops or delays a fit: logs are then dropped and counted, and the
    logger "hydrax" says so once.

    Args:
      max_head_runs: how many heads have a run of their own, from the one with the shortest slice to the one with the
        longest; 0: none. TensorBoard becomes slow beyond some 250 runs.
      heads: ids of the heads that have one instead.
      figures: whether to draw any.

    Raises:
      ArgumentError: an argument is out of its range; in `on_train_start`, no head has such an id.
    """

    def __init__(self, max_head_runs: int = 8, heads: Sequence[int] | None = None, figures: bool = True) -> None:
        if isinstance(max_head_runs, bool) or not isinstance(max_head_runs, int) or max_head_runs < 0:
            raise _error("max_head_runs", max_head_runs, "an int of 0 or more", "leave it out for 8")
        if heads is not None and not all(isinstance(head, int | np.integer) for head in heads):
            raise _error("heads", heads, "ids of heads, ints", "leave it out for an even choice")
        if not isinstance(figures, bool):
            raise _error("figures", figures, "True or False", "leave it out for True")
        self.max_head_runs, self.heads, self.figures = max_head_runs, heads, figures
        self._files: EventFiles | None = None
        self._dropped = 0
        self._history: dict[str, HeadsOverTime] = {}
        self._begin()

    def _begin(self) -> None:
        """Forgets the run before."""
        self._close()
        self._warned = self._charted = False
        self._metric_names: dict[str, None] = {}  # a set that keeps the order
        self._counted_from: tuple[float, int] | None = None
        self._settings: list[dict[str, Any]] = []
        self._own_runs: dict[str, int] = {}  # the places of the heads that have one
        self._without_hparams: set[str] = set()
        self._drawn_at, self._draw_secs = time.monotonic(), 1.0  # a guess, until the first is drawn

    @property
    def num_dropped(self) -> int:
        """Logs that could not be written."""
        return self._dropped + (0 if self._files is None else self._files.num_dropped)

    def on_train_start(self, event: Event) -> None:
        self._begin()
        if event.step == 0:
            self._history = {}
        if event.trainer.log_dir is None:
            return
        self._settings = event.trainer.head_settings()
        self._own_runs = {f"head_{self._settings[place]['head']}": place for place in self._places()}
        self._without_hparams = set(self._own_runs)
        # A run that was cut off may have logged beyond the step it resumes from. What it logged at that step stays:
        # it is not logged again.
        self._open(event, purge_step=event.step + 1 if event.step > 0 else None)
        event.trainer.save_hparams()

    def on_train_steps_end(self, event: Event) -> None:
        if self._counted_from is None and event.steps.size:
            # Counted from here and not from the start, so that the speed leaves compilation out.
            self._counted_from = time.monotonic(), int(event.steps[-1])
        due = np.flatnonzero(event.steps % event.trainer.log_every_n_steps == 0)
        if due.size == 0:
            return
        rate = self._head_steps_per_sec(event)
        for row in due:
            metrics = {name: values[row] for name, values in event.metrics.items()}
            self._log(event, metrics, int(event.steps[row]), rate=rate)

    def on_validation_end(self, event: Event) -> None:
        self._log(event, event.metrics, event.step, histograms=True)
        if event.stage != "fit":
            self._close()  # nothing else ends an evaluation outside a fit
            return
        self._remember(event)
        if time.monotonic() - self._drawn_at > DRAW_SHARE * self._draw_secs:
            self._draw(event)

    def on_train_epoch_end(self, event: Event) -> None:
        self._log(event, event.metrics, event.step)
        if not event.trainer.validation_metrics:
            self._remember(event)
        self._chart()

    def on_save_checkpoint(self, event: Event) -> None:
        if self._files is not None:
            self._files.flush_soon()  # a run that is killed goes on from here, and logs nothing of before again

    def on_fit_end(self, event: Event) -> None:
        self._draw(event)
        self._close()

    def on_test_end(self, event: Event) -> None:
        self._log(event, event.metrics, event.step)
        self._close()

    def on_exception(self, event: Event) -> None:
        self._close()

    def teardown(self, event: Event) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        # By number: a metric's name may hold what a checkpoint cannot have in the name of an array.
        arrays = {
            f"{part}_{number}": array
            for number, known in enumerate(self._history.values())
            for part, array in known.state().items()
        }
        return {"metrics": list(self._history), **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._history = {
            name: HeadsOverTime.of_state({part: state[f"{part}_{number}"] for part in HeadsOverTime.PARTS})
            for number, name in enumerate(state["metrics"])
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
        numbers["heads/live"] = int(np.count_nonzero(event.live))
        if rate is not None:
            numbers["heads/steps_per_sec"] = rate
        numbers.update(event.trainer.scalars)
        of_heads = summaries.of_single_heads(metrics, list(self._own_runs.values()))
        assert self._files is not None
        self._files.add({"": numbers, **dict(zip(self._own_runs, of_heads, strict=True))}, step)
        # TensorBoard takes the table's columns from what comes first: so from where all that scores a head is known.
        scores = sorted(event.trainer.validation_metrics) or list(metrics)
        if self._without_hparams and set(scores) <= set(metrics):
            self._files.add({run: self._hparams(event, run, scores) for run in self._without_hparams}, step)
            self._without_hparams = set()

    def _hparams(self, event: Event, run: str, scores: Sequence[str]) -> Summary:
        hparams = event.trainer.module.hparams if event.trainer.module else {}
        values = {**hparams, **self._settings[self._own_runs[run]], "head": None}  # its name says which
        return summaries.hyperparameters(values, scores)

    def _places(self) -> list[int]:
        """The places of the heads that have runs of their own."""
        ids = [settings["head"] for settings in self._settings]
        if self.heads is None:
            order = self._by_length()
            chosen = np.linspace(0, len(order) - 1, min(self.max_head_runs, len(order))).round().astype(int)
            return sorted(order[chosen].tolist())
        unknown = [head for head in self.heads if head not in ids]
        if unknown:
            raise _error("heads", unknown[0], f"ids of heads: {min(ids)} to {max(ids)}", "leave it out")
        return [ids.index(head) for head in self.heads]

    def _by_length(self) -> np.ndarray:
        """int64[H], places of the heads, the shortest slice first."""
        return np.argsort([settings["length"] for settings in self._settings], kind="stable")

    def _remember(self, event: Event) -> None:
        """Notes what the heat maps show."""
        if not self.figures or not self._settings:
            return
        for name, values in list(event.metrics.items())[:MAX_FIGURE_METRICS]:
            self._history.setdefault(name, HeadsOverTime(self._by_length())).add(event.step, values)

    def _draw(self, event: Event) -> None:
        if self._files is None or not self._history or not can_draw():
            return
        start = time.monotonic()
        figures: dict[str, Any] = {}
        lengths = np.array([settings["length"] for settings in self._settings])
        ids = np.array([settings["head"] for settings in self._settings])
        for name, history in self._history.items():
            if len(np.unique(lengths)) > 2:
                title = f"after {history.steps[-1]} steps"
                figures[f"learning_curve/{name}"] = learning_curve(lengths, history.latest, name, title)
            if len(history.steps) > 1 and len(ids) > 1:
                figures[f"heads_over_time/{name}"] = heat_map(history.steps, history.values, ids[history.places], name)
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
                    "Logs for TensorBoard are dropped: TensorBoardLogger, folder %s. Got %s, expected a folder that "
                    "takes them. Fix: make room there, or give Trainer another default_root_dir; the run goes on "
                    "without them.",
                    folder,
                    trouble,
                )

        self._charted = False
        self._files = EventFiles(folder, report, purge_step)

    def _close(self) -> None:
        if self._files is None:
            return
        self._chart()
        self._files.close()
        self._dropped += self._files.num_dropped
        self._files = None


def _error(name: str, value: Any, expected: str, fix: str) -> ArgumentError:
    return ArgumentError(
        f"An argument has no meaning: TensorBoardLogger({name}=...). Got {value!r}, expected {expected}. Fix: {fix}."
    )
