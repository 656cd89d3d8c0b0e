"""`HydraModule.update`, the one way out: what a user writes there is what happens, to each head alone.

The expectations are loops over one model in plain JAX, which take the rows of a head and nothing else of Hydrax.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads_under_test import Classifier, PlainClassifier, data_of, differing, rows_of, run

import hydrax as hx
from hydrax.callbacks import GradientNormMonitor
from hydrax.slices.rotation import index_batch

STEPS, BATCH, RADIUS, RATE = 12, 8, 0.05, 0.1
LENGTHS = [40, 5, 17, 8, 30]
SLICES = hx.Slices.random_subset(LENGTHS, 40, seed=3)
ROWS = rows_of()


class ByHand(Classifier):
    """The ordinary step, written out."""

    def update(self, head, batch, ctx):
        _, gradients, head = head.gradient(self.training_step, batch, ctx)
        return head.apply(gradients)


class Sharpness(PlainClassifier):
    """Sharpness-aware minimisation: the gradient is taken where the loss is worst nearby. Foret et al., ICLR 2021."""

    def configure_optimizers(self):
        return optax.sgd(RATE, momentum=0.9)

    def update(self, head, batch, ctx):
        _, gradients, head = head.gradient(self.training_step, batch, ctx)
        norm = optax.tree.norm(gradients)
        self.log("norm", norm)
        near = jax.tree.map(lambda p, g: p + RADIUS * g / norm, head.trainable, gradients)
        _, gradients, _ = head.replace(trainable=near).gradient(self.training_step, batch, ctx, log=False)
        return head.apply(gradients)


class TwoPlayers(hx.HydraModule):
    """A generator of one number and a critic, each with a loss and an optimiser of its own."""

    def configure_model(self, key):
        return {"generator": jnp.array([0.5, -0.5]), "critic": jnp.array([0.1, 0.2])}

    def configure_optimizers(self):
        return optax.multi_transform(
            {"generator": optax.sgd(0.05), "critic": optax.sgd(0.2)}, {"generator": "generator", "critic": "critic"}
        )

    def critic_loss(self, model, batch, ctx):
        real, made = batch["x"][:, 0], made_of(model["generator"], batch["x"][:, 1])
        loss = jax.nn.softplus(-score(model["critic"], real)) + jax.nn.softplus(score(model["critic"], made))
        self.log("critic_loss", loss, on_epoch=True)
        return loss

    def generator_loss(self, model, batch, ctx):
        return jax.nn.softplus(-score(model["critic"], made_of(model["generator"], batch["x"][:, 1])))

    def update(self, head, batch, ctx):
        _, by_critic, head = head.gradient(self.critic_loss, batch, ctx)
        loss, by_generator, head = head.gradient(self.generator_loss, batch, ctx)
        self.log("generator_loss", loss)
        return head.apply({"generator": by_generator["generator"], "critic": by_critic["critic"]})


class Several(PlainClassifier):
    """Three gradient steps on each batch, in a scan of the user's own."""

    def configure_optimizers(self):
        return optax.sgd(RATE)

    def update(self, head, batch, ctx):
        def once(head, _):
            loss, gradients, head = head.gradient(self.training_step, batch, ctx, log=False)
            return head.apply(gradients), loss

        head, losses = jax.lax.scan(once, head, length=3)
        self.log("train_loss", losses[0], prog_bar=True)
        return head.replace(loss=losses[0])


def score(critic, values):
    return critic[0] * values + critic[1]


def made_of(generator, noise):
    return generator[0] + generator[1] * noise


def batches_of(place):
    """The rows that a head meets, step by step: those of live slots."""
    for step in range(STEPS):
        rows, mask = index_batch(SLICES[[place]], step, batch_size=BATCH, seed=0)
        yield {name: column[rows[0][mask[0]]] for name, column in ROWS.items()}


