"""Data on the host: a fit keeps the bits of data on the device, reads rows once and ahead, and ends with its errors."""

import functools
import mmap
import multiprocessing
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from heads_under_test import (
    NUM_CLASSES,
    NUM_ROWS,
    PlainClassifier,
    data_of,
    differing,
    rows_of,
    run,
)

import hydrax as hx
from hydrax.data.feed import HostFeed
from hydrax.data.reader import RowReader
from hydrax.datamodules import SourceDataModule

HEADS, STEPS, BATCH = 6, 14, 8
SLICES = hx.Slices.random_subset([3, 40, 17, 25, 9, 33], NUM_ROWS, seed=1)  # an epoch has 5 batches of 8
RATES = np.linspace(3e-3, 2e-2, HEADS)
TRAIN, HELD_OUT = rows_of(), rows_of(num_rows=21, seed=1)
# Four supersteps an epoch, none as long as the longest, and a validation in the middle.
SETTINGS = {"max_steps": STEPS, "val_check_interval": 3, "log_every_n_steps": 2}


class Source:
    """Returns the rows of columns one by one; `odd` gives, by row, what some rows do instead."""

    def __init__(self, columns=TRAIN, odd=None):
        self.columns, self.odd = columns, odd or {}

    def __len__(self):
        return len(self.columns["y"])

    def __getitem__(self, row):
        return self.odd.get(row, lambda: {name: column[row] for name, column in self.columns.items()})()


class Asked(Source):
    """Records which rows it was asked for."""

    def __init__(self, *args, **how):
        super().__init__(*args, **how)
        self.rows = []

    def __getitem__(self, row):
        self.rows.append(row)
        return super().__getitem__(row)


def mapped(columns, folder):
    for name, column in columns.items():
        np.save(folder / f"{len(column)}{name}.npy", column)
    return {name: np.load(folder / f"{len(column)}{name}.npy", mmap_mode="r") for name, column in columns.items()}


def datasets(how, folder):
    """The datasets of all stages, in one of the forms that stay on the host."""
    lay_out = {"map": lambda columns: mapped(columns, folder), "arrays": dict}.get(how, Source)
    train, held_out = lay_out(TRAIN), lay_out(HELD_OUT)
    return {"train": train, "val": held_out, "test": held_out, "predict": held_out}


def on_host(slices=SLICES, **how):
    sets = {"train": TRAIN, "val": HELD_OUT, "test": HELD_OUT, "predict": HELD_OUT}
    return SourceDataModule(**{**sets, "slices": slices, "batch_size": BATCH, **how})


def fit(data, *callbacks, ckpt_path=None, **how):
    module = PlainClassifier("mlp", hx.PerHead(np.resize(RATES, len(data.slices()))))
    return run(module, data, ckpt_path, callbacks, **{**SETTINGS, **how})


def everything(fitted):
    """Every array of a run, and the metrics and predictions of all heads for other rows and held-out rows."""
    tested = {f"tested.{name}": values for name, values in fitted.trainer.test(verbose=False).items()}
    held_out = fitted.trainer.predict_held_out()
    predicted = {"predicted": fitted.trainer.predict(), "mean": fitted.trainer.predict(reduce="mean")}
    return {**fitted.arrays, **tested, **predicted, "held out": held_out.per_head(), "out of bag": held_out.per_row()}


def final(fitted):
    """The arrays of a run, without what it logged in between."""
    return {name: array for name, array in fitted.arrays.items() if not name.startswith("step.")}


@functools.cache
def resident():
    """The run that all others are compared with: the dataset is on the device, and the program draws its rows."""
    fitted = fit(data_of(SLICES, residence="device"))
    return fitted, everything(fitted)


# ---- the same bits


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("how", "settings"),
    [("arrays", {}), ("map", {}), ("threads", {"read_threads": 3}), ("processes", {"read_processes": 1})],
)
def test_a_run_is_the_resident_one_bit_for_bit_wherever_its_rows_lie(tmp_path, how, settings):
    fitted = fit(on_host(**datasets(how, tmp_path), **settings))
    assert differing(everything(fitted), resident()[1]) == []
    assert fitted.trainer._run.planned.plan.residence == "host"


def test_the_run_that_is_compared_learnt_validated_and_predicted():
    arrays = resident()[1]
    assert {"trainable.kernel", "opt_state.0.mu.bias", "step.train_loss", "latest.val_loss", "tested.test_loss"} <= {
        *arrays
    }
    assert arrays["step.train_loss"].shape == (HEADS, STEPS)
    assert arrays["predicted"].shape == (HEADS, 21, NUM_CLASSES)
    np.testing.assert_array_equal(np.isnan(arrays["held out"]).all(-1).sum(axis=1), SLICES.lengths)


