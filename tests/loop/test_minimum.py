"""min_steps and min_epochs: before them no callback stops a head or ends a fit, and what one asks for is forgotten."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of

import hydrax as hx

SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)  # 5 batches of 8 an epoch


class Stops(hx.Callback):
    """Asks at some steps for the stop of head 1; keeps when heads were live."""

    def __init__(self, steps):
        self.steps, self.live = steps, {}

    def next_due(self, step):
        return step + 1

    def on_train_steps_end(self, event):
        self.live[event.step] = event.live.tolist()
        return hx.Control(stop=np.arange(3) == 1) if event.step in self.steps else None


class Ends(hx.Callback):
    """Asks at some steps for the end of the fit."""

    def __init__(self, steps):
        self.steps = steps

    def next_due(self, step):
        return step + 1

    def on_train_steps_end(self, event):
        if event.step in self.steps:
            event.trainer.should_stop = True


def fit(callback, **how):
    return hx.Trainer(chunk=4, callbacks=[callback], **{"max_steps": 12, **QUIET, **how}).fit(
        PlainClassifier(), data_of(SLICES)
    )


@pytest.mark.parametrize(
    ("asked", "how", "stopped_after"),
    [
        (range(2, 13), {}, 2),
        (range(2, 13), {"min_steps": 6}, 6),
        (range(2, 13), {"min_epochs": 2}, 10),
        (range(2, 13), {"min_steps": 11, "min_epochs": 2}, 11),
        ([2, 3], {"min_steps": 6}, 12),
    ],
    ids=["none", "steps", "epochs", "the later one", "forgotten"],
)
def test_a_head_stops_at_the_first_stop_that_comes_late_enough(asked, how, stopped_after):
    stops = Stops(asked)
    fit(stops, **how)
    assert [step for step, live in stops.live.items() if live[1]] == list(range(1, stopped_after + 1))


@pytest.mark.parametrize(("asked", "steps"), [(range(2, 13), 6), ([2], 12)], ids=["asked again", "forgotten"])
def test_a_fit_ends_at_the_first_end_that_comes_late_enough(asked, steps):
    assert fit(Ends(asked), min_steps=6).step == steps


def test_a_head_that_may_not_stop_is_not_given_its_snapshot_back():
    class Restores(Stops):
        def on_train_steps_end(self, event):
            keep, stop = np.full(3, event.step == 1), np.full(3, event.step == 3)
            self.live[event.step] = np.asarray(event.trainer.heads.trainable["kernel"])
            return hx.Control(stop=stop, restore=stop, snapshot=keep)

    early, late = Restores([]), Restores([])
    fit(early, min_steps=5, max_steps=5)
    fit(late, max_steps=5)
    assert not np.array_equal(early.live[4], early.live[1])
    assert 4 not in late.live


def test_matmul_precision_reaches_the_products(tmp_path):
    found = []

    class Looks(PlainClassifier):
        def logits(self, model, x):
            found.append(jax.make_jaxpr(jnp.dot)(x, model["kernel"]).eqns[0].params["precision"])
            return super().logits(model, x)

    hx.Trainer(max_steps=1, matmul_precision="highest", default_root_dir=tmp_path, **QUIET).fit(
        Looks(), data_of(SLICES)
    )
    assert {str(one) for pair in found for one in pair} == {"HIGHEST"}
