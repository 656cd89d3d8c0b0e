"""The contract of every data module in the folder. A new one needs an entry in FACTORIES."""

import inspect
import re
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hydrax as hx
import hydrax.datamodules
from hydrax.datamodules import (
    ArrayDataModule,
    CIFAR10DataModule,
    MNISTDataModule,
    SourceDataModule,
    TabularDataModule,
    TextDataModule,
)

FORM = re.compile(r"\S.*: .+\. Got .+, expected .+\. Fix: .+\.", re.DOTALL)
ROWS, HEADS = 12, 2
NAMES = sorted(
    name for name, value in vars(hydrax.datamodules).items() if inspect.isclass(value) and value is not hx.DataModule
)


# ---- a tiny instance of each


def slices(dataset):
    """Slices of two heads, for training and validation: all rows, and the first row."""
    num_rows = len(jax.tree.leaves(dataset)[0])
    return hx.Slices.prefix([num_rows, 1], num_rows)


HOW = {"slices": slices, "val_slices": slices, "batch_size": 4}


def random_bytes(num_bytes: int, high: int = 256) -> bytes:
    return np.random.default_rng(0).integers(0, high, num_bytes, np.uint8).tobytes()


def in_memory(kind: type[hx.DataModule]) -> hx.DataModule:
    rows = {"x": np.linspace(-1, 1, ROWS * 3, dtype=np.float32).reshape(ROWS, 3), "y": np.arange(ROWS) % 3}
    given = slices(rows)
    return kind(rows, val=rows, test=rows, predict=rows, **{**HOW, "slices": given, "val_slices": given})


def arrays(folder: Path) -> hx.DataModule:
    return in_memory(ArrayDataModule)


def source(folder: Path) -> hx.DataModule:
    return in_memory(SourceDataModule)


def cifar10(folder: Path) -> hx.DataModule:
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        (folder / name).write_bytes(random_bytes(3 * 3073, high=10))
    return CIFAR10DataModule(folder, val_rows=3, **HOW)


def mnist(folder: Path) -> hx.DataModule:
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 2051, ROWS, 28, 28) + random_bytes(ROWS * 28 * 28)
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, ROWS) + random_bytes(ROWS, high=10))
    return MNISTDataModule(folder, val_rows=3, **HOW)


def tabular(folder: Path) -> hx.DataModule:
    lines = ["a,b,y", *(f"{row},{('even', 'odd')[row % 2]},{row / 4}" for row in range(ROWS))]
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text("\n".join(lines))
    return TabularDataModule(folder / "train.csv", target="y", test_path=folder / "test.csv", val_rows=3, **HOW)


def text(folder: Path) -> hx.DataModule:
    for name in ("train.txt", "test.txt"):
        (folder / name).write_bytes(bytes(range(97, 123)) * 3)
    how = {"block_length": 5, "val_fraction": 0.3, "test_paths": folder / "test.txt"}
    return TextDataModule(folder / "train.txt", **how, **HOW)


FACTORIES = {
    "ArrayDataModule": arrays,
    "CIFAR10DataModule": cifar10,
    "MNISTDataModule": mnist,
    "SourceDataModule": source,
    "TabularDataModule": tabular,
    "TextDataModule": text,
}
# For those that read files: one file that training needs, and one that the test needs.
FILES = {
    "CIFAR10DataModule": ("data_batch_5.bin", "test_batch.bin"),
    "MNISTDataModule": ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"),
    "TabularDataModule": ("train.csv", "test.csv"),
    "TextDataModule": ("train.txt", "test.txt"),
}


@pytest.fixture(params=NAMES)
def data(request, tmp_path):
    return FACTORIES[request.param](tmp_path)


@pytest.fixture(params=sorted(FILES))
def name_and_data(request, tmp_path):
    return request.param, FACTORIES[request.param](tmp_path)


def all_datasets(data):
    return {stage: data.dataset(stage) for stage in ("train", "val", "test", "predict")}


# ---- the contract


def test_every_data_module_of_the_folder_is_under_this_contract():
    assert NAMES == sorted(FACTORIES)
    assert NAMES == sorted(hydrax.datamodules.__all__)


def test_it_is_a_data_module(data):
    assert isinstance(data, hx.DataModule)


def test_every_column_of_a_dataset_has_an_entry_for_each_row(data):
    data.setup("fit")
    lengths = {stage: {len(column) for column in jax.tree.leaves(rows)} for stage, rows in all_datasets(data).items()}
    assert [len(found) for found in lengths.values()] == [1] * 4
    assert min(min(found) for found in lengths.values()) >= 1


def test_the_datasets_of_all_stages_have_the_same_columns_dtypes_and_shapes_of_rows(data):
    forms = [
        jax.tree.map(lambda column: (np.dtype(column.dtype), column.shape[1:]), rows)
        for rows in all_datasets(data).values()
    ]
    assert forms == [forms[0]] * 4


def test_slices_fit_the_dataset(data):
    assert data.slices().num_rows == len(jax.tree.leaves(data.train_dataset())[0])
    assert data.slices().num_heads == HEADS


def test_validation_slices_fit_the_validation_dataset(data):
    assert data.val_slices().num_rows == len(jax.tree.leaves(data.val_dataset())[0])
    assert data.val_slices().num_heads == HEADS


def test_asking_again_gives_the_same(data):
    data.setup("fit")
    first, first_slices = all_datasets(data), (data.slices(), data.val_slices())
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    jax.tree.map(np.testing.assert_array_equal, first, all_datasets(data))
    assert first_slices == (data.slices(), data.val_slices())


