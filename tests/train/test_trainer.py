"""Trainer: its arguments do what they say, and its numbers are those that NumPy gets by hand."""

import clu.metrics
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads_under_test import QUIET, Curves

import hydrax as hx
from hydrax.callbacks import CSVLogger
from hydrax.datamodules import ArrayDataModule

# Linear regression: 2 heads, 12 training rows and 10 held-out ones, in batches of 4: the last one is partial.
RNG = np.random.default_rng(0)
TRAIN = {"x": RNG.normal(size=(12, 3)).astype(np.float32), "y": RNG.normal(size=12).astype(np.float32)}
HELD = {"x": RNG.normal(size=(10, 3)).astype(np.float32), "y": RNG.normal(size=10).astype(np.float32)}
SLICES = hx.Slices.from_indices([range(12), [5, 2, 7]], 12)
VAL_SLICES = hx.Slices.from_indices([[0, 9, 3, 4, 8], [1, 2]], 10)


class Linear(hx.HydraModule):
    """y = x . w, squared error; the weights of head h start at h + 1."""

    def __init__(self, start=(1.0, 2.0), rate=0.01):
        self.start, self.rate = hx.PerHead(start), rate

    def configure_model(self, key):
        return {"w": jnp.full(3, self.start)}

    def configure_optimizers(self):
        return optax.sgd(self.rate)

    def training_step(self, model, batch, ctx):
        error = (batch["x"] @ model["w"] - batch["y"]) ** 2
        self.log("error", error, on_step=True, on_epoch=True)
        self.log("mean_error", clu.metrics.Average.from_model_output(error, mask=ctx.mask), on_step=True, on_epoch=True)
        return error

    def validation_step(self, model, batch, ctx):
        error = (batch["x"] @ model["w"] - batch["y"]) ** 2
        self.log("mean_error_val", clu.metrics.Average.from_model_output(error, mask=ctx.mask))
        self.log_first(batch)
        return error

    def log_first(self, batch):
        self.log("first_x", batch["x"][0, 0])

    def test_step(self, model, batch, ctx):
        return (batch["x"] @ model["w"] - batch["y"]) ** 2

    def predict_step(self, model, batch, ctx):
        return batch["x"] @ model["w"]


def linear_data(**how):
    sets = {"train": TRAIN, "val": HELD, "test": HELD, "predict": HELD, "slices": SLICES, "batch_size": 4}
    return ArrayDataModule(**{**sets, **how})


def fit(tmp_path, module=None, data=None, **how):
    trainer = hx.Trainer(**{**QUIET, "default_root_dir": tmp_path, **how})
    return trainer, trainer.fit(module or Linear(), data or linear_data())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One epoch of three steps; each head's weights, float[H, 3]."""
    curves = Curves()
    trainer, result = fit(tmp_path_factory.mktemp("run"), max_epochs=1, callbacks=curves)
    return trainer, result, np.asarray(result.heads.trainable["w"]), curves.by_name()


