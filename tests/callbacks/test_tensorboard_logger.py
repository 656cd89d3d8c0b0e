"""TensorBoardLogger: what TensorBoard reads back, and that a broken disk never delays a fit."""

import logging
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from hydrax import Callback, Event, PerHead, Slices, Trainer
from hydrax.callbacks import TensorBoardLogger, tensorboard_logger
from hydrax.errors import ArgumentError
from hydrax.loggers import plots

LIVE = np.array([True, True, False, True])


def tags_of(metric: str) -> list[str]:
    """Returns the tags of a metric's mean, minimum, quantiles and maximum."""
    return [f"metrics/{metric}", *(f"spread/{metric}/{word}" for word in ("min", "q10", "median", "q90", "max"))]


@dataclass
class FakeTrainer:
    """The part of a TrainerView that the logger reads."""

    log_dir: Path | None
    log_every_n_steps: int = 50
    module: SimpleNamespace | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    validation_metrics: frozenset[str] = frozenset({"val_loss"})
    lengths: tuple[int, ...] = (30, 10, 40, 20)

    def head_settings(self) -> list[dict[str, object]]:
        return [{"head": 100 + place, "length": length, "seed": None} for place, length in enumerate(self.lengths)]

    def save_hparams(self) -> None:
        """The module is none to speak of."""


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
    """Makes the event of the steps `first` to `last`; the loss of head h after step s is s + h."""
    steps = np.arange(first, last + 1)
    return Event(trainer, "fit", last, 0, {"loss": np.float32(steps[:, None] + np.arange(4))}, steps, LIVE)


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"scalars": 0, "histograms": 0, "tensors": 0}).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read(folder).Scalars(tag)]


def charts(folder: Path) -> list[dict[str, tuple[str, str, str]]]:
    """Returns every layout in a folder: the title of each chart with its value, lower and upper tag."""
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
    written = [points(trainer.log_dir, tag) for tag in tags_of("val_loss")]
    assert [step for [(step, _)] in written] == [7] * 6
    np.testing.assert_allclose([value for [(_, value)] in written], expected, rtol=1e-6)


def test_a_stopped_head_is_part_of_the_spread(trainer, logger):
    logger.on_validation_end(at(1, trainer, {"val_loss": np.float32([1, 2, 99, 3])}))  # head 2 is not live
    logger.teardown(at(1, trainer))
    assert points(trainer.log_dir, "spread/val_loss/max") == [(1, 99.0)]


def test_a_training_metric_leaves_out_heads_that_are_stopped(trainer, logger):
    logger.on_train_start(at(0, trainer))
    rates = np.float32([[1, 2, 99, 3]])  # head 2 is not live, and 99 is the rate of its last step
    logger.on_train_steps_end(Event(trainer, "fit", 50, 0, {"rate": rates}, np.array([50]), LIVE))
    finished = np.zeros(4, bool)  # all of them in one superstep
    logger.on_train_steps_end(Event(trainer, "fit", 100, 0, {"rate": rates}, np.array([100]), finished))
    logger.teardown(at(100, trainer))
    assert points(trainer.log_dir, "spread/rate/max") == [(50, 3.0), (100, 99.0)]
    assert points(trainer.log_dir, "metrics/rate") == [(50, 2.0), (100, 26.25)]


def test_each_metric_has_one_tag_in_the_first_group_and_the_figures_are_the_second(trainer, logger):
    fitted(trainer, logger)
    tags = EventAccumulator(str(trainer.log_dir), {"images": 0}).Reload().Tags()
    groups = sorted({tag.split("/")[0] for kind in ("scalars", "images", "histograms") for tag in tags[kind]})
    assert groups == ["metrics", "plots", "run", "spread"]
    assert sorted(tag for tag in tags["scalars"] if tag.startswith("metrics/")) == ["metrics/loss", "metrics/val_loss"]