def test_preparing_and_reading_change_no_file(name_and_data, tmp_path):
    data = name_and_data[1]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    data.prepare_data()
    all_datasets(data)
    data.teardown("fit")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_training_needs_no_file_of_the_test(name_and_data, stage, tmp_path):
    name, data = name_and_data
    (tmp_path / FILES[name][1]).unlink()
    data.setup(stage)
    assert data.train_dataset() is not None


@pytest.mark.parametrize(("stage", "place"), [("fit", 0), ("validate", 0), ("test", 1), ("predict", 1)])
def test_a_missing_file_is_named_when_its_stage_begins(name_and_data, stage, place, tmp_path):
    name, data = name_and_data
    (tmp_path / FILES[name][place]).unlink()
    with pytest.raises(hx.DataError, match=FORM) as raised:
        data.setup(stage)
    assert "A file is missing" in str(raised.value)
    assert str(tmp_path / FILES[name][place]) in str(raised.value)


def test_a_file_that_comes_later_is_found(name_and_data, tmp_path):
    name, data = name_and_data
    path = tmp_path / FILES[name][0]
    path.rename(path.with_name("away"))
    with pytest.raises(hx.DataError):
        data.setup("fit")
    path.with_name("away").rename(path)
    data.setup("fit")


def test_what_was_read_is_not_read_again(name_and_data, tmp_path):
    name, data = name_and_data
    data.setup("fit")
    (tmp_path / FILES[name][0]).unlink()
    data.setup("validate")
    assert data.train_dataset() is data.train_dataset()


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_every_data_module_are_taken_and_a_wrong_one_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setitem(HOW, "eval_batch_size", 7)
    assert FACTORIES[name](tmp_path).eval_batch_size == 7
    monkeypatch.setitem(HOW, "batchsize", 7)
    with pytest.raises(hx.ArgumentError, match="the nearest name is batch_size"):
        FACTORIES[name](tmp_path)


def test_it_can_be_printed(data):
    assert type(data).__name__ in str(data)


@pytest.mark.parametrize("kind", [ArrayDataModule, SourceDataModule])
@pytest.mark.parametrize("val_slices", [hx.Slices.full(2, ROWS), slices], ids=["slices", "function"])
def test_validation_slices_without_rows_to_validate_on_are_refused(kind, val_slices):
    with pytest.raises(hx.ArgumentError, match=FORM) as raised:
        kind(np.zeros(ROWS), slices=slices, val_slices=val_slices)
    assert f"{kind.__name__}(val_slices=)" in str(raised.value)


@pytest.mark.parametrize("kind", [CIFAR10DataModule, MNISTDataModule])
@pytest.mark.parametrize("folder", [None, 5, b"data", ["data"]])
def test_a_folder_that_is_no_path_is_refused_at_once(kind, folder):
    with pytest.raises(hx.ArgumentError, match=FORM) as raised:
        kind(folder, slices=slices)
    assert f"{kind.__name__}(folder=)" in str(raised.value)


class LinearHead(hx.HydraModule):
    """Maps all columns of a row, whatever they are, to two numbers."""

    def __init__(self, width):
        self.save_hyperparameters()

    def configure_model(self, key):
        return nnx.Linear(self.hparams.width, 2, rngs=nnx.Rngs(key))

    def configure_optimizers(self):
        return optax.sgd(1e-6)

    def predict_step(self, model, batch, ctx):
        columns = [column.reshape(len(column), -1).astype(jnp.float32) for column in jax.tree.leaves(batch)]
        return model(jnp.concatenate(columns, axis=1))

    def training_step(self, model, batch, ctx):
        return (self.predict_step(model, batch, ctx) ** 2).mean(-1)

    validation_step = test_step = training_step


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("make", [cifar10, mnist])
def test_the_line_that_the_docstring_gives_keeps_images_in_bfloat16_through_the_model(make, precision, tmp_path):
    data, seen = make(tmp_path), []
    (line,) = re.findall(r'`(batch\["image"\]\.astype.*?)`', type(data).__doc__)

    class Watched(LinearHead):
        def predict_step(self, model, batch, ctx):
            image = eval(line, {"jnp": jnp}, {"batch": batch})
            logits = model(image.reshape(len(image), -1))
            seen.extend([image.dtype, logits.dtype])
            return logits

    hx.Trainer(max_steps=1, barebones=True, precision=precision).fit(
        Watched(data.train_dataset()["image"][0].size), data
    )
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("make", [cifar10, mnist])
def test_the_line_that_the_docstring_gives_is_exact_to_one_rounding(make, tmp_path):
    (line,) = re.findall(r'`(batch\["image"\]\.astype.*?)`', type(make(tmp_path)).__doc__)
    image = np.arange(256, dtype=np.uint8)
    expected = (image / 255).astype(jnp.bfloat16)
    np.testing.assert_array_equal(eval(line, {"jnp": jnp}, {"batch": {"image": jnp.asarray(image)}}), expected)


def test_it_is_trained_on_validated_tested_and_predicted(data):
    width = sum(column[0].size for column in jax.tree.leaves(data.train_dataset()))
    trainer = hx.Trainer(max_steps=2, barebones=True)
    module = LinearHead(width)
    metrics = trainer.fit(module, data).metrics | trainer.test()
    assert [np.isfinite(metrics[name]).tolist() for name in ("val_loss", "test_loss")] == [[True] * HEADS] * 2
    assert trainer.predict().shape == (HEADS, len(jax.tree.leaves(data.predict_dataset())[0]), 2)