KINDS = hx.Slices.concatenate(
    [
        hx.Slices.full(1, NUM_ROWS),
        hx.Slices.prefix([1, 30], NUM_ROWS),
        hx.Slices.bootstrap(2, NUM_ROWS),
        hx.Slices.from_indices([[39], [5, 4, 3, 20], range(10, 33)], NUM_ROWS),
    ]
)
TRAINERS = {
    "shared": {"sampling": "shared"},
    "accumulated": {"accumulate_grad_batches": 2},
    "passes": {"max_steps": None, "max_epochs": 2, "budget": "passes"},
    "shared passes, accumulated": {
        **{"sampling": "shared", "accumulate_grad_batches": 3},
        **{"max_steps": None, "max_epochs": 2, "budget": "passes"},
    },
}
# The case with all settings at once covers these too.
LONGER = dict.fromkeys(("accumulated", "shared"), [pytest.mark.slow])
CASES = [pytest.param(SLICES, how, id=name, marks=LONGER.get(name, ())) for name, how in TRAINERS.items()]
CASES += [pytest.param(KINDS, {}, id="slices of many kinds")]


@pytest.mark.parametrize(("slices", "settings"), CASES)
def test_a_run_is_the_resident_one_for_all_slices_samplings_and_budgets(slices, settings):
    there = fit(data_of(slices, residence="device"), **settings)
    here = fit(on_host(slices), **settings)
    assert differing(here.arrays, there.arrays) == []


def test_validation_of_each_head_on_its_own_rows_is_the_resident_one():
    val_slices = hx.Slices.random_subset([1, 21, 5, 8, 13, 2], 21)
    there = fit(data_of(SLICES, val_slices=val_slices, residence="device"))
    assert differing(fit(on_host(val_slices=val_slices)).arrays, there.arrays) == []