def test_a_metric_without_a_finite_head_writes_nothing_of_its_own(trainer, logger):
    logger.on_validation_end(at(1, trainer, {"val_loss": np.full(4, np.nan), "val_acc": np.ones(4)}))
    logger.teardown(at(1, trainer))
    tags = read(trainer.log_dir).Tags()["scalars"]
    assert {tag for tag in tags if not tag.startswith("run/")} == set(tags_of("val_acc"))


def test_live_heads_and_heads_that_are_not_finite_in_any_metric_are_counted(trainer, logger):
    metrics = {"val_loss": np.float32([np.nan, 1, np.inf, 1]), "val_acc": np.float32([1, 1, np.nan, 1])}
    logger.on_validation_end(at(1, trainer, metrics))
    logger.teardown(at(1, trainer))
    assert points(trainer.log_dir, "run/live_heads") == [(1, 3.0)]
    assert points(trainer.log_dir, "run/not_finite_heads") == [(1, 2.0)]


def test_training_metrics_are_written_at_the_steps_that_log_every_n_steps_divides(trainer, logger):
    logger.on_train_start(at(0, trainer))
    for first, last in [(1, 30), (31, 110), (111, 149), (150, 150)]:
        logger.on_train_steps_end(superstep(first, last, trainer))
    logger.teardown(at(150, trainer))
    assert points(trainer.log_dir, "spread/loss/max") == [(50, 53.0), (100, 103.0), (150, 153.0)]


def test_the_speed_is_in_head_steps_per_second_since_the_log_before(trainer, logger, monkeypatch):
    clock = SimpleNamespace(now=10.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(tensorboard_logger, "time", clock)
    logger.on_train_start(at(0, trainer))
    for last, clock.now in [(50, 10.0), (100, 12.0), (150, 13.0)]:  # the first only starts the count
        logger.on_train_steps_end(superstep(last - 49, last, trainer))
    logger.teardown(at(150, trainer))
    # 3 live heads, 50 steps, 2 s and 1 s
    assert points(trainer.log_dir, "run/head_steps_per_sec") == [(100, 75.0), (150, 150.0)]


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end", "on_test_end"])
def test_evaluation_and_epochs_are_written_whenever_they_come(trainer, logger, hook):
    getattr(logger, hook)(at(33, trainer, {"some_loss": np.float32([1, 2, 3, 4])}))
    logger.teardown(at(33, trainer))
    assert points(trainer.log_dir, "spread/some_loss/median") == [(33, 2.5)]


def test_validation_metrics_have_a_histogram_over_finite_heads(trainer, logger):
    values = np.random.default_rng(1).normal(size=500).astype(np.float32)
    logger.on_validation_end(at(9, trainer, {"val_loss": np.append(values, np.float32(np.nan))}))
    logger.teardown(at(9, trainer))
    [histogram] = read(trainer.log_dir).Histograms("spread/val_loss/heads")
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
        {
            name: (f"metrics/{name}", f"spread/{name}/q10", f"spread/{name}/q90")
            for name in ("loss", "val_loss", "loss_epoch")
        }
    ]


def test_a_fit_that_ends_before_its_first_epoch_has_its_charts_too(trainer, logger):
    logger.on_train_start(at(0, trainer))
    logger.on_train_steps_end(superstep(1, 50, trainer))
    logger.teardown(at(50, trainer))
    assert charts(trainer.log_dir) == [{"loss": ("metrics/loss", "spread/loss/q10", "spread/loss/q90")}]


def test_a_test_after_the_fit_keeps_the_charts_of_the_fit(trainer, logger):
    logger.on_validation_end(at(50, trainer, {"val_loss": np.ones(4)}))
    logger.teardown(at(50, trainer))
    logger.on_test_end(at(50, trainer, {"test_loss": np.ones(4)}, stage="test"))
    logger.teardown(at(50, trainer, stage="test"))
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
    assert points(trainer.log_dir, "spread/val_loss/median") == [(50, 1.0), (100, 2.0), (150, 4.0)]


