"""Complex parameters follow the direction of steepest descent, as a loop in NumPy does with gradients made by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads_under_test import QUIET, Curves

import hydrax as hx
from hydrax.callbacks import ExponentialMovingAverage, GradientNormMonitor
from hydrax.datamodules import ArrayDataModule
from hydrax.slices.rotation import index_batch
from hydrax.step.finite import all_finite, is_finite

RATE, MOMENTUM, BOUND, DECAY, STEPS, BATCH = 0.05, 0.5, 0.4, 0.8, 12, 4
SLICES = hx.Slices.prefix([3, 8, 12], 12)
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(12, 2)) + 1j * RNG.normal(size=(12, 2))).astype(np.complex64)
Y = (X @ np.array([1 + 2j, -0.5j], np.complex64) + 3).astype(np.complex64)


class Line(hx.HydraModule):
    """|x w + b - y|^2 with complex w and real b."""

    def configure_model(self, key):
        return {"w": jnp.zeros(2, jnp.complex64), "b": jnp.zeros(())}

    def configure_optimizers(self):
        return optax.sgd(RATE, momentum=MOMENTUM)

    def training_step(self, model, batch, ctx):
        rest = batch["x"] @ model["w"] + model["b"] - batch["y"]
        return rest.real**2 + rest.imag**2


def fit(module=Line, **settings):
    data = ArrayDataModule({"x": X, "y": Y}, slices=SLICES, batch_size=BATCH)
    trainer = hx.Trainer(**{"max_steps": STEPS, **QUIET, **settings})
    return trainer, trainer.fit(module(), data)


def by_hand(head, clip, micro=1):
    """Momentum by the gradient in the real and imaginary parts: d|r|^2 = 2 Re(conj(r) dr), so it is 2 r conj(x)."""
    w, b, mean = np.zeros(2, complex), 0.0, np.zeros(2, complex)
    fast_w, fast_b, norms = 0, 0, []
    for step in range(STEPS):
        found = []
        for number in range(micro):
            rows, mask = index_batch(SLICES, micro * step + number, batch_size=BATCH, seed=0)
            x, y = X[rows[head][mask[head]]], Y[rows[head][mask[head]]]
            rest = x @ w + b - y
            found.append(((2 * rest[:, None] * x.conj()).mean(axis=0), (2 * rest.real).mean()))
        g_w, g_b = (sum(parts) / micro for parts in zip(*found, strict=True))
        if clip == "norm":
            scale = min(1, BOUND / np.sqrt((abs(g_w) ** 2).sum() + g_b**2))
            g_w, g_b = g_w * scale, g_b * scale
        elif clip == "value":
            g_w = g_w.real.clip(-BOUND, BOUND) + 1j * g_w.imag.clip(-BOUND, BOUND)
            g_b = g_b.clip(-BOUND, BOUND)
        norms.append(np.sqrt((abs(g_w) ** 2).sum() + g_b**2))
        fast_w, fast_b = MOMENTUM * fast_w + g_w, MOMENTUM * fast_b + g_b
        w, b = w - RATE * fast_w, b - RATE * fast_b
        mean = DECAY * mean + (1 - DECAY) * w
    return w, b, mean, norms


@pytest.fixture(scope="module", params=["norm", "value"])
def clipped(request):
    how = {"gradient_clip_val": BOUND, "gradient_clip_algorithm": request.param}
    average, curves = ExponentialMovingAverage(DECAY), Curves()
    trainer, result = fit(callbacks=[average, GradientNormMonitor(), curves], **how)
    return request.param, result, average.heads(trainer), curves.by_name()["grad_norm"]


@pytest.mark.parametrize("head", range(3))
def test_a_complex_parameter_is_trained_as_a_pair_of_real_ones(clipped, head):
    clip, result, averaged, norms = clipped
    w, b, mean, expected_norms = by_hand(head, clip)
    np.testing.assert_allclose(result.heads.trainable["w"][head], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.heads.trainable["b"][head], b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(averaged.trainable["w"][head], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norms[head], expected_norms, rtol=1e-4)


def test_complex_gradients_are_accumulated():
    # Full batches only: micro-batches weigh the same however many live slots they have. An epoch has 3 of 4 rows.
    _, result = fit(accumulate_grad_batches=3)
    np.testing.assert_allclose(result.heads.trainable["w"][2], by_hand(2, None, micro=3)[0], rtol=1e-5, atol=1e-6)


def test_64_bits_hold_complex_parameters_in_complex128(tmp_path):
    _, result = fit(precision="64-true", max_steps=400)
    assert result.heads.trainable["w"].dtype == jnp.complex128
    # A solution that 32 bits cannot hold: y is exact in single precision only.
    np.testing.assert_allclose(result.heads.trainable["w"][2], [1 + 2j, -0.5j], atol=1e-6)
    loaded = hx.Heads.load(result.heads.save(tmp_path / "heads").parent, Line())
    np.testing.assert_array_equal(loaded.trainable["w"], result.heads.trainable["w"])


@pytest.mark.parametrize("size", [3, 64])  # short arrays are checked in another way than long ones
@pytest.mark.parametrize("value", [np.inf * 1j, complex(0, np.nan), complex(-np.inf, 1)])
def test_a_complex_number_that_is_not_finite_is_found(size, value):
    array = jnp.full(size, 1e30 + 1e30j, jnp.complex64)
    assert bool(is_finite(array)) and bool(all_finite({"a": array, "b": array}))
    broken = array.at[1].set(value)
    assert not is_finite(broken) and not all_finite({"a": array, "b": broken})


class ComplexLoss(Line):
    def training_step(self, model, batch, ctx):
        return batch["x"] @ model["w"]


class ComplexLog(Line):
    def training_step(self, model, batch, ctx):
        self.log("w", model["w"][0])
        return super().training_step(model, batch, ctx)


@pytest.mark.parametrize(
    ("module", "message"), [(ComplexLoss, "A loss is complex"), (ComplexLog, "A logged value is complex")]
)
def test_a_complex_number_where_a_real_one_is_meant_is_refused(module, message):
    with pytest.raises(hx.HydraxError, match=f"{message}: .*training_step"):
        fit(module)
