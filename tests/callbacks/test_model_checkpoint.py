"""hydrax.callbacks.ModelCheckpoint: the newest state when it is due, the best model of each head by its own scores."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints_under_test import save

from hydrax import Control, Event
from hydrax.callbacks import ModelCheckpoint, model_checkpoint
from hydrax.errors import ArgumentError, CheckpointError

NAN, INF = float("nan"), float("inf")


class FakeHeads:
    def __init__(self) -> None:
        self.saved: list[Path] = []

    def save(self, path: Path) -> None:
        self.saved.append(path)


@dataclass
class FakeTrainer:
    """As much of a TrainerView as ModelCheckpoint uses; it writes no checkpoint, it keeps the calls."""

    log_dir: Path | None
    num_heads: int = 4
    validation_metrics: frozenset[str] = frozenset({"val_loss", "val_acc"})
    training_metrics: frozenset[str] = frozenset({"train_loss"})
    snapshots: FakeHeads = field(default_factory=FakeHeads)
    saves: list[tuple[Path, int | None]] = field(default_factory=list)
    ledgers: list[tuple[Path, str | None, list[float] | None, dict[str, list[float]]]] = field(default_factory=list)
    failure: Exception | None = None
    run_id: str = "this run"

    def snapshots_of(self, callback: ModelCheckpoint, slot: int = 0) -> FakeHeads:
        return self.snapshots

    def save_checkpoint(self, path: Path, keep: int | None = None) -> Path:
        self.saves.append((path, keep))
        if self.failure is not None:
            raise self.failure
        return path / str(len(self.saves))

    def save_ledger(
        self, path: Path, monitor: str | None = None, scores: np.ndarray | None = None, more: Any = None
    ) -> None:
        if self.failure is not None:
            raise self.failure
        columns = {name: column.tolist() for name, column in (more or {}).items()}
        self.ledgers.append((path, monitor, None if scores is None else scores.tolist(), columns))


@pytest.fixture
def trainer(tmp_path):
    return FakeTrainer(tmp_path / "run")


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(model_checkpoint, "time", clock)
    return clock


def at(step: int, trainer: FakeTrainer, scores: list[float] | None = None, stage: str = "fit") -> Event:
    metrics = {} if scores is None else {"val_loss": np.float32(scores), "val_acc": np.float32(scores)}
    return Event(trainer, stage, step, 0, metrics, live=np.ones(trainer.num_heads, bool))


def started(trainer: FakeTrainer, *args: Any, step: int = 0, **kwargs: Any) -> ModelCheckpoint:
    checkpoint = ModelCheckpoint(*args, **kwargs)
    checkpoint.on_train_start(at(step, trainer))
    return checkpoint


def snapshot(control: Control | None) -> list[bool]:
    """Heads kept, in the one slot there is by default."""
    return [] if control is None or control.snapshot is None else control.snapshot[0].tolist()


# Validation by validation: scores of the four heads, and which of them are better than ever before.
MIN_TABLE = [
    ([3.0, 1.0, NAN, 5.0], [True, True, False, True]),
    ([2.0, 1.0, NAN, NAN], [True, False, False, False]),  # a tie, a NaN
    ([2.5, 0.5, 7.0, 4.0], [False, True, True, True]),
    ([INF, -INF, 7.0, NAN], []),  # infinities, a tie, a NaN
]
MAX_TABLE = [
    ([3.0, 1.0, NAN, 5.0], [True, True, False, True]),
    ([2.0, 1.0, NAN, NAN], []),
    ([3.5, 0.5, -7.0, 4.0], [True, False, True, False]),
    ([INF, -INF, 7.0, NAN], [False, False, True, False]),
]


@pytest.mark.parametrize(
    ("monitor", "mode", "validations", "scores", "steps"),
    [
        ("val_loss", "min", MIN_TABLE, [2.0, 0.5, 7.0, 4.0], [20, 30, 30, 30]),
        ("val_acc", "max", MAX_TABLE, [3.5, 1.0, 7.0, 5.0], [30, 10, 40, 10]),
    ],
)
def test_each_head_keeps_its_own_best(trainer, monitor, mode, validations, scores, steps):
    checkpoint = started(trainer, monitor, mode)
    controls = [
        checkpoint.on_validation_end(at(10 * (i + 1), trainer, values)) for i, (values, _) in enumerate(validations)
    ]
    assert [snapshot(control) for control in controls] == [improved for _, improved in validations]
    np.testing.assert_array_equal(checkpoint.best_scores, np.float32(scores))
    np.testing.assert_array_equal(checkpoint.best_steps, steps)


def test_a_head_without_a_finite_score_has_no_best(trainer):
    checkpoint = started(trainer, "val_loss")
    checkpoint.on_validation_end(at(10, trainer, [1.0, NAN, INF, -INF]))
    np.testing.assert_array_equal(checkpoint.best_scores, [1.0, NAN, NAN, NAN])
    np.testing.assert_array_equal(checkpoint.best_steps, [10, -1, -1, -1])


@pytest.mark.parametrize(("step", "stage"), [(0, "fit"), (20, "validate"), (20, "test")])
def test_the_check_before_training_and_other_stages_do_not_count(trainer, step, stage):
    checkpoint = started(trainer, "val_loss")
    assert checkpoint.on_validation_end(at(step, trainer, [1.0, 1.0, 1.0, 1.0], stage)) is None
    assert np.isnan(checkpoint.best_scores).all()


@pytest.mark.parametrize("log_dir", [Path("run"), None])
@pytest.mark.parametrize(("metrics", "names"), [({"val_loss", "val_acc"}, "val_acc, val_loss"), ((), "none")])
def test_a_monitor_that_nothing_logs_is_refused_before_training_with_the_names_there_are(log_dir, metrics, names):
    trainer = FakeTrainer(log_dir, validation_metrics=frozenset(metrics))
    with pytest.raises(
        ArgumentError, match=f"Got 'val_los', expected .* validation: {names}; of training: train_loss. Fix"
    ):
        ModelCheckpoint("val_los").setup(at(0, trainer))


@pytest.mark.parametrize(
    ("monitor", "stage"), [("val_loss", "fit"), (None, "fit"), ("val_los", "validate"), ("val_los", "test")]
)
def test_setup_takes_a_monitor_that_validation_logs_none_at_all_and_any_outside_a_fit(trainer, monitor, stage):
    checkpoint = ModelCheckpoint(monitor)
    checkpoint.setup(at(0, trainer, stage=stage))
    checkpoint.teardown(at(0, trainer, stage=stage))


def test_a_resumed_fit_goes_on_from_the_best_scores_it_had(trainer):
    first = started(trainer, "val_loss")
    first.on_validation_end(at(10, trainer, [1.0, 2.0, NAN, 4.0]))
    resumed = ModelCheckpoint("val_loss")
    resumed.load_state_dict(first.state_dict())
    resumed.on_train_start(at(10, trainer))
    control = resumed.on_validation_end(at(20, trainer, [1.5, 1.5, 1.5, 4.0]))
    assert snapshot(control) == [False, True, True, False]
    np.testing.assert_array_equal(resumed.best_scores, [1.0, 1.5, 1.5, 4.0])
    np.testing.assert_array_equal(resumed.best_steps, [10, 20, 20, 10])


@pytest.mark.parametrize(("monitor", "mode"), [("val_acc", "min"), ("val_loss", "max")])
def test_a_fit_resumed_with_another_monitor_or_mode_starts_its_best_anew(trainer, monitor, mode):
    first = started(trainer, "val_loss", "min")
    first.on_validation_end(at(10, trainer, [1.0, 2.0, 3.0, 4.0]))
    resumed = ModelCheckpoint(monitor, mode)
    resumed.load_state_dict(first.state_dict())
    resumed.on_train_start(at(10, trainer))
    assert np.isnan(resumed.best_scores).all()


def test_the_state_is_of_numpy_arrays_and_plain_values(trainer):
    state = started(trainer, "val_loss").state_dict()
    assert {name: type(value) for name, value in state.items()} == {
        "monitor": str,
        "mode": str,
        "best_scores": np.ndarray,
        "best_steps": np.ndarray,
    }


def test_a_state_without_monitor_is_taken_back(trainer):
    resumed = ModelCheckpoint()
    resumed.load_state_dict(started(trainer).state_dict())
    assert resumed.best_scores is None


def test_a_second_fit_from_the_start_forgets_the_first(trainer):
    checkpoint = started(trainer, "val_loss")
    checkpoint.on_validation_end(at(10, trainer, [1.0, 1.0, 1.0, 1.0]))
    checkpoint.on_fit_end(at(10, trainer))
    checkpoint.on_train_start(at(0, FakeTrainer(trainer.log_dir, num_heads=2)))
    assert checkpoint.best_scores.shape == (2,)
    assert checkpoint.best_model_path is None


@pytest.mark.parametrize(("step", "due"), [(0, 30), (1, 30), (29, 30), (30, 60), (31, 60)])
def test_every_n_steps_names_its_multiples_as_due(step, due):
    assert ModelCheckpoint(every_n_train_steps=30).next_due(step) == due


@pytest.mark.parametrize("arguments", [{}, {"every_n_train_steps": 30, "save_last": False}])
def test_nothing_is_due_inside_an_epoch_without_every_n_steps_or_last(arguments):
    assert ModelCheckpoint(**arguments).next_due(7) is None


def test_every_n_secs_asks_for_the_next_step_when_the_time_has_come(trainer, clock):
    checkpoint = started(trainer, train_time_interval=60)
    dues = []
    # The loop asks for step 12 too before it tells of step 11: its rows can be fetched meanwhile.
    for step, now in ((0, 100.0), (5, 159.0), (10, 160.5), (11, 160.6)):
        clock.now = now
        dues.append(checkpoint.next_due(step))
    assert dues == [None, None, 11, 12]
    checkpoint.on_train_steps_end(at(10, trainer))
    assert trainer.saves == []
    checkpoint.on_train_steps_end(at(11, trainer))
    assert len(trainer.saves) == 1
    assert checkpoint.next_due(11) is None


def test_a_save_by_seconds_that_fails_is_tried_again_after_as_many_seconds(trainer, clock):
    checkpoint = started(trainer, train_time_interval=60)
    clock.now = 161.0
    assert checkpoint.next_due(10) == 11
    trainer.failure = OSError("no room")
    checkpoint.on_train_steps_end(at(11, trainer))
    dues = []
    for clock.now in (162.0, 220.0, 222.0):
        dues.append(checkpoint.next_due(11))
    assert dues == [None, None, 12]


def test_every_n_epochs_saves_at_the_end_of_those_epochs(trainer, clock):
    checkpoint = started(trainer, every_n_epochs=2)
    saved = []
    for epoch in range(5):
        checkpoint.on_train_epoch_end(Event(trainer, "fit", 10 * (epoch + 1), epoch))
        saved.append(len(trainer.saves))
    assert saved == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("value", [0, -1.0, "60", True, float("nan")])
def test_seconds_must_be_above_0(value):
    with pytest.raises(ArgumentError, match=r"train_time_interval=\.\.\.\)\. Got"):
        ModelCheckpoint(train_time_interval=value)


def test_with_every_n_steps_last_is_saved_at_its_multiples_and_at_the_end(trainer, clock):
    checkpoint = started(trainer, every_n_train_steps=30, keep_last=3)
    saved = []
    for step in (10, 30, 40, 60, 61):
        checkpoint.on_train_steps_end(at(step, trainer))
        clock.now += 60.0
        checkpoint.on_train_epoch_end(at(step, trainer))
        saved.append(len(trainer.saves))
    checkpoint.on_train_end(at(61, trainer))
    last = trainer.log_dir / "checkpoints" / "last"
    assert saved == [0, 1, 1, 2, 2]
    assert trainer.saves == [(last, 3)] * 3
    assert checkpoint.last_model_path == last / "3"


def test_without_it_last_is_saved_at_the_ends_of_epochs_30_seconds_apart(trainer, clock):
    checkpoint = started(trainer)
    saved = []
    for clock.now in (110.0, 129.0, 131.0, 150.0, 161.0):  # it started at 100
        checkpoint.on_train_steps_end(at(50, trainer))
        checkpoint.on_train_epoch_end(at(50, trainer))
        saved.append(len(trainer.saves))
    assert saved == [0, 0, 1, 1, 2]


def test_without_save_last_no_state_is_saved(trainer):
    checkpoint = started(trainer, every_n_train_steps=1, save_last=False)
    checkpoint.on_train_steps_end(at(1, trainer))
    checkpoint.on_train_end(at(1, trainer))
    assert trainer.saves == []


def test_best_is_written_at_the_end_of_fit_when_the_last_snapshots_are_taken(trainer):
    checkpoint = started(trainer, "val_loss")
    checkpoint.on_validation_end(at(10, trainer, [1.0, NAN, 1.0, 1.0]))
    checkpoint.on_train_end(at(10, trainer))
    before = list(trainer.snapshots.saved)
    checkpoint.on_fit_end(at(10, trainer))
    best = trainer.log_dir / "checkpoints" / "best"
    assert (before, trainer.snapshots.saved) == ([], [best])
    assert checkpoint.best_model_path == best


@pytest.mark.parametrize(("monitor", "scores"), [(None, [1.0, 1.0, 1.0, 1.0]), ("val_loss", [NAN, NAN, NAN, NAN])])
def test_no_best_is_written_where_there_is_none(trainer, monitor, scores):
    checkpoint = started(trainer, monitor)
    checkpoint.on_validation_end(at(10, trainer, scores))
    checkpoint.on_fit_end(at(10, trainer))
    assert trainer.snapshots.saved == []
    assert checkpoint.best_model_path is None


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end"])
def test_heads_csv_goes_with_each_save_and_has_the_best_scores(trainer, hook):
    checkpoint = started(trainer, "val_loss")
    checkpoint.on_validation_end(at(10, trainer, [1.0, 2.5, 3.0, 4.0]))
    checkpoint.on_validation_end(at(20, trainer, [0.5, 9.0, 9.0, NAN]))
    getattr(checkpoint, hook)(at(20, trainer))
    path = trainer.log_dir / "checkpoints" / "heads.csv"
    assert trainer.ledgers == [(path, "val_loss", [0.5, 2.5, 3.0, 4.0], {"step": [20, 10, 10, 10]})]


def test_a_heads_csv_that_takes_seconds_takes_two_percent_of_the_time_of_training(trainer, clock):
    checkpoint = started(trainer, every_n_train_steps=10)
    written, write = [], trainer.save_ledger
    trainer.save_ledger = lambda *how: (written.append(clock.now), write(*how), setattr(clock, "now", clock.now + 3))
    for step in range(10, 110, 10):  # a save every 40 s
        clock.now = 100.0 + 4 * step
        checkpoint.on_train_steps_end(replace(at(step, trainer), steps=np.arange(step - 9, step + 1)))
    checkpoint.on_train_end(at(100, trainer))
    assert len(trainer.saves) == 11
    assert written == [140.0, 300.0, 460.0, 500.0]  # the first, those 150 s after the one before, and the last


def test_heads_csv_goes_without_scores_where_nothing_is_monitored(trainer):
    started(trainer).on_fit_end(at(10, trainer))
    assert trainer.ledgers == [(trainer.log_dir / "checkpoints" / "heads.csv", None, None, {})]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), CheckpointError("It is full: the disk.")])
def test_a_save_that_fails_is_reported_and_tried_again_at_the_next_epoch(trainer, clock, caplog, failure):
    checkpoint = started(trainer)
    trainer.failure = failure
    clock.now += 31.0
    checkpoint.on_train_epoch_end(at(10, trainer))
    trainer.failure = None
    clock.now += 1.0
    checkpoint.on_train_epoch_end(at(20, trainer))
    assert len(trainer.saves) == 2
    assert checkpoint.last_model_path == trainer.log_dir / "checkpoints" / "last" / "2"
    reports = [(record.name, record.levelno, record.args[0].name) for record in caplog.records]
    assert reports == [("hydrax", logging.WARNING, "heads.csv"), ("hydrax", logging.WARNING, "last")]


def test_dirpath_takes_the_place_of_the_log_dir(tmp_path, trainer):
    checkpoint = started(trainer, dirpath=str(tmp_path / "mine"))
    checkpoint.on_train_end(at(10, trainer))
    assert trainer.saves == [(tmp_path / "mine" / "last", 2)]
    assert [path for path, *_ in trainer.ledgers] == [tmp_path / "mine" / "heads.csv"]


def steps_below(folder: Path) -> dict[str, list[str]]:
    """The step folders of each `last...` folder."""
    return {
        last.name: sorted(path.name for path in last.iterdir() if path.name != ".hydrax")
        for last in sorted(folder.glob("last*"))
    }


def save_step(root: Path, step: int, run: str) -> None:
    save(root, step, {"a": np.zeros(1)}, run=run)


@pytest.fixture
def mine(tmp_path):
    """A user's folder where another run has left its steps 10 and 20."""
    for step in (10, 20):
        save_step(tmp_path / "mine" / "last", step, "another run")
    return tmp_path / "mine"


