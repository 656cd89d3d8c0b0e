"""hydrax.callbacks.TensorBoardLogger: what TensorBoard reads back, and that a broken disk never holds a fit up."""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from hydrax import Event
from hydrax.callbacks import TensorBoardLogger, tensorboard_logger

LIVE = np.array([True, True, False, True])
WORDS = ("mean", "min", "q10", "median", "q90", "max")


@dataclass
class FakeTrainer:
    """As much of a TrainerView as the logger reads."""

    log_dir: Path | None
    log_every_n_steps: int = 50


@pytest.fixture
def trainer(tmp_path):
    return FakeTrainer(tmp_path / "run")


@pytest.fixture
def logger(trainer):
    logger = TensorBoardLogger()
    yield logger
    logger.teardown(at(0, trainer))


def at(step: int, trainer: FakeTrainer, metrics: Mapping[str, np.ndarray] | None = None, stage: str = "fit") -> Event:
    return Event(trainer, stage, step, 0, metrics or {}, live=LIVE)


def superstep(first: int, last: int, trainer: FakeTrainer) -> Event:
    """The steps after which `first` to `last` updates are done; head h of such a step has the loss steps + h."""
    steps = np.arange(first, last + 1)
    return Event(trainer, "fit", last, 0, {"loss": np.float32(steps[:, None] + np.arange(4))}, steps, LIVE)


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"scalars": 0, "histograms": 0, "tensors": 0}).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read(folder).Scalars(tag)]


def charts(folder: Path) -> list[dict[str, tuple[str, str, str]]]:
    """Every layout in a folder: title of a chart -> its value, lower and upper tag."""
    layouts = [
        layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
        for tensor in read(folder).Tensors("custom_scalars__config__")
    ]
    return [
        {
            chart.title: (series.value, series.lower, series.upper)
            for category in layout.category
            for chart in category.chart
            for series in chart.margin.series
        }
        for layout in layouts
    ]


def test_the_spread_over_finite_heads_is_numpys(trainer, logger):
    values = np.random.default_rng(0).normal(size=101).astype(np.float32)
    values[[3, 50]] = np.nan, np.inf
    finite = np.delete(values, [3, 50]).astype(np.float64)
    logger.on_validation_end(at(7, trainer, {"val_loss": values}))
    logger.teardown(at(7, trainer))
    expected = [finite.mean(), *np.quantile(finite, [0, 0.1, 0.5, 0.9, 1])]
    written = [points(trainer.log_dir, f"val_loss/{word}") for word in WORDS]
    assert [step for [(step, _)] in written] == [7] * 6
    np.testing.assert_allclose([value for [(_, value)] in written], expected, rtol=1e-6)


def test_a_stopped_head_is_part_of_the_spread(trainer, logger):
    logger.on_validation_end(at(1, trainer, {"val_loss": np.float32([1, 2, 99, 3])}))  # head 2 is not live
    logger.teardown(at(1, trainer))
    assert points(trainer.log_dir, "val_loss/max") == [(1, 99.0)]


def test_a_metric_without_a_finite_head_writes_nothing_of_its_own(trainer, logger):
    logger.on_validation_end(at(1, trainer, {"val_loss": np.full(4, np.nan), "val_acc": np.ones(4)}))
    logger.teardown(at(1, trainer))
    tags = read(trainer.log_dir).Tags()["scalars"]
    assert {tag for tag in tags if not tag.startswith("heads/")} == {f"val_acc/{word}" for word in WORDS}


def test_live_heads_and_heads_that_are_not_finite_in_any_metric_are_counted(trainer, logger):
    metrics = {"val_loss": np.float32([np.nan, 1, np.inf, 1]), "val_acc": np.float32([1, 1, np.nan, 1])}
    logger.on_validation_end(at(1, trainer, metrics))
    logger.teardown(at(1, trainer))
    assert points(trainer.log_dir, "heads/live") == [(1, 3.0)]
    assert points(trainer.log_dir, "heads/not_finite") == [(1, 2.0)]


def test_training_metrics_are_written_at_the_steps_that_log_every_n_steps_divides(trainer, logger):
    logger.on_train_start(at(0, trainer))
    for first, last in [(1, 30), (31, 110), (111, 149), (150, 150)]:
        logger.on_train_steps_end(superstep(first, last, trainer))
    logger.teardown(at(150, trainer))
    assert points(trainer.log_dir, "loss/max") == [(50, 53.0), (100, 103.0), (150, 153.0)]