def test_two_files_begun_in_one_second_have_two_names(trainer, logger):
    for _ in range(3):
        logger.on_validation_end(at(50, trainer, {"val_loss": np.ones(4)}, stage="validate"))
        logger.teardown(at(50, trainer, stage="validate"))
    assert len(list(trainer.log_dir.iterdir())) == 3


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
    logger.teardown(at(50, trainer, stage=stage))
    assert points(trainer.log_dir, "spread/some_loss/max") == [(50, 1.0)]


def test_no_thread_is_left_after_teardown(trainer, logger):
    before = threading.active_count()
    logger.on_train_start(at(0, trainer))
    logger.on_train_steps_end(superstep(1, 50, trainer))
    logger.teardown(at(50, trainer))
    assert threading.active_count() == before


def test_a_folder_that_cannot_be_made_stops_nothing_and_is_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    trainer, logger = FakeTrainer(tmp_path / "file" / "run"), TensorBoardLogger()
    logger.on_train_start(at(0, trainer))
    for step in range(50, 1050, 50):
        logger.on_train_steps_end(superstep(step - 49, step, trainer))
    logger.teardown(at(1000, trainer))
    assert logger.num_dropped == 21  # 20 logs, and the charts
    assert [(record.name, record.levelno) for record in caplog.records] == [("hydrax", logging.WARNING)]
    assert str(trainer.log_dir) in caplog.text


def test_numbers_of_the_run_as_a_whole_go_with_each_log(trainer, logger):
    trainer.scalars = {"throughput/rows_per_sec": 12.5}
    logger.on_validation_end(at(7, trainer, {"val_loss": np.ones(4)}))
    logger.teardown(at(7, trainer))
    assert points(trainer.log_dir, "throughput/rows_per_sec") == [(7, 12.5)]


def fitted(trainer, logger, *, steps=(50, 100)):
    """Calls the hooks of a short fit: head h has loss step + h in training and 10 * h + step in validation."""
    logger.on_train_start(at(0, trainer))
    for step in steps:
        logger.on_train_steps_end(superstep(step - 49, step, trainer))
        logger.on_validation_end(at(step, trainer, {"val_loss": np.float32(10 * np.arange(4) + step)}))
    logger.on_fit_end(at(steps[-1], trainer))
    logger.teardown(at(steps[-1], trainer))


def test_single_heads_have_runs_of_their_own_with_the_tags_of_the_means(trainer, logger):
    fitted(trainer, logger)
    assert sorted(path.name for path in trainer.log_dir.iterdir() if path.is_dir()) == [
        *("head_100", "head_101", "head_102", "head_103")
    ]
    assert points(trainer.log_dir / "head_101", "metrics/loss") == [(50, 51.0), (100, 101.0)]
    assert points(trainer.log_dir / "head_101", "metrics/val_loss") == [(50, 60.0), (100, 110.0)]
    assert points(trainer.log_dir / "head_102", "metrics/val_loss") == [(50, 70.0), (100, 120.0)]  # it is stopped


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        ({"max_head_runs": 2}, {"head_101", "head_102"}),  # the shortest slice and the longest
        ({"max_head_runs": 1}, {"head_101"}),
        ({"max_head_runs": 0}, set()),
        ({"heads": [103]}, {"head_103"}),
    ],
)
def test_which_heads_have_a_run_can_be_chosen(trainer, arguments, runs):
    fitted(trainer, TensorBoardLogger(**arguments))
    assert {path.name for path in trainer.log_dir.iterdir() if path.is_dir()} == runs


def test_a_thousand_heads_leave_nine_files(tmp_path):
    trainer = FakeTrainer(tmp_path / "run", lengths=tuple(range(1, 1001)))
    logger = TensorBoardLogger()
    logger.on_train_start(at(0, trainer))
    logger.on_validation_end(at(50, trainer, {"val_loss": np.ones(1000)}))
    logger.teardown(at(50, trainer))
    assert len(list(trainer.log_dir.rglob("events.*"))) == 9


