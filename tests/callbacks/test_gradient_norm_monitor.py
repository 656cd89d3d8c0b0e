"""GradientNormMonitor, against gradients of softmax regression by hand in NumPy."""

import numpy as np
import pytest
from heads_under_test import NUM_CLASSES, NUM_ROWS, PlainClassifier, data_of, rows_of, run

import hydrax as hx
from hydrax.callbacks import GradientNormMonitor
from hydrax.errors import ArgumentError, CallbackError

# No slice is longer than a batch, so each step takes all rows of each head.
SLICES = hx.Slices.window([0, 8, 20], [8, 5, 3], num_rows=NUM_ROWS)
STEPS, CLIP = 5, 0.2


class Keeps(hx.Callback):
    """The parameters before each step."""

    def __init__(self):
        self.steps = []

    def next_due(self, step):
        return step + 1

    def on_fit_start(self, event):
        self.on_train_steps_end(event)

    def on_train_steps_end(self, event):
        self.steps.append({name: np.asarray(leaf, np.float64) for name, leaf in event.trainer.heads.trainable.items()})


@pytest.fixture(scope="module", params=[None, CLIP])
def fitted(request):
    keeps = Keeps()
    how = {"max_steps": STEPS, "gradient_clip_val": request.param}
    found = run(PlainClassifier(), data_of(SLICES), callbacks=[GradientNormMonitor(by_group=True), keeps], **how)
    return found.arrays, keeps.steps[:STEPS], request.param


def gradients(parameters, head):
    rows = SLICES.rows(head)
    data = rows_of()
    x, y = data["x"][rows].astype(np.float64), np.eye(NUM_CLASSES)[data["y"][rows]]
    scores = np.exp(x @ parameters["kernel"][head] + parameters["bias"][head])
    error = (scores / scores.sum(axis=1, keepdims=True) - y) / len(rows)
    return {"kernel": x.T @ error, "bias": error.sum(axis=0)}


@pytest.mark.parametrize("head", range(3))
def test_the_norm_is_that_of_the_gradient_by_hand_after_clipping(fitted, head):
    logged, before, clip = fitted
    by_hand = [gradients(parameters, head) for parameters in before]
    norms = np.array([np.sqrt(sum((g**2).sum() for g in step.values())) for step in by_hand])
    scale = np.minimum(1, (clip or np.inf) / norms)
    np.testing.assert_allclose(logged["step.grad_norm"][head], norms * scale, rtol=1e-5)
    unclipped = "step.grad_norm" if clip is None else "step.grad_norm_before_clipping"
    np.testing.assert_allclose(logged[unclipped][head], norms, rtol=1e-5)
    of_kernel = [np.linalg.norm(step["kernel"]) for step in by_hand]
    np.testing.assert_allclose(logged["step.grad_norm/kernel"][head], of_kernel * scale, rtol=1e-5)


def test_it_was_clipped_somewhere(fitted):
    logged, _, clip = fitted
    assert (logged["step.grad_norm"] > CLIP * 1.01).any() == (clip is None)


def test_a_name_that_the_module_logs_itself_is_refused_before_anything_compiles():
    class Logs(PlainClassifier):
        def training_step(self, model, batch, ctx):
            self.log("grad_norm", 1.0)
            return super().training_step(model, batch, ctx)

    with pytest.raises(CallbackError, match=r"logged twice in one step: GradientNormMonitor\.metrics, 'grad_norm'"):
        run(Logs(), data_of(SLICES), callbacks=[GradientNormMonitor()], max_steps=1)


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        (1.0, r"have no names: Bad\.metrics\. Got float"),
        ({"x": np.ones(2)}, r"is not a scalar: Bad\.metrics, 'x'\. Got float32\[2\]"),
        ({"x": "text"}, r"is not a scalar: Bad\.metrics, 'x'\. Got str"),
    ],
)
def test_metrics_that_are_no_scalars_are_refused(answer, refusal):
    class Bad(hx.Callback):
        def metrics(self, state, info):
            return answer

    with pytest.raises(CallbackError, match=refusal):
        run(PlainClassifier(), data_of(SLICES), callbacks=[Bad()], max_steps=1)


def test_an_argument_that_is_no_bool_is_refused():
    with pytest.raises(ArgumentError, match="by_group"):
        GradientNormMonitor(by_group=1)
