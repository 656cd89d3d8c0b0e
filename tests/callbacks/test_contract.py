"""The contract of every callback in `hydrax.callbacks`, found by reflection: a new one is included at once."""

import functools
import inspect
import json
import tempfile

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of, differing, run, state_of

import hydrax as hx
from hydrax import callbacks
from hydrax.loop.callback import overrides

SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)
# Arguments for callbacks that do nothing without them, or that would stop heads.
ARGUMENTS = {
    "EarlyStopping": {"patience": 1_000, "restore_best_weights": False},
    "LearningRateMonitor": {"source": "lr"},
    "LambdaCallback": {"on_fit_end": lambda event: None},
    "ModelCheckpoint": {"monitor": "val_loss", "every_n_train_steps": 4},
    "StochasticWeightAveraging": {"start_step": 2, "evaluate": False},
    "MLflowLogger": {"tracking_uri": f"file://{tempfile.mkdtemp()}"},
    "WandbLogger": {"mode": "offline"},
}
STEPS = 10
NAMES = tuple(sorted(callbacks.__all__))


@pytest.fixture(scope="module", autouse=True)
def files_are_enough():
    """MLflow refuses a store of files unless this variable allows it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        yield


def make(name):
    return getattr(callbacks, name)(**ARGUMENTS.get(name, {}))


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


# A fit with all callbacks costs hardly more than one with a single callback.
@pytest.fixture(
    params=[pytest.param(NAMES, id="all"), *(pytest.param((n,), id=n, marks=pytest.mark.slow) for n in NAMES)]
)
def names(request):
    """Sets of callbacks that share fits: all together, and, in the slow form, each on its own."""
    return request.param


@pytest.fixture
def together(names):
    return [make(name) for name in names]


@functools.cache
def fitted(names):
    """Callbacks by name, and a fit that they took part in."""
    made = {name: make(name) for name in names}
    return made, run(PlainClassifier(), data_of(SLICES), callbacks=made.values(), max_steps=STEPS)


@pytest.fixture(scope="module")
def heads():
    return hx.Trainer(max_steps=1, chunk=4, barebones=True).fit(PlainClassifier(), data_of(SLICES)).heads


@pytest.fixture(scope="module")
def alone():
    """The bits of a fit without any callback."""
    return parameters(run(PlainClassifier(), data_of(SLICES), max_steps=STEPS))


def parameters(fitted):
    """All state of the heads except the callback's own."""
    own = ("callbacks.", "step.grad_norm", "latest.grad_norm", "step.learning_rate", "latest.learning_rate")
    return {name: array for name, array in fitted.arrays.items() if not name.startswith(own)}


def test_it_is_a_callback_in_a_file_of_its_own_with_its_arguments_explained(name):
    kind = getattr(callbacks, name)
    assert issubclass(kind, hx.Callback)
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).strip("_")
    assert kind.__module__.rpartition(".")[2].replace("_", "") == words.replace("_", "")
    arguments = [p for p in inspect.signature(kind.__init__).parameters if p not in ("self", "args", "kwargs")]
    assert [a for a in arguments if f"{a}:" not in kind.__doc__ and f"{a}," not in kind.__doc__] == []


def test_it_changes_no_bit_of_any_head(names, alone):
    assert differing(parameters(fitted(names)[1]), alone) == []


@pytest.mark.slow
def test_one_object_hears_two_fits(together, tmp_path):
    for _ in range(2):
        trainer = hx.Trainer(max_steps=STEPS, chunk=4, callbacks=together, default_root_dir=tmp_path, **QUIET)
        assert trainer.fit(PlainClassifier(), data_of(SLICES)).step == STEPS


def test_it_works_where_nothing_is_to_be_written(together):
    trainer = hx.Trainer(max_steps=2, chunk=4, callbacks=together, fast_dev_run=2, enable_progress_bar=False)
    trainer.fit(PlainClassifier(), data_of(SLICES))
    assert trainer.log_dir is None


def test_it_hears_evaluations_without_a_fit_before(together, heads):
    trainer = hx.Trainer(max_steps=1, chunk=4, callbacks=together, **QUIET)
    assert np.isfinite(trainer.validate(PlainClassifier(), data_of(SLICES), heads, verbose=False)["val_loss"]).all()
    assert np.isfinite(trainer.test(PlainClassifier(), data_of(SLICES), heads, verbose=False)["test_loss"]).all()


def test_its_state_can_be_saved_and_taken_back(name):
    state = fitted(NAMES)[0][name].state_dict()
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    json.dumps({key: value for key, value in state.items() if key not in arrays})
    again = make(name)
    again.load_state_dict(state)
    for key, value in again.state_dict().items():
        np.testing.assert_array_equal(value, state[key])


def test_it_ends_in_order_after_an_error_of_another_callback(together, tmp_path):
    class Fails(hx.Callback):
        def on_train_epoch_end(self, event):
            raise RuntimeError("no more")

    trainer = hx.Trainer(max_steps=STEPS, chunk=4, callbacks=[*together, Fails()], default_root_dir=tmp_path, **QUIET)
    with pytest.raises(hx.CallbackError, match="Fails.on_train_epoch_end"):
        trainer.fit(PlainClassifier(), data_of(SLICES))
    # Nothing is left open: the same object can take part in the next fit.
    again = hx.Trainer(max_steps=STEPS, chunk=4, callbacks=together, default_root_dir=tmp_path, **QUIET)
    assert again.fit(PlainClassifier(), data_of(SLICES)).step == STEPS
    assert state_of(again)


def test_it_returns_to_the_host_no_more_often_than_it_must(name):
    assert not overrides(make(name), "on_train_batch_end")