def test_a_fresh_fit_sets_another_runs_last_aside_and_says_so_once(trainer, mine, caplog):
    caplog.set_level(logging.INFO, "hydrax")
    checkpoint = started(trainer, dirpath=mine)
    assert steps_below(mine) == {"last-1": ["10", "20"]}
    save_step(mine / "last", 30, "this run")
    checkpoint.on_train_end(at(30, trainer))
    assert steps_below(mine) == {"last": ["30"], "last-1": ["10", "20"]}
    assert [(r.name, r.levelno, r.args) for r in caplog.records] == [
        ("hydrax", logging.INFO, (mine / "last", mine / "last-1"))
    ]


def test_what_was_set_aside_before_stays_and_the_first_free_number_is_taken(trainer, mine):
    for name in ("last-1", "last-3"):
        (mine / name / "5").mkdir(parents=True)
    started(trainer, dirpath=mine)
    assert steps_below(mine) == {"last-1": ["5"], "last-2": ["10", "20"], "last-3": ["5"]}


@pytest.mark.parametrize(("step", "arguments"), [(20, {}), (0, {"save_last": False})])
def test_a_fit_that_resumes_or_writes_no_last_leaves_it_where_it_is(trainer, mine, caplog, step, arguments):
    caplog.set_level(logging.INFO, "hydrax")
    trainer.run_id = "another run" if step else "this run"
    started(trainer, step=step, dirpath=mine, **arguments).on_train_end(at(30, trainer))
    assert steps_below(mine) == {"last": ["10", "20"]}
    assert caplog.records == []