def squared_error(weights, rows=slice(None)):
    """float64[rows]."""
    return (HELD["x"][rows].astype(np.float64) @ weights - HELD["y"][rows]) ** 2


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_validation_means_are_over_all_rows_of_the_set(trained):
    _, result, weights, _ = trained
    expected = [squared_error(w).mean() for w in weights]
    np.testing.assert_allclose(result.metrics["val_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(result.metrics["mean_error_val"], expected, rtol=1e-5)


def test_a_scalar_is_weighted_by_the_live_slots_of_its_batch(trained):
    first = HELD["x"][[0, 4, 8], 0]
    expected = (4 * first[0] + 4 * first[1] + 2 * first[2]) / 10
    np.testing.assert_allclose(trained[1].metrics["first_x"], [expected] * 2, rtol=1e-5)


@pytest.mark.parametrize(("method", "name"), [("validate", "val_loss"), ("test", "test_loss")])
def test_validate_and_test_give_the_mean_of_each_head(trained, method, name):
    trainer, _, weights, _ = trained
    expected = [squared_error(w).mean() for w in weights]
    np.testing.assert_allclose(getattr(trainer, method)()[name], expected, rtol=1e-5)


def test_predict_gives_every_row_in_order(trained):
    trainer, _, weights, _ = trained
    np.testing.assert_allclose(trainer.predict(), weights @ HELD["x"].T, rtol=1e-5, atol=1e-6)


def test_predict_reduced_by_the_mean_is_the_ensemble(trained):
    trainer, _, weights, _ = trained
    expected = (weights @ HELD["x"].T).mean(axis=0)
    np.testing.assert_allclose(trainer.predict(reduce="mean"), expected, rtol=1e-5, atol=1e-6)


def test_each_head_is_validated_on_its_own_val_slice(trained):
    trainer, result, weights, _ = trained
    # A scalar made of rows is refused here, as slots of the shorter slice are padding.
    module = type("Own", (Linear,), {"log_first": lambda self, batch: None})()
    found = trainer.validate(module, linear_data(val_slices=VAL_SLICES), heads=result.heads)
    expected = [squared_error(weights[0], [0, 9, 3, 4, 8]).mean(), squared_error(weights[1], [1, 2]).mean()]
    np.testing.assert_allclose(found["val_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["mean_error_val"], expected, rtol=1e-5)


def weights_by_step():
    """Plain gradient descent in float64: float[H, steps + 1, 3], and each head's rows, [H][steps]."""
    weights, rows = [[np.full(3, h + 1.0)] for h in range(2)], [[], []]
    index = linear_data().index_dataset(0)
    for step in range(3):
        for h in range(2):
            live = index[step]["rows"][h][index[step]["mask"][h]]
            x, y, w = TRAIN["x"][live].astype(np.float64), TRAIN["y"][live], weights[h][-1]
            weights[h].append(w - 0.01 * 2 * ((x @ w - y)[:, None] * x).mean(axis=0))
            rows[h].append(live)
    return np.array(weights), rows


def step_errors():
    """Squared errors that each head met at each step, before the update: [H][steps] arrays of live slots."""
    weights, rows = weights_by_step()
    return [
        [(TRAIN["x"][r] @ w - TRAIN["y"][r]) ** 2 for r, w in zip(rows[h], weights[h], strict=False)] for h in range(2)
    ]


@pytest.mark.parametrize("name", ["error_step", "mean_error_step", "train_loss"])
def test_what_is_logged_on_step_is_the_mean_over_the_live_slots_of_that_step(trained, name):
    expected = [[e.mean() for e in errors] for errors in step_errors()]
    np.testing.assert_allclose(trained[3][name], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["error_epoch", "mean_error_epoch"])
def test_what_is_logged_on_epoch_is_the_mean_over_all_live_slots_of_the_epoch(trained, name):
    expected = [np.concatenate(errors).mean() for errors in step_errors()]
    np.testing.assert_allclose(trained[1].metrics[name], expected, rtol=1e-4)


def test_the_short_head_meets_fewer_rows_and_they_are_not_the_long_ones():
    assert [[len(e) for e in errors] for errors in step_errors()] == [[4, 4, 4], [3, 3, 3]]


# ---- when things end and happen --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "steps"),
    [
        ({"max_steps": 4}, 4),
        ({"max_epochs": 2}, 6),
        ({"max_steps": 4, "max_epochs": 2}, 4),
        ({"max_steps": 7, "max_epochs": 2}, 6),
        ({"max_epochs": 2, "limit_train_batches": 2}, 4),
        ({"max_epochs": 2, "limit_train_batches": 0.4}, 2),
        ({"max_epochs": 2, "limit_train_batches": 1}, 2),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 4),
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 2}, 2),
    ],
)
def test_a_fit_ends_at_the_nearer_of_its_ends(tmp_path, how, steps):
    assert fit(tmp_path, **how)[1].step == steps


def test_a_fit_without_an_end_is_refused(tmp_path):
    with pytest.raises(hx.ArgumentError, match="max_steps=, max_epochs="):
        fit(tmp_path)


@pytest.mark.parametrize(("limit", "rows"), [(1, 4), (2, 8), (0.7, 8), (1.0, 10)])
def test_limit_val_batches_counts_batches_as_an_int_and_a_fraction_as_a_float(tmp_path, limit, rows):
    trainer, result = fit(tmp_path, max_steps=1, limit_val_batches=limit)
    weights = np.asarray(result.heads.trainable["w"])
    expected = [squared_error(w, slice(rows)).mean() for w in weights]
    np.testing.assert_allclose(result.metrics["val_loss"], expected, rtol=1e-5)


class Calendar(hx.Callback):
    """Notes at which steps supersteps end and validations happen."""

    def __init__(self):
        self.logged, self.validated = [], []

    def on_train_steps_end(self, event):
        self.logged.append(event.step)

    def on_validation_end(self, event):
        self.validated.append(event.step)


@pytest.mark.parametrize(
    ("how", "validated"),
    [
        ({}, [3, 6, 9, 12]),
        ({"check_val_every_n_epoch": 3}, [9, 12]),  # and once more, where the fit ends
        ({"val_check_interval": 2}, [2, 5, 8, 11, 12]),
        ({"val_check_interval": 0.34}, list(range(1, 13))),
        ({"val_check_interval": 5, "check_val_every_n_epoch": None}, [5, 10, 12]),
    ],
)
def test_validations_happen_at_their_cadence(tmp_path, how, validated):
    calendar = Calendar()
    fit(tmp_path, max_steps=12, callbacks=calendar, **how)
    assert calendar.validated == validated


@pytest.mark.parametrize("every", [1, 2, 50])
def test_no_superstep_ends_for_a_log(tmp_path, every):
    calendar = Calendar()
    fit(tmp_path, max_steps=6, log_every_n_steps=every, callbacks=calendar)
    assert calendar.logged == [3, 6]  # where epochs end