def test_the_speed_is_in_head_steps_per_second_since_the_log_before(trainer, logger, monkeypatch):
    clock = SimpleNamespace(now=10.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(tensorboard_logger, "time", clock)
    logger.on_train_start(at(0, trainer))
    for last, clock.now in [(50, 10.0), (100, 12.0), (150, 13.0)]:  # the first only starts the count
        logger.on_train_steps_end(superstep(last - 49, last, trainer))
    logger.teardown(at(150, trainer))
    # 3 live heads, 50 steps, 2 s and 1 s
    assert points(trainer.log_dir, "heads/steps_per_sec") == [(100, 75.0), (150, 150.0)]


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end", "on_test_end"])
def test_evaluation_and_epochs_are_written_whenever_they_come(trainer, logger, hook):
    getattr(logger, hook)(at(33, trainer, {"some_loss": np.float32([1, 2, 3, 4])}))
    logger.teardown(at(33, trainer))
    assert points(trainer.log_dir, "some_loss/median") == [(33, 2.5)]


def test_validation_metrics_have_a_histogram_over_finite_heads(trainer, logger):
    values = np.random.default_rng(1).normal(size=500).astype(np.float32)
    logger.on_validation_end(at(9, trainer, {"val_loss": np.append(values, np.float32(np.nan))}))
    logger.teardown(at(9, trainer))
    [histogram] = read(trainer.log_dir).Histograms("val_loss/heads")
    counts, edges = np.histogram(values.astype(np.float64), bins=30)
    assert histogram.step == 9
    assert histogram.histogram_value.num == 500
    assert histogram.histogram_value.bucket == [0, *counts]
    np.testing.assert_allclose(histogram.histogram_value.bucket_limit, edges)


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_test_end"])
def test_other_metrics_have_no_histogram(trainer, logger, hook):
    getattr(logger, hook)(at(1, trainer, {"loss": np.ones(4)}))
    logger.teardown(at(1, trainer))
    assert read(trainer.log_dir).Tags()["histograms"] == []


def test_every_metric_of_the_first_epoch_has_a_margin_chart_written_once(trainer, logger):
    logger.on_train_start(at(0, trainer))
    for step in (50, 100):
        logger.on_train_steps_end(superstep(step - 49, step, trainer))
        logger.on_validation_end(at(step, trainer, {"val_loss": np.ones(4)}))
        logger.on_train_epoch_end(at(step, trainer, {"loss_epoch": np.ones(4)}))
    logger.teardown(at(100, trainer))
    assert charts(trainer.log_dir) == [
        {name: (f"{name}/median", f"{name}/min", f"{name}/max") for name in ("loss", "val_loss", "loss_epoch")}
    ]


def test_a_fit_that_ends_before_its_first_epoch_has_its_charts_too(trainer, logger):
    logger.on_train_start(at(0, trainer))
    logger.on_train_steps_end(superstep(1, 50, trainer))
    logger.teardown(at(50, trainer))
    assert charts(trainer.log_dir) == [{"loss": ("loss/median", "loss/min", "loss/max")}]


def test_a_test_after_the_fit_keeps_the_charts_of_the_fit(trainer, logger):
    logger.on_validation_end(at(50, trainer, {"val_loss": np.ones(4)}))
    logger.teardown(at(50, trainer))
    logger.on_test_end(at(50, trainer, {"test_loss": np.ones(4)}, stage="test"))
    assert list(charts(trainer.log_dir)[-1]) == ["val_loss", "test_loss"]


def test_a_second_fit_has_no_charts_of_the_first_one_s_metrics(tmp_path, logger):
    for name in ("first", "second"):
        trainer = FakeTrainer(tmp_path / name)
        logger.on_train_start(at(0, trainer))
        logger.on_validation_end(at(50, trainer, {f"{name}_loss": np.ones(4)}))
        logger.teardown(at(50, trainer))
    assert [list(chart) for chart in charts(tmp_path / "second")] == [["second_loss"]]


def test_a_resumed_fit_takes_the_place_of_what_was_logged_after_its_step(trainer, logger):
    for start, losses in [(0, [(50, 1), (100, 2), (150, 3)]), (100, [(150, 4)])]:
        logger.on_train_start(at(start, trainer))
        for step, loss in losses:
            logger.on_validation_end(at(step, trainer, {"val_loss": np.full(4, loss)}))
        logger.teardown(at(150, trainer))
    assert points(trainer.log_dir, "val_loss/median") == [(50, 1.0), (100, 2.0), (150, 4.0)]


def test_two_files_begun_in_one_second_have_two_names(trainer, logger):
    for _ in range(3):
        logger.on_train_start(at(0, trainer))
    assert len(list(trainer.log_dir.iterdir())) == 3


def test_twenty_metrics_of_a_thousand_heads_are_one_write(trainer, logger, monkeypatch):
    written = []
    monkeypatch.setattr("tensorboardX.writer.FileWriter.add_summary", lambda writer, *_: written.append(writer))
    logger.on_train_start(at(0, trainer))
    metrics = {f"metric_{i}": np.ones((50, 1000), np.float32) for i in range(20)}
    logger.on_train_steps_end(Event(trainer, "fit", 50, 0, metrics, np.arange(1, 51), np.ones(1000, bool)))
    assert len(written) == 1


@pytest.mark.parametrize(
    "hook", ["on_train_start", "on_train_steps_end", "on_validation_end", "on_train_epoch_end", "on_test_end"]
)
def test_without_a_log_dir_nothing_is_written_or_counted_as_lost(tmp_path, monkeypatch, hook):
    monkeypatch.chdir(tmp_path)
    logger = TensorBoardLogger()
    getattr(logger, hook)(superstep(1, 50, FakeTrainer(None)))
    logger.teardown(at(50, FakeTrainer(None)))
    assert list(tmp_path.iterdir()) == []
    assert logger.num_dropped == 0


@pytest.mark.parametrize(("hook", "stage"), [("on_validation_end", "validate"), ("on_test_end", "test")])
def test_an_evaluation_outside_a_fit_is_on_disk_when_it_ends(trainer, logger, hook, stage):
    getattr(logger, hook)(at(50, trainer, {"some_loss": np.ones(4)}, stage))
    assert points(trainer.log_dir, "some_loss/max") == [(50, 1.0)]


def test_no_thread_is_left_after_teardown(trainer, logger):
    before = threading.active_count()
    logger.on_train_start(at(0, trainer))
    logger.on_train_steps_end(superstep(1, 50, trainer))
    logger.teardown(at(50, trainer))
    # The queue's own thread ends by itself a little after the writer's.
    [thread.join(10) for thread in threading.enumerate() if thread.name.startswith("QueueFeeder")]
    assert threading.active_count() <= before


# /dev/full takes a file's opening and refuses every write to it, as a full disk does. tensorboardX's thread dies of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_drops_and_counts_logs_says_so_once_and_never_blocks(trainer, logger, monkeypatch, caplog):
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: open("/dev/full", "wb"))
    monkeypatch.setattr(tensorboard_logger, "FLUSH_SECS", 0.01)
    logger.on_train_start(at(0, trainer))
    threads = [thread for thread in threading.enumerate() if type(thread).__name__ == "_EventLoggerThread"]
    logger.on_train_steps_end(superstep(1, 50, trainer))
    [thread.join(10) for thread in threads]
    for step in range(100, 2100, 50):
        logger.on_train_steps_end(superstep(step - 49, step, trainer))
    logger.teardown(at(2050, trainer))
    assert logger.num_dropped == 40
    assert [(record.name, record.levelno) for record in caplog.records] == [("hydrax", logging.WARNING)]


def test_a_disk_that_lags_too_far_behind_is_not_waited_for(trainer, logger, monkeypatch, caplog):
    monkeypatch.setattr(tensorboard_logger, "MAX_QUEUE", 3)
    may_write = threading.Event()
    write = "tensorboardX.event_file_writer.EventsWriter.write_event"
    logger.on_train_start(at(0, trainer))
    monkeypatch.setattr(write, lambda writer, event: may_write.wait(30))
    for step in range(50, 1050, 50):
        logger.on_train_steps_end(superstep(step - 49, step, trainer))
    may_write.set()
    assert logger.num_dropped > 0
    assert len(caplog.records) == 1


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    trainer, logger = FakeTrainer(tmp_path / "file" / "run"), TensorBoardLogger()
    logger.on_train_start(at(0, trainer))
    logger.on_train_steps_end(superstep(1, 100, trainer))
    logger.teardown(at(100, trainer))
    assert logger.num_dropped == 2
    assert len(caplog.records) == 1
    assert str(trainer.log_dir) in caplog.text
