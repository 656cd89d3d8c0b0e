"""All remote loggers: one run, the same numbers as NumPy, and a service that fails or hangs stops nothing."""

import logging
import threading
import time

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of

import hydrax as hx
from hydrax.loggers import background, remote_logger
from hydrax.loggers.remote_logger import RemoteLogger

SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)
STEPS = 6


class Service(RemoteLogger):
    """Keeps all calls."""

    def __init__(self):
        super().__init__()
        self.calls, self.threads = [], set()

    def open_run(self, folder, hparams, first_step):
        self.threads.add(threading.current_thread())
        self.calls.append(("open", hparams, first_step))
        return self.run_id or "run-1"

    def write_run(self, step, numbers, heads):
        self.calls.append(("write", step, numbers, heads))

    def finish_run(self, step, table, figures, failed):
        self.calls.append(("finish", step, table, figures, failed))


class Keeps(hx.Callback):
    """Keeps the metrics of all hooks."""

    def __init__(self):
        self.training, self.validation = {}, {}

    def on_train_steps_end(self, event):
        for row, step in enumerate(event.steps.tolist()):
            self.training[step] = event.metrics["train_loss"][row]

    def on_validation_end(self, event):
        self.validation[event.step] = event.metrics["val_loss"]


def fit(folder, *callbacks, ckpt_path=None, max_steps=STEPS):
    how = {"log_every_n_steps": 2, "val_check_interval": 3, "check_val_every_n_epoch": None, **QUIET}
    trainer = hx.Trainer(max_steps=max_steps, chunk=4, callbacks=list(callbacks), default_root_dir=folder, **how)
    trainer.fit(PlainClassifier(lr=hx.PerHead([0.1, 0.2, 0.3])), data_of(SLICES), ckpt_path)
    return trainer


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    service, keeps = Service(), Keeps()
    fit(tmp_path_factory.mktemp("run"), service, keeps)
    return service, keeps


def numbers(service, name):
    return {call[1]: call[2][name] for call in service.calls if call[0] == "write" and name in call[2]}


@pytest.mark.parametrize(("word", "of"), [("mean", np.mean), ("median", np.median), ("min", np.min), ("max", np.max)])
def test_the_numbers_are_those_of_numpy_at_the_steps_that_are_due(heard, word, of):
    service, keeps = heard
    expected = {step: of(keeps.training[step].astype(np.float64)) for step in (2, 4, 6)}
    assert numbers(service, f"train_loss/{word}") == pytest.approx(expected)
    expected = {step: of(values.astype(np.float64)) for step, values in keeps.validation.items()}
    assert list(expected) == [3, 6]
    assert numbers(service, f"val_loss/{word}") == pytest.approx(expected)


def test_the_values_of_all_heads_come_with_each_validation(heard):
    service, keeps = heard
    found = {call[1]: call[3]["val_loss"] for call in service.calls if call[0] == "write" and call[3]}
    for step, values in keeps.validation.items():
        np.testing.assert_array_equal(found[step], values)


def test_there_is_one_run_in_one_thread_which_ends(heard):
    service = heard[0]
    kinds = [call[0] for call in service.calls]
    assert (kinds.count("open"), kinds.count("finish"), kinds[0], kinds[-1]) == (1, 1, "open", "finish")
    assert (len(service.threads), service.num_dropped) == (1, 0)
    assert not any(thread.is_alive() for thread in service.threads)


def test_it_ends_with_a_row_and_a_score_for_each_head_and_a_curve(heard):
    service, keeps = heard
    _, step, table, figures, failed = service.calls[-1]
    assert (step, failed, [row["head"] for row in table]) == (STEPS, False, [0, 1, 2])
    np.testing.assert_allclose([row["lr"] for row in table], [0.1, 0.2, 0.3])
    np.testing.assert_allclose([row["score"] for row in table], keeps.validation[6], rtol=1e-6)
    assert sorted(figures) == ["learning_curve/val_loss", "learning_curve/val_noise"]


def test_a_resumed_fit_goes_on_with_its_run(tmp_path):
    saver = hx.callbacks.ModelCheckpoint(dirpath=tmp_path)
    fit(tmp_path, Service(), saver)
    again = Service()
    fit(tmp_path, again, saver, ckpt_path=tmp_path / "last", max_steps=STEPS + 2)
    assert (again.run_id, again.calls[0][2]) == ("run-1", STEPS)
    assert list(numbers(again, "train_loss/mean")) == [STEPS + 2]


class Fails(Service):
    def write_run(self, step, numbers, heads):
        raise ConnectionError("no route")


def test_a_service_that_refuses_is_reported_once_and_counted(tmp_path, caplog):
    service = Fails()
    with caplog.at_level(logging.WARNING, "hydrax"):
        assert fit(tmp_path, service).global_step == STEPS
    assert caplog.text.count("Logs were dropped: Fails. Got ConnectionError('no route')") == 1
    assert service.num_dropped >= 5  # three of training, two of validation, more at the ends of epochs


class Hangs(Service):
    def write_run(self, step, numbers, heads):
        time.sleep(60)


def test_a_service_that_hangs_delays_a_fit_by_no_more_than_its_time_to_close(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(background, "CLOSE_SECS", 0.5)
    monkeypatch.setattr(remote_logger, "MAX_WAITING", 2)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, "hydrax"):
        fit(tmp_path, Hangs())
    assert time.monotonic() - start < 30
    assert "Logs were dropped: Hangs." in caplog.text


def test_an_error_of_the_fit_is_told_to_the_service(tmp_path):
    class Raises(hx.Callback):
        def on_validation_end(self, event):
            raise RuntimeError

    service = Service()
    with pytest.raises(hx.CallbackError):
        fit(tmp_path, service, Raises())
    assert (service.calls[-1][0], service.calls[-1][4]) == ("finish", True)
