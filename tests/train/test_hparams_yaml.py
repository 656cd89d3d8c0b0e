"""`hparams.yaml`: what `yaml.safe_load` reads back, and that a failed write does not stop a fit."""

import enum
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml
from flax import nnx
from heads_under_test import NUM_ROWS, PlainClassifier, data_of

import hydrax as hx
from hydrax.callbacks import CSVLogger, TensorBoardLogger

MANY = np.arange(100_000) / 8
HOW = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_steps": 2, "chunk": 2}
SLICES = hx.Slices.random_subset([40, 9], NUM_ROWS, seed=1)


class Size(enum.IntEnum):
    SMALL = 3


class Bare(PlainClassifier):
    def __init__(self):
        pass

    def configure_optimizers(self):
        return optax.sgd(0.1)


class Named(Bare):
    def __init__(self, name):
        self.save_hyperparameters()


class Odd:
    def __repr__(self):
        return "Odd()"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1e-05, 1e-05),
        (None, None),
        ("yes", "yes"),
        (float("inf"), float("inf")),
        (hx.PerHead([0.5, 0.25]), [0.5, 0.25]),
        (hx.PerHead([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (hx.PerHead(MANY), "PerHead([0, 0.125, 0.25, ...], heads=100000)"),
        (np.float32(0.5), 0.5),
        (np.str_("relu"), "np.str_('relu')"),
        (jnp.int32(3), 3),
        (jnp.bfloat16(0.5), 0.5),
        (np.array([True, False]), [True, False]),
        (jax.random.key(0), repr(jax.random.key(0))),
        (1j, "1j"),
        ((8, (4, 2)), [8, [4, 2]]),
        ({"a": {2: (1,)}, Size.SMALL: Odd()}, {"a": {2: [1]}, "3": "Odd()"}),
        (Size.SMALL, "<Size.SMALL: 3>"),
        (optax.adamw, f"{optax.adamw.__module__}.adamw"),
        (nnx.Linear, f"{nnx.Linear.__module__}.Linear"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_hyper_parameter_is_read_back_in_plain_kinds(value, expected):
    assert yaml.safe_load(hx.Hyperparameters({"value": value}).to_yaml()) == {"value": expected}


def test_the_hyper_parameters_stand_in_their_order_one_a_line():
    shared = [1, 2]
    values = {"width": 64, "lr": hx.PerHead([0.5, 0.25]), "a": shared, "b": shared}
    assert hx.Hyperparameters(values).to_yaml() == "width: 64\nlr: [0.5, 0.25]\na: [1, 2]\nb: [1, 2]\n"


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_a_fit_writes_it_at_its_start(tmp_path, logger):
    trainer = hx.Trainer(callbacks=[logger()], default_root_dir=tmp_path, **HOW)
    result = trainer.fit(PlainClassifier(lr=hx.PerHead([0.5, 0.25])), data_of(SLICES))
    assert yaml.safe_load((result.log_dir / "hparams.yaml").read_text())["lr"] == [0.5, 0.25]


def test_the_file_is_in_utf_8_whatever_the_machine_s_own_encoding_is(tmp_path, monkeypatch):
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "ascii")
    trainer = hx.Trainer(callbacks=[CSVLogger()], default_root_dir=tmp_path, **HOW)
    result = trainer.fit(Named("größer"), data_of(SLICES))
    assert yaml.safe_load((result.log_dir / "hparams.yaml").read_bytes()) == {"name": "größer"}


def test_a_module_without_any_gets_no_file(tmp_path):
    trainer = hx.Trainer(callbacks=[CSVLogger()], default_root_dir=tmp_path, **HOW)
    assert not (trainer.fit(Bare(), data_of(SLICES)).log_dir / "hparams.yaml").exists()


def test_a_folder_that_takes_nothing_is_said_and_stops_nothing(tmp_path, caplog):
    class InTheWay(hx.Callback):
        def on_fit_start(self, event):
            (event.trainer.log_dir / "hparams.yaml").mkdir()

    trainer = hx.Trainer(callbacks=[InTheWay(), CSVLogger()], default_root_dir=tmp_path, **HOW)
    with caplog.at_level(logging.WARNING, "hydrax"):
        assert trainer.fit(PlainClassifier(), data_of(SLICES)).step == HOW["max_steps"]
    assert caplog.text.count("The file of hyper-parameters could not be written: ") == 1
