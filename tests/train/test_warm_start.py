"""A fit that begins with given weights: it is a plain loop from there, says so in its ledger, and survives restarts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from heads_under_test import (
    NUM_CLASSES,
    NUM_ROWS,
    QUIET,
    Classifier,
    NormAndDropout,
    PlainClassifier,
    data_of,
    named_arrays,
    rows_of,
)

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint
from hydrax.engine.engine import Engine

HEADS, STEPS, RATE, DECAY = 3, 6, 0.3, 0.9
ROWS = rows_of()
# No slice is longer than a batch, so that every step sees all rows of a head and their order does not matter.
OWN = [[0, 1, 2], [10, 11, 12, 13, 14], [20, 21, 22, 23, 24, 25, 26, 27]]
SLICES, TUNED = hx.Slices.full(HEADS, NUM_ROWS), hx.Slices.from_indices(OWN, NUM_ROWS)


class Tuner(PlainClassifier):
    """Another class than the one that was trained before, with another optimiser."""

    def configure_optimizers(self):
        return optax.sgd(RATE, momentum=DECAY)


def trainer(root, steps=STEPS, *callbacks, **how):
    return hx.Trainer(max_steps=steps, callbacks=callbacks, default_root_dir=root, **{**QUIET, "chunk": 2, **how})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trainer(tmp_path_factory.mktemp("trained"), 5).fit(PlainClassifier(), data_of(SLICES)).heads


def numpy_loop(kernel, bias, rows, steps):
    """Gradient descent with momentum on softmax regression, by hand."""
    x, y = ROWS["x"][rows].astype(np.float64), ROWS["y"][rows]
    weights = [np.asarray(kernel, np.float64), np.asarray(bias, np.float64)]
    momentum = [np.zeros_like(one) for one in weights]
    for _ in range(steps):
        logits = x @ weights[0] + weights[1]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (p / p.sum(axis=1, keepdims=True) - np.eye(NUM_CLASSES)[y]) / len(rows)
        for number, gradient in enumerate((x.T @ error, error.sum(axis=0))):
            momentum[number] = DECAY * momentum[number] + gradient
            weights[number] = weights[number] - RATE * momentum[number]
    return weights


def assert_tuned(heads, starts):
    """Each head is what a plain loop makes of its rows from the weights that it started with."""
    for head, (rows, start) in enumerate(zip(OWN, starts, strict=True)):
        kernel, bias = numpy_loop(start["kernel"], start["bias"], rows, STEPS)
        np.testing.assert_allclose(heads[head]["kernel"], kernel, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(heads[head]["bias"], bias, rtol=1e-5, atol=1e-6)


GIVEN = {
    "heads": (lambda heads, folder: heads, [0, 1, 2], "given heads, head {}"),
    "the same heads in another order": (lambda heads, folder: heads[[2, 0, 1]], [0, 1, 2], "given heads, head {}"),
    "others, by position": (lambda heads, folder: heads[[2, 2, 0]], [2, 2, 0], "given heads, head {}"),
    "one head for all": (lambda heads, folder: heads[[1]], [1, 1, 1], "given heads, head {}"),
    "one model for all": (lambda heads, folder: heads[1], [1, 1, 1], "given dict"),
    "a path": (lambda heads, folder: str(heads.save(folder)), [0, 1, 2], "{folder}, head {}"),
}


@pytest.mark.parametrize("given", GIVEN)
def test_a_fit_from_given_weights_is_a_plain_loop_from_there_and_its_ledger_says_so(trained, tmp_path, given):
    start, heads, text = GIVEN[given]
    init_from = start(trained, tmp_path / "saved")
    result = trainer(tmp_path).fit(Tuner(), data_of(TUNED, val=None), init_from=init_from)
    assert_tuned(result.heads, [trained[head] for head in heads])
    expected = [text.format(head, folder=init_from if "folder" in text else "") for head in heads]
    assert [row["init_from"] for row in result.ledger] == expected


def test_a_fit_that_begins_afresh_has_no_such_column(tmp_path):
    assert "init_from" not in trainer(tmp_path, 1).fit(PlainClassifier(), data_of(SLICES)).ledger[0]


def test_the_best_and_the_last_of_an_earlier_run_are_found_by_name(tmp_path):
    first = trainer(tmp_path, 5, ModelCheckpoint("val_loss")).fit(PlainClassifier(), data_of(SLICES))
    best = hx.Heads.load(first.log_dir / "checkpoints" / "best", PlainClassifier())
    for name, heads in (("best", best), ("last", first.heads)):
        result = trainer(tmp_path).fit(Tuner(), data_of(TUNED, val=None), init_from=name)
        assert_tuned(result.heads, list(heads))


class Wide(Tuner):
    def configure_model(self, key):
        return {"kernel": jnp.zeros((6, 4)), "bias": jnp.zeros(NUM_CLASSES)}


class Without(Tuner):
    def configure_model(self, key):
        return {"kernel": jnp.zeros((6, NUM_CLASSES))}


class With(Tuner):
    def configure_model(self, key):
        return {**super().configure_model(key), "scale": jnp.ones(())}


REFUSED = {
    "shape": (Wide, lambda heads: heads, r"array kernel. Got float32\[6, 3\] for one head, expected float32\[6, 4\]"),
    "one too many": (Without, lambda heads: heads, "array bias. Got an array for one head, expected none"),
    "one too few": (With, lambda heads: heads, "array scale. Got none for one head, expected an array"),
    "number": (Tuner, lambda heads: heads[[0, 1]], "number of heads does not fit: .*Got 2, expected 3"),
    "path": (Tuner, lambda heads: "nowhere", "There is no checkpoint: nowhere"),
    "auto": (Tuner, lambda heads: "auto", "There is no checkpoint: auto"),
    "type": (Tuner, lambda heads: 3, "nothing to start from: .*Got int, expected Heads"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_weights_that_do_not_fit_are_refused_before_anything_compiles(trained, tmp_path, monkeypatch, what):
    module, given, message = REFUSED[what]
    monkeypatch.setattr(Engine, "__init__", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(hx.errors.HydraxError, match=message):
        trainer(tmp_path).fit(module(), data_of(TUNED, val=None), init_from=given(trained))


def test_weights_and_a_run_to_resume_are_refused_together(trained, tmp_path):
    with pytest.raises(hx.errors.ArgumentError, match="A fit cannot do both: .*ckpt_path='last'"):
        trainer(tmp_path).fit(Tuner(), data_of(TUNED, val=None), ckpt_path="last", init_from=trained)


def test_a_resumed_run_needs_no_weights_and_still_says_where_it_began(trained, tmp_path):
    whole = trainer(tmp_path / "whole").fit(Tuner(), data_of(TUNED, val=None), init_from=trained)
    trainer(tmp_path, 4, ModelCheckpoint()).fit(Tuner(), data_of(TUNED, val=None), init_from=trained)
    for how in ({"ckpt_path": "last"}, {"ckpt_path": "auto", "init_from": trained}):
        resumed = trainer(tmp_path, STEPS).fit(Tuner(), data_of(TUNED, val=None), **how)
        np.testing.assert_array_equal(resumed.heads.trainable["kernel"], whole.heads.trainable["kernel"])
        assert resumed.ledger == whole.ledger


def test_a_fit_whose_memory_runs_out_starts_again_from_the_same_weights(trained, tmp_path, monkeypatch):
    real, failed = Engine.superstep, []

    def superstep(engine, *args, **how):
        if args[2] == 3 and not failed:
            failed.append(True)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")
        return real(engine, *args, **how)

    monkeypatch.setattr(Engine, "superstep", superstep)
    result = trainer(tmp_path, steps_per_call=3).fit(Tuner(), data_of(TUNED, val=None), init_from=trained[[1]])
    assert failed
    assert_tuned(result.heads, [trained[1]] * HEADS)
    assert [row["init_from"] for row in result.ledger] == ["given heads, head 1"] * HEADS


def test_a_pretrained_nnx_model_starts_every_head_with_its_statistics_and_fresh_random_keys(tmp_path):
    model, seen = NormAndDropout(nnx.Rngs(7)), {}
    model.norm.mean[...] = jnp.arange(8.0)

    class Looks(hx.Callback):
        def on_fit_start(self, event):
            seen.update(named_arrays(event.trainer.heads))

    result = trainer(tmp_path, 1, Looks()).fit(
        Classifier("norm_dropout"), data_of(TUNED, "norm_dropout", val=None), init_from=model
    )
    of = {last: [value for name, value in seen.items() if last in name] for last in ("hidden.kernel", "mean", "key")}
    assert all(len(np.unique(key, axis=0)) == HEADS for key in of["key"]) and of["key"]
    np.testing.assert_array_equal(of["mean"], [np.tile(np.arange(8.0), (HEADS, 1))])
    np.testing.assert_array_equal(of["hidden.kernel"], [np.tile(model.hidden.kernel[...], (HEADS, 1, 1))])
    assert result.ledger[0]["init_from"] == "given NormAndDropout"


@pytest.mark.slow
def test_weights_of_another_precision_are_rounded_to_that_of_the_fit(trained, tmp_path):
    seen = []

    class Looks(hx.Callback):
        def on_fit_start(self, event):
            seen.append(event.trainer.heads.trainable["kernel"])

    trainer(tmp_path, 1, Looks(), precision="bf16-true").fit(Tuner(), data_of(TUNED, val=None), init_from=trained)
    np.testing.assert_array_equal(seen[0], trained.trainable["kernel"].astype(jnp.bfloat16))