def test_a_head_that_no_slice_has_is_refused(trainer):
    with pytest.raises(ArgumentError, match=r"heads=\.\.\.\). Got 7, expected ids of heads: 100 to 103"):
        TensorBoardLogger(heads=[7]).on_train_start(at(0, trainer))


@pytest.mark.parametrize("argument", [{"max_head_runs": -1}, {"max_head_runs": True}, {"heads": ["a"]}, {"figures": 1}])
def test_an_argument_without_meaning_is_refused(argument):
    with pytest.raises(ArgumentError, match=next(iter(argument))):
        TensorBoardLogger(**argument)


def test_the_table_of_hyper_parameters_has_a_line_for_each_run_with_its_scores(trainer, logger):
    trainer.module = SimpleNamespace(hparams={"width": 64, "name": "mlp", "lr": PerHead([0.1, 0.2, 0.3, 0.4])})
    settings = trainer.head_settings
    trainer.head_settings = lambda: [{**own, "lr": (place + 1) / 10} for place, own in enumerate(settings())]
    fitted(trainer, logger)
    data = read(trainer.log_dir / "head_102").summary_metadata
    start = plugin_data_pb2.HParamsPluginData.FromString(
        data["_hparams_/session_start_info"].plugin_data.content
    ).session_start_info
    assert {name: value.WhichOneof("kind") for name, value in start.hparams.items()} == {
        "width": "number_value",
        "name": "string_value",
        "lr": "number_value",
        "length": "number_value",
    }
    assert (start.hparams["lr"].number_value, start.hparams["length"].number_value) == (0.3, 40.0)
    content = data["_hparams_/experiment"].plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["metrics/val_loss"]


def test_the_figures_are_pictures_of_the_size_they_say(trainer, logger):
    fitted(trainer, logger)
    images = EventAccumulator(str(trainer.log_dir), {"images": 0}).Reload()
    assert images.Tags()["images"] == ["plots/learning_curve/val_loss", "plots/heads_over_time/val_loss"]
    [image] = images.Images("plots/learning_curve/val_loss")
    assert (image.step, image.encoded_image_string[:4]) == (100, b"\x89PNG")
    assert struct.unpack(">II", image.encoded_image_string[16:24]) == (image.width, image.height)


def test_heads_of_one_length_have_no_learning_curve(tmp_path, logger):
    trainer = FakeTrainer(tmp_path / "run", lengths=(10, 10, 10, 10))
    fitted(trainer, logger)
    assert EventAccumulator(str(trainer.log_dir), {"images": 0}).Reload().Tags()["images"] == [
        "plots/heads_over_time/val_loss"
    ]