def test_a_last_without_steps_is_not_set_aside(trainer, tmp_path):
    (tmp_path / "last" / "notes").mkdir(parents=True)
    started(trainer, dirpath=tmp_path)
    assert steps_below(tmp_path) == {"last": ["notes"]}


def test_a_last_that_cannot_be_set_aside_is_reported_and_tried_again_before_anything_is_saved(
    trainer, mine, caplog, monkeypatch
):
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    caplog.set_level(logging.INFO, "hydrax")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        checkpoint = started(trainer, every_n_train_steps=10, dirpath=mine)
        checkpoint.on_train_steps_end(at(10, trainer))
    assert trainer.saves == []
    checkpoint.on_train_steps_end(at(20, trainer))
    assert steps_below(mine) == {"last-1": ["10", "20"]}
    assert trainer.saves == [(mine / "last", 2)]
    reports = [(record.levelno, record.args[0]) for record in caplog.records]
    assert reports == [(level, mine / "last") for level in (logging.WARNING, logging.WARNING, logging.INFO)]


def test_a_last_that_holds_folders_of_others_is_refused_before_training(trainer, tmp_path):
    (tmp_path / "last" / "2024").mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match=r"holds other data: .*last\. Got folders that Hydrax did not write \(2024\)"
    ):
        ModelCheckpoint(dirpath=tmp_path).setup(at(0, trainer))
    assert steps_below(tmp_path) == {"last": ["2024"]}