def test_bar_loggers_and_checkpoints_leave_supersteps_as_long_as_the_user_says(tmp_path, caplog):
    class WithoutMeans(Linear):  # whose means over epochs would end a superstep with each epoch
        def training_step(self, model, batch, ctx):
            return (batch["x"] @ model["w"] - batch["y"]) ** 2

    class Lengths(hx.Callback):
        def __init__(self):
            self.found = []

        def on_train_steps_end(self, event):
            self.found.append(len(event.steps))

    lengths = Lengths()
    data = ArrayDataModule({"x": np.ones((4, 3), np.float32), "y": np.ones(4, np.float32)}, slices=hx.Slices.full(2, 4))
    trainer = hx.Trainer(
        max_steps=20, steps_per_call=8, callbacks=[lengths, CSVLogger()], default_root_dir=tmp_path, log_every_n_steps=3
    )
    trainer.fit(WithoutMeans(), data)  # an epoch is one step
    assert lengths.found == [8, 8, 4]
    assert "is lowered to" not in caplog.text


def test_a_fit_with_shorter_supersteps_than_asked_for_says_why(tmp_path, caplog):
    class EveryStep(hx.Callback):
        def on_train_batch_end(self, event):
            pass

    fit(tmp_path, max_steps=2, steps_per_call=8, callbacks=EveryStep())
    assert "steps_per_call=8 is lowered to 1: a callback overrides on_train_batch_end" in caplog.text


@pytest.mark.parametrize(("max_steps", "expected"), [(1, 3), (300, 3), (301, 4), (1000, 10), (9000, 50)])
def test_logs_are_an_epoch_apart_where_that_is_less_and_gives_few_logs(tmp_path, max_steps, expected):
    assert fit(tmp_path, max_steps=max_steps, limit_val_batches=0)[0].log_every_n_steps == expected


def test_barebones_writes_nothing_and_prints_nothing(tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = hx.Trainer(max_steps=3, barebones=True)
    trainer.fit(Linear(), linear_data())
    trainer.test()
    assert list(tmp_path.iterdir()) == []
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


def test_fast_dev_run_writes_nothing(tmp_path):
    trainer = hx.Trainer(fast_dev_run=True, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.fit(Linear(), linear_data())
    assert list(tmp_path.iterdir()) == []


def test_a_hook_of_every_step_warns_once_with_its_cost(tmp_path):
    class EveryStep(hx.Callback):
        steps = 0

        def on_train_batch_end(self, event):
            self.steps += 1
            assert event.metrics["train_loss"].shape == (2,)

    callback = EveryStep()
    with pytest.warns(UserWarning, match="ms a step") as caught:
        fit(tmp_path, max_steps=30, callbacks=callback)
    assert (callback.steps, len(caught)) == (30, 1)


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "stored", "computed"),
    [
        ("32-true", "float32", "float32"),
        ("bf16-mixed", "float32", "bfloat16"),
        ("bf16-true", "bfloat16", "bfloat16"),
        ("64-true", "float64", "float64"),
    ],
)
def test_precision_sets_what_parameters_are_stored_and_computed_in(tmp_path, precision, stored, computed):
    seen = set()

    class Watched(Linear):
        def training_step(self, model, batch, ctx):
            seen.add((str(model["w"].dtype), str(batch["x"].dtype)))
            return super().training_step(model, batch, ctx)

    _, result = fit(tmp_path, Watched(), max_steps=3, precision=precision)
    assert seen == {(computed, computed)}
    assert str(result.heads.trainable["w"].dtype) == stored
    tolerance = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 3e-2}[computed]
    np.testing.assert_allclose(
        np.asarray(result.heads.trainable["w"], np.float64), weights_by_step()[0][:, 3], rtol=tolerance
    )


def test_float16_is_refused_with_the_reason():
    with pytest.raises(hx.ArgumentError, match="float16 overflows.*bf16-mixed"):
        hx.Trainer(max_steps=1, precision="16-mixed")


# ---- what is left behind ---------------------------------------------------------------------------------------------


def test_the_module_is_as_it_was_after_a_fit(tmp_path):
    module = Linear()
    fit(tmp_path, module, max_steps=1)
    module.rate = 0.5
    assert module.rate == 0.5


def test_the_users_arrays_are_not_aliased(tmp_path):
    train = {name: array.copy() for name, array in TRAIN.items()}

    class Spoil(hx.Callback):
        def on_train_start(self, event):
            train["x"][:] = np.nan

    _, result = fit(tmp_path, data=linear_data(train=train), max_steps=3, callbacks=Spoil())
    np.testing.assert_allclose(result.heads.trainable["w"], weights_by_step()[0][:, 3], rtol=1e-5)


def test_the_same_fit_twice_has_the_same_bits(tmp_path):
    first, second = (np.asarray(fit(tmp_path, max_steps=6)[1].heads.trainable["w"]) for _ in range(2))
    assert first.tobytes() == second.tobytes()
