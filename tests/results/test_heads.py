"""Heads: indexed, called, mapped, walked over many rows, saved and loaded."""

import copy
import pickle
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from heads_under_test import TinyNet

import hydrax as hx
from hydrax.datamodules import ArrayDataModule
from hydrax.step.model import split

HEADS, ROWS = 5, 8
X = np.random.default_rng(1).normal(size=(ROWS, 4)).astype(np.float32)


class Learner(hx.HydraModule):
    def __init__(self, lr=0.1, width=3):
        self.save_hyperparameters()

    def configure_model(self, key):
        return TinyNet(nnx.Rngs(key))

    def configure_optimizers(self):
        return optax.sgd(self.hparams.lr)

    def training_step(self, model, batch, ctx):
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])

    def predict_step(self, model, batch, ctx):
        return {"logits": model(batch["x"]), "row": ctx.rows}


@pytest.fixture(scope="module")
def trainer():
    """A Trainer after a fit of five heads, in chunks of four: with padding inside."""
    columns = {"x": X, "y": np.arange(ROWS) % 2}
    data = ArrayDataModule(columns, predict=columns, slices=hx.Slices.full(HEADS, ROWS), batch_size=3)
    trainer = hx.Trainer(max_steps=2, barebones=True)
    trainer.fit(Learner(lr=hx.PerHead(np.linspace(0.1, 0.5, HEADS))), data)
    return trainer


@pytest.fixture(scope="module")
def heads(trainer):
    return trainer.heads


@pytest.fixture(scope="module")
def outputs(heads):
    return np.asarray(heads(X))


def by_hand(heads, head):
    """The network in evaluation mode, in NumPy; flax's BatchNorm adds 1e-5 to the variance."""
    params, stats = (
        jax.tree.map(lambda a: np.asarray(a[head]), tree) for tree in (heads.trainable, heads.state["norm"])
    )
    hidden = X @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    normed = (hidden - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    return np.maximum(normed, 0) @ params["out"]["kernel"] + params["out"]["bias"]


def leaves_of(heads):
    """All arrays as NumPy; keys as the words they are made of."""
    typed = jax.tree.leaves((heads.trainable, heads.state))
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in typed
    ]