def test_figures_take_a_small_part_of_a_fit(trainer, logger, monkeypatch):
    """Drawing takes 3 s here and there is a validation every second, so a figure is due every 150 s."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(tensorboard_logger, "time", clock)
    drawn = []

    def slow(*args):
        drawn.append(clock.now)
        clock.now += 3
        return plots.learning_curve(*args)

    monkeypatch.setattr(tensorboard_logger, "learning_curve", slow)
    monkeypatch.setattr(tensorboard_logger, "heat_map", lambda *args: plots.heat_map(*args))
    logger.on_train_start(at(0, trainer))
    for step in range(1, 400):
        clock.now += 1
        logger.on_validation_end(at(step, trainer, {"val_loss": np.ones(4)}))
    assert drawn == [51, 205, 359]


def test_a_resumed_fit_remembers_what_its_heat_map_showed(trainer, logger):
    logger.on_train_start(at(0, trainer))
    logger.on_validation_end(at(50, trainer, {"val/loss": np.float32([1, 2, 3, 4])}))
    logger.teardown(at(50, trainer))
    again = TensorBoardLogger()
    again.load_state_dict(logger.state_dict())
    again.on_train_start(at(50, trainer))
    again.on_validation_end(at(100, trainer, {"val/loss": np.float32([5, 6, 7, 8])}))
    again.teardown(at(100, trainer))
    state = again.state_dict()
    assert state["metrics"] == ["val/loss"]
    np.testing.assert_array_equal(state["steps/val/loss"], [50, 100])
    np.testing.assert_array_equal(
        state["values/val/loss"], [[2, 6], [4, 8], [1, 5], [3, 7]]
    )  # the shortest slice first


def test_without_matplotlib_all_else_is_written(trainer, logger, monkeypatch):
    monkeypatch.setattr(tensorboard_logger, "can_draw", lambda: False)
    fitted(trainer, logger)
    assert points(trainer.log_dir, "spread/val_loss/min") == [(50, 50.0), (100, 100.0)]


def test_a_callback_writes_figures_text_and_numbers_of_its_own_into_the_run(tmp_path):
    from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of
    from matplotlib.figure import Figure

    class Own(Callback):
        """Uses the writer in every hook that has something to show."""

        def write(self, event, name):
            event.trainer.logger.experiment.add_text(f"own/{name}", f"at {event.step}")

        def setup(self, event):
            self.write(event, "setup")

        def on_train_steps_end(self, event):
            event.trainer.logger.experiment.add_scalar("own/ten", 10, event.step)

        def on_validation_end(self, event):
            figure = Figure((2, 1), dpi=50)
            figure.subplots().plot(event.metrics["val_loss"])
            event.trainer.logger.experiment.add_figure("own/figure", figure)
            event.trainer.logger.experiment.add_scalars("own/pair", {"a": 1.0, "b": 2.0}, event.step)

        def on_fit_end(self, event):
            self.write(event, "end")

        def on_test_end(self, event):
            self.write(event, "test")

        def on_predict_end(self, event):
            self.write(event, "predict")

    first, last = Own(), Own()
    data = data_of(Slices.random_subset([40, 17], NUM_ROWS, seed=1))
    how = {**QUIET, "logger": True, "default_root_dir": tmp_path, "max_steps": 4, "log_every_n_steps": 2}
    trainer = Trainer(callbacks=[first, TensorBoardLogger(figures=False), last], chunk=2, **how)
    result = trainer.fit(PlainClassifier(), data)
    trainer.test()
    trainer.predict()
    assert trainer.loggers == [trainer.logger]
    found = EventAccumulator(str(result.log_dir), {"scalars": 0, "images": 0, "tensors": 0}).Reload()
    steps = {
        tag: [point.step for point in found.Tensors(f"own/{tag}/text_summary")] for tag in ("setup", "end", "test")
    }
    assert steps == {"setup": [0, 0, 4, 4, 4, 4], "end": [4, 4], "test": [4, 4]}
    assert len(found.Tensors("own/predict/text_summary")) == 2
    assert {point.step for point in found.Images("own/figure")} == {4}
    assert (found.Images("own/figure")[0].width, found.Images("own/figure")[0].height) == (100, 50)
    assert {(point.step, point.value) for point in found.Scalars("own/ten")} >= {(4, 10.0)}
    assert found.Scalars("own/pair/b")[0].value == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["hydrax_logs"]


def test_a_writer_of_a_run_that_writes_nothing_is_silent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = TensorBoardLogger()
    logger.on_train_start(at(0, FakeTrainer(None)))
    logger.experiment.add_text("note", "nothing")
    logger.experiment.add_scalars("pair", {"a": 1.0}, 3)
    logger.experiment.flush()
    logger.experiment.close()
    logger.experiment.add_text("note", "nothing")
    logger.teardown(at(1, FakeTrainer(None)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [3, 12, 13, 25, 100])
def test_the_ticks_of_a_heat_map_are_evenly_spaced(count):
    figure = plots.heat_map(10 * np.arange(1, count + 1), np.ones((2, count)), np.array([7, 9]), "loss")
    labels = [int(label.get_text()) for label in figure.axes[0].get_xticklabels()]
    assert labels[0] == 10
    assert len(set(np.diff(labels))) == 1
    assert 3 <= len(labels) <= 12