def test_without_a_folder_nothing_is_done():
    trainer = FakeTrainer(log_dir=None)
    checkpoint = started(trainer, "val_loss", every_n_train_steps=10)
    checkpoint.on_train_steps_end(at(10, trainer))
    assert checkpoint.on_validation_end(at(10, trainer, [1.0, 1.0, 1.0, 1.0])) is None
    checkpoint.on_train_end(at(10, trainer))
    checkpoint.on_fit_end(at(10, trainer))
    assert (trainer.saves, trainer.snapshots.saved, trainer.ledgers) == ([], [], [])


def test_it_hears_every_event_after_the_others():
    assert ModelCheckpoint().is_checkpoint


@pytest.mark.parametrize("value", [0, -5, True, 2.0, 0.5, "2", np.float32(2), np.int64(0)])
@pytest.mark.parametrize("name", ["every_n_train_steps", "keep_last"])
def test_a_count_that_is_no_int_of_1_or_more_is_refused(name, value):
    with pytest.raises(
        ArgumentError, match=rf"ModelCheckpoint\({name}=\.\.\.\)\. Got .*, expected an int of .*\. Fix: "
    ):
        ModelCheckpoint(**{name: value})


def test_a_mode_that_is_neither_min_nor_max_is_refused():
    with pytest.raises(ArgumentError, match=r"ModelCheckpoint\(mode=\.\.\.\)\. Got 'best', expected .*\. Fix: "):
        ModelCheckpoint(mode="best")


@pytest.mark.parametrize("kind", [int, np.int32, np.uint8])
def test_counts_may_be_numpys_ints(kind):
    checkpoint = ModelCheckpoint(every_n_train_steps=kind(3), keep_last=kind(2))
    assert (checkpoint.next_due(250), checkpoint.keep_last) == (252, 2)