def assert_same_bits(first, second):
    for a, b in zip(leaves_of(first), leaves_of(second), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- one head, some heads, all heads


@pytest.mark.parametrize("head", [0, 3, HEADS - 1])
def test_a_head_is_the_ordinary_model_with_its_own_arrays(heads, head):
    model = heads[head]
    model.eval()
    assert isinstance(model, TinyNet)
    np.testing.assert_allclose(model(X), by_hand(heads, head), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", [-1, np.int32(HEADS - 1), np.array(HEADS - 1), jnp.array(HEADS - 1)], ids=repr)
def test_any_kind_of_int_names_a_head(heads, index):
    np.testing.assert_array_equal(heads[index].out.kernel[...], heads.trainable["out"]["kernel"][HEADS - 1])


@pytest.mark.parametrize(
    ("index", "ids"),
    [
        ([4, 1], [4, 1]),
        ([-1], [4]),
        ([2, 2], [2, 2]),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [4, 2, 0]),
        (np.array([False, True, False, False, True]), [1, 4]),
        ([True, False, False, False, True], [0, 4]),
    ],
    ids=repr,
)
def test_some_heads_are_heads_with_their_ids_and_arrays(heads, index, ids):
    some = heads[index]
    assert isinstance(some, hx.Heads)
    assert (some.ids.tolist(), len(some)) == (ids, len(ids))
    for picked, whole in zip(leaves_of(some), leaves_of(heads), strict=True):
        np.testing.assert_array_equal(picked, whole[ids])


def test_heads_are_walked_one_by_one(heads):
    kernels = [model.out.kernel[...] for model in heads]
    np.testing.assert_array_equal(np.stack(kernels), heads.trainable["out"]["kernel"])


def test_calling_heads_calls_each_model_in_evaluation_mode(heads, outputs):
    assert outputs.shape == (HEADS, ROWS, 2)
    for head in range(HEADS):
        np.testing.assert_allclose(outputs[head], by_hand(heads, head), rtol=1e-4, atol=1e-5)


def test_heads_under_vmap_are_one_head(heads, outputs):
    np.testing.assert_allclose(jax.vmap(lambda head: head(X))(heads), outputs, rtol=1e-5, atol=1e-6)


def test_heads_and_rows_are_mapped_together(heads, outputs):
    rows = np.stack([X + head for head in range(HEADS)])
    each = jax.vmap(lambda head, x: head(x))(heads, rows)
    np.testing.assert_allclose(each[0], outputs[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(each[2], heads(X + 2)[2], rtol=1e-5, atol=1e-6)


def test_a_tree_map_over_heads_gives_heads(heads):
    half = jax.tree.map(lambda a: a, heads)
    assert isinstance(half, hx.Heads)
    assert_same_bits(half, heads)
    assert half.ids.tolist() == heads.ids.tolist()


def test_the_leaves_of_heads_are_their_stacked_arrays(heads):
    assert {leaf.shape[0] for leaf in jax.tree.leaves(heads)} == {HEADS}
    assert len(jax.tree.leaves(heads)) == 10  # 6 parameters, mean and variance, key and count of the dropout


def test_their_repr_counts_heads_and_parameters(heads):
    assert repr(heads) == f"Heads(heads=5, parameters={4 * 3 + 3 + 3 + 3 + 3 * 2 + 2} each)"


# ---- many rows


@pytest.mark.parametrize("batch_size", [3, ROWS, 100])
def test_prediction_in_batches_is_prediction_in_one(heads, outputs, batch_size):
    found = heads.predict(X, batch_size=batch_size)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, outputs, rtol=1e-5, atol=1e-6)


def test_the_mean_over_heads_is_the_ensemble(heads, outputs):
    found = heads.predict(X, batch_size=3, reduce="mean")
    assert found.shape == (ROWS, 2)
    np.testing.assert_allclose(found, outputs.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_the_trainer_predicts_what_predict_step_returns_for_each_row_once(trainer, outputs):
    found = trainer.predict()
    np.testing.assert_array_equal(found["row"], np.tile(np.arange(ROWS), (HEADS, 1)))
    np.testing.assert_allclose(found["logits"], outputs, rtol=1e-5, atol=1e-6)


def test_the_trainers_mean_is_the_ensemble(trainer, outputs):
    found = trainer.predict(reduce="mean")
    np.testing.assert_allclose(found["logits"], outputs.mean(axis=0), rtol=1e-5, atol=1e-6)


# ---- on disk


def test_a_trainer_without_a_fit_predicts_with_the_heads_of_a_checkpoint(trainer, outputs, tmp_path):
    trainer.save_checkpoint(tmp_path)
    fresh = hx.Trainer(barebones=True)
    found = fresh.predict(trainer.module, trainer.datamodule, ckpt_path=tmp_path)
    np.testing.assert_allclose(found["logits"], outputs, rtol=1e-5, atol=1e-6)


@pytest.fixture
def module():
    return Learner(lr=hx.PerHead(np.ones(HEADS)))


def test_saved_heads_are_loaded_bit_for_bit(heads, module, tmp_path):
    heads.save(tmp_path / "heads")
    loaded = hx.Heads.load(tmp_path / "heads", module)
    assert_same_bits(loaded, heads)
    assert loaded.ids.tolist() == heads.ids.tolist()
    assert isinstance(loaded[0], TinyNet)


def test_some_heads_keep_their_ids_on_disk(heads, module, tmp_path):
    some = heads[[4, 1]]
    loaded = hx.Heads.load(some.save(tmp_path), module)
    assert loaded.ids.tolist() == [4, 1]
    assert_same_bits(loaded, some)


def test_saving_again_replaces_what_was_there(heads, module, tmp_path):
    heads.save(tmp_path)
    heads[[2]].save(tmp_path)
    assert hx.Heads.load(tmp_path, module).ids.tolist() == [2]
    assert len([folder for folder in tmp_path.iterdir() if folder.name.isdigit()]) == 1


def test_a_hundred_thousand_heads_are_loaded_within_two_seconds_and_one_of_them_within_one(heads, module, tmp_path):
    many = heads[np.arange(100_000) % HEADS]
    many.save(tmp_path / "many")
    began = time.process_time()
    loaded = hx.Heads.load(tmp_path / "many", module)
    between = time.process_time()
    one = hx.Heads.load(tmp_path / "many", module, head=99_999)
    assert (between - began < 2, time.process_time() - between < 1) == (True, True)  # of CPU; about 0.3 and 0.1
    np.testing.assert_array_equal(loaded.trainable["out"]["kernel"][3::HEADS][-1], heads.trainable["out"]["kernel"][3])
    np.testing.assert_array_equal(one.out.kernel[...], heads[4].out.kernel[...])


def test_heads_are_loaded_from_a_runs_checkpoint(trainer, heads, module, tmp_path):
    trainer.save_checkpoint(tmp_path / "run")
    assert_same_bits(hx.Heads.load(tmp_path / "run", module), heads)


def test_heads_of_another_module_are_refused_with_both_shapes(heads, tmp_path):
    class Wider(Learner):
        def configure_model(self, key):
            net = TinyNet(nnx.Rngs(key))
            net.out = nnx.Linear(3, 7, rngs=nnx.Rngs(key))
            return net

    heads.save(tmp_path)
    with pytest.raises(hx.CheckpointError, match=r"out\.bias\. Got float32\[5, 2\], expected float32\[5, 7\]"):
        hx.Heads.load(tmp_path, Wider())


def test_a_folder_without_heads_is_refused(tmp_path, module):
    with pytest.raises(hx.CheckpointError, match="There is no checkpoint"):
        hx.Heads.load(tmp_path, module)


# ---- load_from_checkpoint


@pytest.fixture(scope="module")
def saved(trainer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    trainer.save_checkpoint(folder)
    return folder


def test_a_module_class_loads_all_heads_of_a_runs_checkpoint_with_their_hyper_parameters(saved, heads):
    loaded = Learner.load_from_checkpoint(saved)
    assert_same_bits(loaded, heads)
    np.testing.assert_array_equal(loaded.hparams.lr.values, np.linspace(0.1, 0.5, HEADS))
    assert loaded.hparams.width == 3


def test_a_module_class_loads_one_head_as_its_model(saved, outputs):
    model = Learner.load_from_checkpoint(saved, head=3)
    assert isinstance(model, TinyNet)
    np.testing.assert_allclose(model(X), outputs[3], rtol=1e-5, atol=1e-6)


def test_heads_that_were_picked_are_loaded_with_their_own_hyper_parameters(heads, tmp_path):
    heads[[4, 1]].save(tmp_path)
    loaded = Learner.load_from_checkpoint(tmp_path)
    np.testing.assert_allclose(loaded.hparams.lr.values, [0.5, 0.2])
    assert loaded.ids.tolist() == [4, 1]


class WithArray(Learner):
    """Keeps an array, which a checkpoint does not hold as a hyper-parameter, and a base class's arguments."""

    def __init__(self, table):
        super().__init__(lr=0.5)
        self.save_hyperparameters()


@pytest.fixture
def folder_of_an_array_module(heads, tmp_path):
    module = WithArray(np.ones(2))
    hx.Heads(heads.trainable, heads.state, heads._aux.structure, heads.ids, module.hparams).save(tmp_path)
    return tmp_path


def test_an_argument_that_a_checkpoint_cannot_hold_is_asked_for(folder_of_an_array_module):
    with pytest.raises(hx.ModuleError, match=r"Got lr, width, expected 'table' too\. Fix: pass table="):
        WithArray.load_from_checkpoint(folder_of_an_array_module)


def test_an_argument_that_is_given_counts_and_those_of_a_base_class_are_left_to_it(folder_of_an_array_module, heads):
    assert_same_bits(WithArray.load_from_checkpoint(folder_of_an_array_module, table=np.zeros(2)), heads)


def test_an_argument_that_the_module_does_not_have_is_refused(saved):
    with pytest.raises(hx.ModuleError, match=r"Got 'rate', expected an argument of Learner.__init__: lr, width"):
        Learner.load_from_checkpoint(saved, rate=0.1)


def test_a_module_of_its_own_start_takes_no_arguments(heads, tmp_path):
    class Plain(hx.HydraModule):
        configure_model = Learner.configure_model

    hx.Heads(heads.trainable, heads.state, heads._aux.structure, heads.ids).save(tmp_path)
    assert_same_bits(Plain.load_from_checkpoint(tmp_path), heads)


def linear_heads(first_key):
    parts = [split(nnx.Linear(4, 2, rngs=nnx.Rngs(first_key + head))) for head in range(3)]
    trainable, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[part[:2] for part in parts])
    return hx.Heads(trainable, state, parts[0].structure, np.arange(3))


def test_another_librarys_serialiser_round_trips_heads(tmp_path):
    heads = linear_heads(0)
    eqx.tree_serialise_leaves(tmp_path / "heads.eqx", heads)
    loaded = eqx.tree_deserialise_leaves(tmp_path / "heads.eqx", like=linear_heads(10))
    assert isinstance(loaded, hx.Heads)
    assert_same_bits(loaded, heads)


# ---- copied and pickled


class Deep(Learner):
    def configure_model(self, key):
        return eqx.nn.MLP(4, 2, 3, 1, activation=lambda x: jax.nn.relu(x), key=key)

    def training_step(self, model, batch, ctx):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(batch["x"]), batch["y"])


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_a_result_can_be_copied_and_pickled(trainer, copy_of):
    result = trainer.result
    again = copy_of(result)
    np.testing.assert_array_equal(again.heads(X), result.heads(X))
    assert again.heads.ids.tolist() == result.heads.ids.tolist()
    assert again.ledger == result.ledger
    assert {name: value.tolist() for name, value in again.metrics.items()} == {
        name: value.tolist() for name, value in result.metrics.items()
    }


def test_heads_with_a_lambda_are_copied_and_refused_by_pickle_in_one_line():
    parts = split(Deep().configure_model(jax.random.key(0)))
    one = jax.tree.map(lambda a: a[None], tuple(parts[:2]))
    heads = hx.Heads(*one, parts.structure, np.zeros(1, np.int32))
    np.testing.assert_array_equal(copy.deepcopy(heads)[0](X[0]), heads[0](X[0]))
    with pytest.raises(hx.ArgumentError, match="Heads cannot be pickled: .*lambda.* Fix: write them with heads.save"):
        pickle.dumps(heads)