@pytest.mark.parametrize("precision", ["64-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_a_run_is_the_resident_one_in_other_precisions(precision):
    more_digits = TRAIN["x"].astype(np.float64) + 1e-12  # than 32 bits hold
    train = {"x": more_digits, "y": TRAIN["y"].astype(np.int64)}
    settings = {"precision": precision, "max_steps": 4, "val_check_interval": 1.0}
    there = fit(data_of(SLICES, train=train, val=None, residence="device"), **settings)
    here = fit(on_host(train=train, val=None), **settings)
    assert differing(here.arrays, there.arrays) == []


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_a_run_does_not_depend_on_where_its_supersteps_end(steps_per_call):
    assert differing(fit(on_host(), steps_per_call=steps_per_call).arrays, resident()[0].arrays) == []


class Fickle(hx.Callback):
    """Names another next step each time it is asked."""

    def __init__(self):
        self.asked = 0

    def next_due(self, step):
        self.asked += 1
        return step + 1 + self.asked % 2


@pytest.fixture
def fetched(monkeypatch):
    """The supersteps that were fetched: first batch and number of steps."""
    found, fetch = [], HostFeed._fetch

    def watched(self, first, counts):
        found.append((first, len(counts)))
        return fetch(self, first, counts)

    monkeypatch.setattr(HostFeed, "_fetch", watched)
    return found


def test_a_superstep_that_was_got_ready_for_nothing_changes_no_bit(fetched):
    fitted = fit(on_host(), Fickle())
    assert differing(fitted.arrays, resident()[0].arrays) == []
    # Some supersteps were fetched twice, from the same batch but with another length.
    assert len({*fetched}) > len({first for first, _ in fetched})


# ---- resuming


class Killed(BaseException):
    """Not an Exception, so nothing catches it."""


class SaveAndDie(hx.Callback):
    def __init__(self, folder):
        self.folder = folder

    def next_due(self, step):
        return 7

    def on_train_steps_end(self, event):
        {7: self.die}.get(event.step, lambda event: None)(event)

    def die(self, event):
        event.trainer.save_checkpoint(self.folder)
        raise Killed


@pytest.mark.parametrize("kind", [pytest.param("arrays", marks=pytest.mark.slow), "threads"])
def test_a_killed_and_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, kind):
    with pytest.raises(Killed):
        fit(on_host(**datasets(kind, tmp_path)), SaveAndDie(tmp_path))
    resumed = fit(on_host(**datasets(kind, tmp_path)), ckpt_path=tmp_path)
    assert differing(final(resumed), final(resident()[0])) == []
    assert resumed.arrays["step.train_loss"].shape == (HEADS, STEPS - 7)


def test_other_rows_are_refused_when_a_run_resumes(tmp_path):
    with pytest.raises(Killed):
        fit(on_host(), SaveAndDie(tmp_path))
    other = TRAIN | {"y": np.roll(TRAIN["y"], 1)}
    with pytest.raises(hx.CheckpointError, match=r"data\. Got '\d+ rows of .* \([0-9a-f]{16}\)' there"):
        fit(on_host(train=other), ckpt_path=tmp_path)


# ---- what is read, and when


def test_each_program_is_compiled_once_however_many_rows_a_superstep_wants():
    fitted = fit(on_host(), Fickle())
    programs = fitted.trainer._run.planned.engine.programs
    # The last batch of the validation set is shorter, so `evaluate` has a second form.
    assert (programs["superstep"].num_compiled, programs["evaluate"].num_compiled) == (1, 2)


def wanted(data, steps):
    """For each of the first steps, the rows that some head learns from, according to the data module."""
    batches = [data.index_dataset(0)[step] for step in range(steps)]
    return [{*batch["rows"][batch["mask"]].tolist()} for batch in batches]


def one_superstep(train):
    return on_host(hx.Slices.random_subset([20, 4, 9, 9, 2, 7], NUM_ROWS, seed=5), train=train, val=None)


def test_a_row_is_read_once_a_superstep_however_many_heads_want_it():
    train = Asked()
    data = one_superstep(train)
    fit(data, max_steps=3, log_every_n_steps=3, steps_per_call=3)
    rows = set.union(*wanted(data, 3))
    assert sorted(train.rows) == sorted([0, *rows])  # row 0 comes first, because it sets the structure of all rows


def test_no_row_is_read_that_no_head_wants():
    train = Asked()
    slices = hx.Slices.from_indices([[5, 9], [9, 30, 31]], NUM_ROWS)
    fit(on_host(slices, train=train, val=None), max_steps=3, steps_per_call=1)
    assert sorted(train.rows) == sorted([0, *3 * [5, 9, 30, 31]])


class Timeline(Source):
    """A source for one head that records when the rows of each step are first asked for."""

    def __init__(self):
        super().__init__()
        self.slices = hx.Slices.full(1, NUM_ROWS)
        self.data = on_host(self.slices, train=self, val=None)
        order = wanted(self.data, NUM_ROWS // BATCH)
        self.step_of = {row: step for step, rows in enumerate(order) for row in rows}
        self.asked = [threading.Event() for _ in order]
        self.told = []

    def __getitem__(self, row):
        self.asked[self.step_of[row]].set()
        return super().__getitem__(row)

    def fit(self, *callbacks):
        fit(self.data, *callbacks, max_steps=5, steps_per_call=1, log_every_n_steps=1)


class Watch(hx.Callback):
    """Calls `look(steps done)` after each step, once its metrics have arrived."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_train_steps_end(self, event):
        self.seen.append(self.look(event.step))


@pytest.mark.timeout(60)
def test_the_rows_of_a_superstep_are_asked_for_while_the_one_before_runs():
    line = Timeline()
    # The loop waits in this hook, so only the feed's thread can ask for the step after the next.
    watch = Watch(lambda done: line.asked[min(done + 1, 4)].wait(timeout=30))
    line.fit(watch)
    assert watch.seen == [True] * 5


def test_no_row_of_a_superstep_after_the_next_is_asked_for():
    line = Timeline()
    first = line.step_of[0]  # asked for before the fit, because row 0 sets the structure of all rows
    watch = Watch(lambda done: {step for step in range(done + 2, 5) if line.asked[step].is_set()} - {first})
    line.fit(watch)
    assert watch.seen == [set()] * 5


# ---- memory maps

WIDE = np.arange(2**24, dtype=np.float32).reshape(2**14, 2**10)  # 64 MiB, many times what is read at once


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide") / "rows"
    path.write_bytes(bytes(3 * 2**12 + 64) + WIDE.tobytes())
    return path


@pytest.fixture
def read(request):
    """Reads rows of a memory map with a new reader."""

    def read(column, rows=None):
        reader = RowReader(column, "train")
        request.addfinalizer(reader.close)
        return reader.read(np.arange(len(column)) if rows is None else rows)

    return read


def wide_map(path, mode="r"):
    return np.memmap(path, np.float32, mode, 3 * 2**12 + 64, WIDE.shape)


def mapped_bytes():
    """Bytes of mapped files that count as memory of this process."""
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which says what a process maps")
def test_what_was_read_of_a_map_does_not_stay_in_memory(wide_file, read):
    column = wide_map(wide_file)
    before = mapped_bytes()
    read(column)
    assert mapped_bytes() - before < WIDE.nbytes / 4
    column.sum()  # this touches the same pages, and nothing releases them
    assert mapped_bytes() - before > WIDE.nbytes / 2


VIEWS = {
    "whole": lambda array: array,
    "inner part": lambda array: array[1000:9000, 5:700],
    "reversed": lambda array: array[::-1],
    "every third": lambda array: array[1::3],
    "columns first": lambda array: array.T,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_every_view_of_a_map_can_be_read_again_and_again(wide_file, read, view):
    column, rows = view(wide_map(wide_file)), np.array([3, 990, 12, 700])
    np.testing.assert_array_equal(read(column, rows), view(WIDE)[rows])
    np.testing.assert_array_equal(read(column, rows), view(WIDE)[rows])


def test_what_a_user_changed_in_a_private_map_stays_changed(wide_file, read):
    column = wide_map(wide_file, "c")
    column[[3, 500]] = -1
    np.testing.assert_array_equal(read(column, np.array([3, 4, 500]))[:, 7], [-1, WIDE[4, 7], -1])
    np.testing.assert_array_equal(column[[3, 4, 500], 7], [-1, WIDE[4, 7], -1])


def test_what_a_user_writes_into_a_map_is_written(tmp_path, read):
    column = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(4096, 8))
    column[:] = np.arange(4096)[:, None]
    read(column)
    column.flush()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "rows", np.float32).reshape(4096, 8)[:, 3], np.arange(4096))


# ---- the end


def left():
    """Threads and processes of Hydrax that are still alive ten seconds later."""
    end = time.monotonic() + 10
    while (found := ours()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def ours():
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("hydrax-")]
    return threads + multiprocessing.active_children()


class Raise(hx.Callback):
    def __init__(self, error):
        self.error = error

    def on_train_steps_end(self, event):
        raise self.error


@pytest.mark.timeout(60)
@pytest.mark.parametrize("settings", [{"read_threads": 2}, {"read_processes": 1}], ids=["threads", "processes"])
def test_no_thread_or_process_is_left_after_a_run(settings, tmp_path):
    data = on_host(**datasets("source", tmp_path) | {"val": None}, **settings)
    trainer = fit(data, max_steps=2).trainer
    assert left() == []
    trainer.test(verbose=False)
    assert left() == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("error", "settings"),
    [
        (ValueError("no"), {"read_threads": 2}),
        (KeyboardInterrupt(), {"read_processes": 1}),
        (SystemExit(143), {"read_threads": 2}),
        pytest.param(ValueError("no"), {"read_processes": 1}, marks=pytest.mark.slow),
        pytest.param(KeyboardInterrupt(), {"read_threads": 2}, marks=pytest.mark.slow),
        pytest.param(SystemExit(143), {"read_processes": 1}, marks=pytest.mark.slow),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else next(iter(value)),
)
def test_no_thread_or_process_is_left_after_an_error_or_a_signal(settings, error):
    with pytest.raises((hx.CallbackError, type(error))):
        fit(on_host(train=Source(), val=None, **settings), Raise(error))
    assert left() == []


@pytest.mark.timeout(60)
def test_ctrl_c_ends_a_run_that_waits_for_a_row():
    answer = threading.Event()

    def wait():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        answer.wait(30)

    assert fit(on_host(train=Source(odd={7: wait}), val=None)).result.interrupted
    answer.set()
    assert left() == []


# ---- what goes wrong

OWNERS = "wanted by heads 30, 50, 70 and 1 more"
# Nine heads in chunks of four: errors must not name the padding heads. A step meets all rows of all heads.
NINE = hx.Slices.from_indices(
    np.where(np.isin(np.arange(9), [3, 5, 7, 8]), 10, 0)[:, None] + np.arange(8), NUM_ROWS
).with_ids(10 * np.arange(9))


class Ends(hx.Callback):
    """Records which hooks of the end were called."""

    def __init__(self):
        self.heard = []

    def on_exception(self, event):
        self.heard.append(str(event.error))

    def teardown(self, event):
        self.heard.append("callback")


def failed(data, **how):
    """Checks that a fit fails, calls the hooks of the end and leaves nothing behind; returns the message."""
    ends = Ends()
    data.teardown = lambda stage: ends.heard.append(f"data module, {stage}")
    with pytest.raises(hx.DataError) as caught:
        fit(data, ends, **how)
    assert ends.heard == [str(caught.value), "callback", "data module, fit"]
    assert left() == []
    return str(caught.value)


def raising(error):
    def act():
        raise error

    return act


def row_with(**columns):
    return lambda: {name: column[0] for name, column in TRAIN.items()} | columns


def killed():
    os.kill(os.getpid(), {True: signal.SIGKILL, False: 0}[multiprocessing.parent_process() is not None])


WRONG_LENGTH = "The source reports the wrong length"
BAD_ROWS = {
    "unreadable": (raising(OSError("disk on fire")), "A row cannot be read", "Got OSError: disk on fire"),
    "wrong length": (raising(IndexError("no such row")), WRONG_LENGTH, "Got IndexError: no such row"),
    "nothing": (lambda: None, WRONG_LENGTH, "Got None"),
    "shape": (row_with(x=np.zeros(7, np.float32)), "A row differs from row 0", "float32[7], expected float32[6]"),
    "dtype": (row_with(y=1.5), "A row differs from row 0", "float64[], expected int32[]"),
    "structure": (row_with(z=0), "A row differs from row 0", "'z'"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("act", "what", "got"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_cannot_be_used_ends_a_fit_and_is_named_with_its_heads(act, what, got):
    message = failed(on_host(NINE, train=Source(odd={12: act}), val=None))
    assert f"{what}: train dataset, row 12, {OWNERS}. " in message
    assert got in message


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("act", "what"),
    [(killed, "A reader process died"), (raising(OSError()), "A row cannot be read")],
    ids=["killed", "unreadable"],
)
def test_a_process_that_fails_ends_a_fit_with_the_row_it_was_at_and_its_heads(act, what):
    message = failed(on_host(NINE, train=Source(odd={12: act}), val=None, read_processes=1))
    assert message.startswith(f"{what}: train dataset, row 12, {OWNERS}. ")


def test_with_shared_rows_only_the_heads_whose_row_it_is_are_named():
    train = Source(odd={12: raising(OSError())})
    assert f"row 12, {OWNERS}. " in failed(on_host(NINE, train=train, val=None), sampling="shared")


def test_a_row_that_cannot_be_read_is_named_when_heads_are_validated():
    message = failed(on_host(NINE, val=Source(HELD_OUT, {20: raising(OSError())})), check_val_every_n_epoch=None)
    assert message.startswith("A row cannot be read: val dataset, row 20, wanted by all heads. ")


def with_nan(columns=TRAIN):
    x = columns["x"].copy()
    x[12, 3] = np.nan
    return columns | {"x": x}


@pytest.mark.parametrize("lay_out", [dict, Source], ids=["arrays", "source"])
def test_nan_ends_a_fit_and_is_named_with_its_row_and_heads_where_it_should(lay_out):
    message = failed(on_host(NINE, train=lay_out(with_nan()), val=None, check_finite="raise"))
    assert message.startswith(f"A column holds NaN or Inf: train dataset['x'], row 12, {OWNERS}. ")


def test_nan_is_warned_of_once_and_the_fit_goes_on():
    with pytest.warns(UserWarning, match="A column holds NaN or Inf") as caught:
        fitted = fit(on_host(NINE, train=with_nan(), val=None))
    assert len(caught) == 1
    assert list(fitted.trainer.quarantined) == [30, 50, 70, 80]
    assert np.isfinite(fitted.arrays["trainable.kernel"]).all()


class CutShort(SourceDataModule):
    """Its file is cut before row 12 when step 2 is drawn."""

    path = None

    def index_dataset(self, seed=0):
        return super().index_dataset(seed).map(self.draw)

    def draw(self, batch):
        os.truncate(self.path, {True: 12, False: NUM_ROWS}[batch["step"] >= 2] * mmap.PAGESIZE)
        return batch


def test_a_file_that_is_cut_short_ends_a_fit_and_is_named_with_its_lost_row_and_heads(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(NUM_ROWS, mmap.PAGESIZE // 4))[:, :6]
    x[:] = TRAIN["x"]
    data = CutShort({"x": x, "y": TRAIN["y"]}, slices=NINE, batch_size=BATCH)
    data.path = tmp_path / "x"
    message = failed(data, steps_per_call=1)
    said = f"A memory map is longer than its file: train dataset['x'], {data.path}, row 12, {OWNERS}. Got a file of "
    assert message.startswith(said)