def fresh(place):
    """What `PlainClassifier.configure_model` gives for the documented key."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), place), np.uint32(2**32 - 1))
    return PlainClassifier().configure_model(key)


def cross_entropy(p, batch):
    logits = batch["x"] @ p["kernel"] + p["bias"][None]
    return -jax.nn.log_softmax(logits)[np.arange(len(batch["y"])), batch["y"]].mean()


def sharpness_alone(place, clip=None):
    p, norms = fresh(place), []
    velocity = jax.tree.map(jnp.zeros_like, p)
    for batch in batches_of(place):
        g = jax.grad(cross_entropy)(p, batch)
        norms.append(length(g))
        near = jax.tree.map(lambda p, g: p + RADIUS * g / norms[-1], p, g)  # noqa: B023
        g = jax.grad(cross_entropy)(near, batch)
        g = optax.tree.scale(1 if clip is None else min(1, clip / length(g)), g)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, g)
        p = jax.tree.map(lambda p, v: p - RATE * v, p, velocity)
    return p, norms


def length(tree):
    return float(np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(tree))))


def players_alone(place):
    generator, critic, losses = np.array([0.5, -0.5]), np.array([0.1, 0.2]), []
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    for batch in batches_of(place):
        real, noise = np.float64(batch["x"][:, 0]), np.float64(batch["x"][:, 1])
        made = generator[0] + generator[1] * noise
        of_real, of_made = score(critic, real), score(critic, made)
        losses.append((np.logaddexp(0, -of_real) + np.logaddexp(0, of_made)).mean())
        up, down = -sigmoid(-of_real), sigmoid(of_made)
        by_critic = np.array([(up * real + down * made).mean(), (up + down).mean()])
        outward = -sigmoid(-of_made) * critic[0]
        by_generator = np.array([outward.mean(), (outward * noise).mean()])
        generator, critic = generator - 0.05 * by_generator, critic - 0.2 * by_critic
    return {"generator": generator, "critic": critic}, losses


@pytest.fixture(scope="module")
def sharp():
    return run(Sharpness(), data_of(SLICES), max_steps=STEPS, callbacks=[GradientNormMonitor()])


@pytest.fixture(scope="module")
def players():
    return run(TwoPlayers(), data_of(SLICES), max_steps=STEPS)


@pytest.mark.parametrize("kind", ["mlp", "norm_dropout"])
def test_the_ordinary_step_written_by_hand_has_the_bits_of_the_ordinary_step(kind):
    ordinary = run(Classifier(kind), data_of(SLICES), max_steps=STEPS, gradient_clip_val=0.5)
    by_hand = run(ByHand(kind), data_of(SLICES), max_steps=STEPS, gradient_clip_val=0.5)
    assert differing(ordinary.arrays, by_hand.arrays) == []


@pytest.mark.parametrize("place", range(len(LENGTHS)))
def test_two_gradients_a_step_are_those_of_a_loop_by_hand(sharp, place):
    parameters, norms = sharpness_alone(place)
    np.testing.assert_allclose(sharp.arrays["step.norm"][place], norms, rtol=1e-4)
    for name, wanted in parameters.items():
        np.testing.assert_allclose(sharp.arrays[f"trainable.{name}"][place], wanted, rtol=1e-4, atol=1e-6)


def test_each_head_s_own_gradient_is_clipped_where_the_optimiser_gets_it():
    clipped = run(Sharpness(), data_of(SLICES), max_steps=STEPS, gradient_clip_val=0.3)
    np.testing.assert_allclose(
        clipped.arrays["trainable.kernel"][1], sharpness_alone(1, clip=0.3)[0]["kernel"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("place", range(len(LENGTHS)))
def test_two_losses_for_two_parts_are_those_of_a_loop_by_hand(players, place):
    parts, losses = players_alone(place)
    np.testing.assert_allclose(players.arrays["step.critic_loss_step"][place], losses, rtol=1e-4)
    for name, wanted in parts.items():
        np.testing.assert_allclose(players.arrays[f"trainable.{name}"][place], wanted, rtol=1e-4, atol=1e-6)


def test_what_an_update_logs_is_reported_and_train_loss_only_where_training_step_is_asked(sharp, players):
    logged = {name for name in players.arrays if name.startswith(("step.", "latest."))}
    assert {"step.critic_loss_step", "step.generator_loss", "latest.critic_loss_epoch"} <= logged
    assert "step.train_loss" not in logged
    assert sharp.arrays["step.train_loss"].shape == (len(LENGTHS), STEPS)


def test_several_steps_in_a_scan_are_those_of_a_loop_by_hand():
    found = run(Several(), data_of(SLICES), max_steps=STEPS)
    p = fresh(2)
    for batch in batches_of(2):
        for _ in range(3):
            p = jax.tree.map(lambda p, g: p - RATE * g, p, jax.grad(cross_entropy)(p, batch))
    np.testing.assert_allclose(found.arrays["trainable.kernel"][2], p["kernel"], rtol=1e-4, atol=1e-6)


def test_a_head_alone_has_the_bits_it_has_among_others(sharp):
    alone = run(
        Sharpness(), data_of(SLICES[[1]]), max_steps=STEPS, callbacks=[GradientNormMonitor()], limit_train_batches=5
    )
    among = run(Sharpness(), data_of(SLICES), max_steps=STEPS, callbacks=[GradientNormMonitor()], limit_train_batches=5)
    names = [name for name in alone.arrays if name.startswith(("trainable", "opt_state", "callbacks"))]
    assert differing({n: alone.arrays[n] for n in names}, {n: among.of(1)[n] for n in names}) == []


def test_a_resumed_fit_has_the_bits_of_an_unbroken_one(sharp, tmp_path):
    class Saves(hx.Callback):
        def on_fit_end(self, event):
            event.trainer.save_checkpoint(tmp_path)

    run(Sharpness(), data_of(SLICES), max_steps=7, callbacks=[GradientNormMonitor(), Saves()])
    resumed = run(Sharpness(), data_of(SLICES), tmp_path, max_steps=STEPS, callbacks=[GradientNormMonitor()])
    kept = {n: a for n, a in sharp.arrays.items() if not n.startswith("step.")}
    assert differing(kept, {n: a for n, a in resumed.arrays.items() if n in kept}) == []


def test_a_callback_in_the_program_sees_what_was_applied_and_all_that_changed():
    class Sees(hx.Callback):
        def init(self, head):
            return {"gradient": jnp.zeros(()), "moved": jnp.zeros(()), "loss": jnp.zeros(())}

        def on_step(self, state, info):
            moved = info.updates["kernel"].sum()
            return {"gradient": info.gradients["kernel"].sum(), "moved": moved, "loss": info.loss}

    sees = Sees()
    found = run(Several(), data_of(SLICES), max_steps=1, callbacks=[sees])
    seen = found.trainer.callback_state(sees)
    [batch] = [next(batches_of(0))]
    first, p, gradient = fresh(0), fresh(0), None
    for _ in range(3):
        gradient = jax.grad(cross_entropy)(p, batch)
        p = jax.tree.map(lambda p, g: p - RATE * g, p, gradient)
    np.testing.assert_allclose(seen["gradient"][0], gradient["kernel"].sum(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen["moved"][0], (p["kernel"] - first["kernel"]).sum(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen["loss"][0], cross_entropy(first, batch), rtol=1e-5)


def test_a_head_that_its_update_makes_infinite_is_quarantined_alone(sharp):
    class Bursts(Sharpness):
        def update(self, head, batch, ctx):
            after = super().update(head, batch, ctx)
            bad = (ctx.head == 2) & (ctx.step == 5)
            return after.replace(trainable=jax.tree.map(lambda p: jnp.where(bad, jnp.inf, p), after.trainable))

    found = run(Bursts(), data_of(SLICES), max_steps=STEPS, callbacks=[GradientNormMonitor()])
    [(head, fault)] = found.trainer.quarantined.items()
    assert (head, fault.step, fault.leaf.partition("[")[0]) == (2, 5, "parameter")
    others = [0, 1, 3, 4]
    names = [name for name in sharp.arrays if name.startswith(("trainable", "opt_state"))]
    assert differing({n: found.of(others)[n] for n in names}, {n: sharp.of(others)[n] for n in names}) == []


# ---- what cannot be -------------------------------------------------------------------------------------------------


def updating(update):
    return type("Mine", (PlainClassifier,), {"update": update})()


def nothing(self, head, batch, ctx):
    return head.trainable


def what_it_got(self, head, batch, ctx):
    _, gradients, head = head.gradient(self.training_step, batch, ctx)
    head.apply(gradients)
    return head


def a_part_of_the_gradients(self, head, batch, ctx):
    _, gradients, head = head.gradient(self.training_step, batch, ctx)
    return head.apply({"bias": gradients["bias"]})


def another_shape(self, head, batch, ctx):
    return head.replace(trainable={**head.trainable, "bias": jnp.zeros(7)})


def another_tree(self, head, batch, ctx):
    return head.replace(opt_state=())


def a_mistake(self, head, batch, ctx):
    return head.apply(batch["z"])


def twice(self, head, batch, ctx):
    _, gradients, head = head.gradient(self.training_step, batch, ctx)
    _, gradients, head = head.gradient(self.training_step, batch, ctx)
    return head.apply(gradients)


def no_loss(self, head, batch, ctx):
    def accuracy(model, batch, ctx):
        return self.logits(model, batch["x"]).argmax(-1) == batch["y"]

    return head.apply(head.gradient(accuracy, batch, ctx)[1])


def over_padding(self, head, batch, ctx):
    def mean_loss(model, batch, ctx):
        return self.training_step(model, batch, ctx).mean()

    return head.apply(head.gradient(mean_loss, batch, ctx)[1])


@pytest.mark.parametrize(
    ("update", "error", "parts"),
    [
        (nothing, hx.ModuleError, ["An update returned no head: Mine.update. Got dict"]),
        (
            another_shape,
            hx.ModuleError,
            ["changes the form of an array: trainable['bias']", "float32[7], expected float32[3]"],
        ),
        (another_tree, hx.ModuleError, ["changes the structure of a head: its opt_state"]),
        (a_mistake, hx.ModuleError, ["Mine.update got x float32[8, 6], y int32[8] for one head. Got KeyError: 'z'"]),
        (twice, hx.ModuleError, ["self.log('accuracy') in update. Got a second", "log=False"]),
        (no_loss, hx.ModuleError, ["A loss has no gradient: accuracy. Got dtype bool"]),
        (over_padding, hx.ModuleError, ["A scalar loss would count padding: mean_loss"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_an_update_must_not_do_is_said_before_anything_compiles(update, error, parts):
    with pytest.raises(error) as found:
        run(updating(update), data_of(SLICES), max_steps=STEPS)
    assert [part for part in parts if part not in str(found.value)] == []


def test_an_update_sees_one_batch_so_none_are_gathered():
    with pytest.raises(hx.ArgumentError, match=r"accumulate_grad_batches. Got 2, expected 1 beside Sharpness.update"):
        run(Sharpness(), data_of(SLICES), max_steps=STEPS, accumulate_grad_batches=2)
