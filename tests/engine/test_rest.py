"""Heads that stop cost nothing for long: they are moved out of the way, and no bit of any head changes."""

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, differing, run

import hydrax as hx

HEADS, STEPS = 8, 20
RATES = np.linspace(1e-3, 2e-2, HEADS)
# Each has five batches, so that an epoch is the same for all of them and for one alone.
SLICES = hx.Slices.random_subset(np.linspace(33, 40, HEADS).astype(int), NUM_ROWS, seed=1)


class Stops(hx.Callback):
    """Stops given heads at given steps, where it can be sure of the step."""

    def __init__(self, at):
        self.at = at  # head -> step

    def next_due(self, step):
        return min((due for due in self.at.values() if due > step), default=None)

    def on_train_steps_end(self, event):
        ids = self.heads if hasattr(self, "heads") else np.arange(event.live.size)
        return hx.Control(stop=np.array([self.at.get(int(head), STEPS + 1) <= event.step for head in ids]))


AT = {1: 4, 2: 4, 4: 4, 6: 9, 7: 9, 0: 14}


def fit(heads=slice(None), at=AT, **how):
    stops = Stops(at)
    stops.heads = SLICES[heads].ids
    module = PlainClassifier("mlp", hx.PerHead(RATES[heads]))
    return run(module, data_of(SLICES[heads]), callbacks=[stops], **{"max_steps": STEPS, "chunk": 1, **how})


def at_the_end(arrays):
    return {name: array for name, array in arrays.items() if not name.startswith("step.")}


@pytest.fixture(scope="module")
def many():
    return fit()


def test_chunks_that_run_became_fewer(many):
    # Heads 3 and 5 are left.
    assert sum(block.num_chunks for block in many.trainer._run.planned.engine.layout.blocks) == 2


@pytest.mark.parametrize("head", [0, 1, 3, 6])
def test_a_head_is_what_it_is_alone_whoever_rested_beside_it(many, head):
    # A head alone ends its fit where it stops.
    assert differing(at_the_end(many.of(head)), at_the_end(fit([head]).arrays)) == []


def test_a_head_that_stopped_keeps_its_last_logged_value(many):
    losses = many.arrays["step.train_loss"]
    assert (losses[1, 4:] == losses[1, 3]).all()
    assert len(set(losses[3])) == STEPS


@pytest.mark.parametrize("how", [{"devices": 1}, {"chunk": 3, "devices": 1}], ids=str)
def test_a_run_without_a_validation_to_wait_for_rests_its_heads_too(how):
    found = fit(limit_val_batches=0, **how)
    layout = found.trainer._run.planned.engine.layout
    assert sum(block.num_chunks for block in layout.blocks) * layout.chunk < HEADS
    assert found.result.live.tolist() == [head not in AT for head in range(HEADS)]


def test_snapshots_move_with_their_heads():
    class Keeps(hx.Callback):
        def next_due(self, step):
            return 3 if step < 3 else None

        def on_train_steps_end(self, event):
            return hx.Control(snapshot=np.ones(HEADS, bool)) if event.step == 3 else None

    keeps, stops = Keeps(), Stops(AT)
    late = run(
        PlainClassifier("mlp", hx.PerHead(RATES)), data_of(SLICES), callbacks=[keeps, stops], max_steps=STEPS, chunk=1
    )
    kept = late.trainer.snapshots_of(keeps)
    early = run(PlainClassifier("mlp", hx.PerHead(RATES)), data_of(SLICES), max_steps=3, chunk=1).result.heads
    np.testing.assert_array_equal(kept.trainable["kernel"], early.trainable["kernel"])


def test_a_resumed_run_rests_its_heads_again_and_ends_with_the_same_bits(many, tmp_path):
    class Saves(hx.Callback):
        def next_due(self, step):
            return 12 if step < 12 else None

        def on_train_steps_end(self, event):
            if event.step == 12:
                event.trainer.save_checkpoint(tmp_path)

    stops = Stops(AT)
    module = PlainClassifier("mlp", hx.PerHead(RATES))
    how = {"max_steps": STEPS, "chunk": 1}
    run(module, data_of(SLICES), callbacks=[stops, Saves()], **how)
    again = run(module, data_of(SLICES), ckpt_path=tmp_path / "12", callbacks=[Stops(AT), Saves()], **how)
    assert differing(at_the_end(again.arrays), at_the_end(many.arrays)) == []
