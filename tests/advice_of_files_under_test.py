"""Advice of datasets, of modules that read files, and the rest in the order of the files."""

import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from advice_of_fits_under_test import BOTH, SHORT, Line, arrays, data, fit, no_rows, on, run, some_heads, with_methods
from advice_of_slices_under_test import HEADS, ROWS, S
from flax import nnx

import hydrax as hx
from hydrax import callbacks
from hydrax.datamodules import (
    ArrayDataModule,
    CIFAR10DataModule,
    MNISTDataModule,
    SourceDataModule,
    TabularDataModule,
    TextDataModule,
)

# ---- data


def held_as(**methods):
    return lambda: run(type("Mine", (ArrayDataModule,), methods)(arrays(), slices=BOTH, batch_size=2))


def setting(name, wrong, right):
    return f"Invalid argument: ArrayDataModule.{name}", on(**{name: wrong}), on(**{name: right})


OBJECTS = [(np.ones(3, np.float32), np.float32(1))] * ROWS
MASKED = np.ma.array(np.ones(ROWS, np.float32), mask=[1, 0, 0, 0, 0, 0])

DATA = [
    setting("batch_size", 0, 32),
    setting("eval_batch_size", 0, 32),
    setting("read_threads", 0, 4),
    setting("read_processes", -1, 0),
    setting("small_slices", "pad", "mask"),
    setting("check_finite", "no", "warn"),
    setting("residence", "disk", "auto"),
    ("A dataset has no columns", on({}), on(arrays())),
    ("Invalid number of rows", on({"x": np.ones((0, 3))}), on(arrays())),
    ("Columns differ in length", on(arrays(y=np.ones(5, np.float32))), on(arrays(y=np.ones(ROWS, np.float32)))),
    ("A column is not an array", on(arrays(y=[1.0] * ROWS)), on(arrays(y=np.asarray([1.0] * ROWS)))),
    ("A column has an unsupported dtype", on(arrays(z=np.array(["a"] * ROWS))), on(arrays(z=np.zeros(ROWS)))),
    ("A column is masked", on(arrays(y=MASKED)), on(arrays(y=MASKED.filled(0)))),
    (
        "A column holds NaN or Inf",
        on(arrays(z=np.full(ROWS, np.nan)), check_finite="raise"),
        on(arrays(z=np.full(ROWS, np.nan)), check_finite="off"),
    ),
    ("A dataset is not a pytree", on({**arrays(), 1: np.ones(ROWS)}), on({**arrays(), "1": np.ones(ROWS)})),
    ("An integer does not fit in 32 bits", on(arrays(z=np.full(ROWS, 2**40))), on(arrays(z=np.arange(ROWS)))),
    ("A dataset is missing", lambda: run(hx.DataModule()), held_as(train_dataset=lambda self: arrays())),
    ("A dataset is missing", held_as(train_dataset=no_rows), held_as(train_dataset=lambda self: arrays())),
    ("The slices are missing", on(slices=None), held_as(slices=lambda self: S.full(HEADS, ROWS))),
    ("Slices have the wrong type", on(slices=[[0], [1]]), on(slices=S.from_indices([[0], [1]], ROWS))),
    ("Slices and dataset differ in rows", on(slices=S.full(HEADS, 5)), on(slices=S.full(HEADS, ROWS))),
    (
        "Slices have the wrong number of heads",
        on(val=arrays(), val_slices=S.full(3, ROWS)),
        on(val=arrays(), val_slices=S.full(HEADS, ROWS)),
    ),
    ("Invalid argument: ArrayDataModule(val_slices=)", on(val_slices=BOTH), on(val=arrays(), val_slices=BOTH)),
    (
        'sampling="shared" requires slices without repeated rows',
        lambda: run(data(slices=S.bootstrap(HEADS, ROWS)), sampling="shared"),
        lambda: run(data(slices=S.bootstrap(HEADS, ROWS)), sampling="own"),
    ),
    ("Index batches have the wrong type", held_as(index_dataset=lambda self, seed=0: []), held_as()),
    (
        "Invalid argument: SourceDataModule(train=)",
        lambda: SourceDataModule(None, slices=BOTH),
        lambda: SourceDataModule(OBJECTS, slices=BOTH),
    ),
    (
        "Invalid argument: SourceDataModule(slices=)",
        lambda: SourceDataModule(OBJECTS, slices=3),
        lambda: SourceDataModule(OBJECTS, slices=S.full(HEADS, ROWS)),
    ),
    (
        "Invalid argument: SourceDataModule(val_slices=)",
        lambda: SourceDataModule(OBJECTS, slices=BOTH, val_slices=BOTH),
        lambda: SourceDataModule(OBJECTS, slices=BOTH, val=OBJECTS, val_slices=BOTH),
    ),
    (
        "Invalid argument: SourceDataModule(decode=)",
        lambda: SourceDataModule("a.array_record", slices=BOTH),
        lambda: SourceDataModule("a.array_record", slices=BOTH, decode=lambda record: {"x": np.ones(3)}),
    ),
    (
        "Invalid argument: SourceDataModule(decode=)",
        lambda: SourceDataModule(OBJECTS, slices=BOTH, decode=len),
        lambda: SourceDataModule(OBJECTS, slices=BOTH),
    ),
]

# ---- data modules that read files


def written(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(content, target="y", name="table.csv", **how):
    def read():
        given = written(name, content) if isinstance(content, str | bytes) else content
        made = TabularDataModule(given, target=target, slices=lambda train: S.full(1, len(train["y"])), **how)
        made.setup("fit")
        made.train_dataset()

    return read


def text(content, text="", **how):
    def read():
        made = TextDataModule(
            written("t.txt", content), **{"block_length": 2, "val_fraction": 0, "slices": S.full(1, 2), **how}
        )
        made.train_dataset()
        made.encode(text)

    return read


GOOD = "a,y\n1,2\n3,4\n"
FREE = "a,y\n" + "".join(f"word{'abcdefghijklmnopqrstuvwxyz'[at % 26] * (1 + at // 26)},1\n" for at in range(150))


def words(module, tokens):
    return module.decode(tokens)


def book():
    return TextDataModule(written("t.txt", "abcabcabc"), block_length=2, val_fraction=0, slices=S.full(1, 2))


def idx(axes, content, *lengths):
    return bytes([0, 0, 8, axes]) + struct.pack(f">{axes}I", *lengths) + content


IMAGES, ONE_LABEL = idx(3, bytes(784), 1, 28, 28), idx(1, bytes(1), 1)


def mnist(images=IMAGES, labels=ONE_LABEL):
    def read():
        for name, content in (("images-idx3", images), ("labels-idx1", labels)):
            if content is not None:
                written(f"mnist/train-{name}-ubyte", content)
        MNISTDataModule("mnist", slices=S.full(1, 1), val_rows=0).train_dataset()

    return read


def cifar(size=3073, last=None, label=0):
    def read():
        for number in range(1, 6):
            content = bytes([label]) + bytes((last if last and number == 5 else size) - 1)
            written(f"cifar/data_batch_{number}.bin", content)
        CIFAR10DataModule("cifar", slices=S.full(1, 5), val_rows=0).train_dataset()

    return read


FILES = [
    (
        "A file is missing",
        lambda: TabularDataModule("no.csv", target="y", slices=S.full(1, 2)).train_dataset(),
        table(GOOD),
    ),
    ("A CSV file is damaged", table(b"a,y\n\xff,1\n"), table("a,y\n\u00ff,1\n")),
    ("A CSV file is damaged", table("a,y\n1\n"), table(GOOD)),
    ("A CSV file is damaged", table('a,y\n"1,2\n'), table('a,y\n"1",2\n')),
    ("Invalid header", table("a,a\n1,2\n"), table(GOOD)),
    ("A table has no features", table("y\n1\n"), table(GOOD)),
    ("A column is empty", table("a,y\n,1\n,2\n"), table(GOOD)),
    ("A column is missing", table(GOOD, target="z"), table(GOOD, target="y")),
    ("A cell is not a number", table("a,y\n1,1\nx,2\n"), table("a,y\n1,1\nx,2\n", categorical=("a",))),
    (
        "A column holds free text",
        table(FREE),
        table(FREE.replace("a,y\n", "b,a,y\n").replace("\nword", "\n1,word"), aside=("a",)),
    ),
    ("Invalid argument: TabularDataModule(delimiter=)", table(GOOD, delimiter="ab"), table(GOOD, delimiter=",")),
    (
        "Invalid argument: TextDataModule(val_fraction=)",
        text("abcabc", val_fraction=1),
        text("abc" * 50, val_fraction=0.1),
    ),
    (
        "Invalid argument: TextDataModule(vocabulary=)",
        text("abab", vocabulary="ab"),
        text("abab", vocabulary="ab", tokens="char"),
    ),
    ("Invalid argument: TextDataModule.encode", text("abab", text=3), lambda: book().decode([97])),
    ("Invalid argument: TextDataModule.decode", lambda: book().decode("ab"), lambda: book().encode("ab")),
    ("A number is not a token", lambda: book().decode([256]), lambda: book().decode(np.argmax(np.eye(256)[:2], -1))),
    (
        "A character has no token",
        text("abab", text="c", tokens="char"),
        text("abab", text="c", tokens="char", vocabulary="abc"),
    ),
    ("A character has no token", text("abab", text="c", tokens="char"), text("abab", text="c", tokens="byte")),
    (
        "A file is missing",
        lambda: TextDataModule("no.txt", block_length=2, slices=S.full(1, 2)).train_dataset(),
        text("abab"),
    ),
    ("A text is not UTF-8", text(b"ab\xffab", tokens="char"), text(b"ab\xffab", tokens="byte")),
    ("A text is too short", text("ab"), text("abc")),
    ("Invalid argument: MNISTDataModule(folder=)", lambda: MNISTDataModule(3, slices=BOTH), mnist()),
    ("A file is missing", mnist(labels=None), mnist()),
    ("A file is not the IDX file", mnist(b"abcd"), mnist()),
    ("A file is truncated", mnist(IMAGES[:9]), mnist()),
    ("A file is truncated", mnist(IMAGES[:-1]), mnist()),
    ("An IDX file has the wrong shape", mnist(idx(3, b"", 1, 5, 5)), mnist()),
    ("A gzip file is damaged", mnist(b"\x1f\x8b123"), mnist()),
    ("Images and labels differ in length", mnist(labels=idx(1, bytes(2), 2)), mnist()),
    ("A label is out of range", mnist(labels=idx(1, b"\x0a", 1)), mnist()),
    ("Invalid argument: CIFAR10DataModule(folder=)", lambda: CIFAR10DataModule(3, slices=BOTH), cifar()),
    ("A file is missing", lambda: CIFAR10DataModule("none", slices=BOTH).train_dataset(), cifar()),
    ("A file does not hold whole records", cifar(9), cifar()),
    ("A label is out of range", cifar(label=10), cifar()),
    ("Training files differ in length", cifar(last=2 * 3073), cifar()),
]

# ---- the rest, in the order of the files


class Rows:
    """A source of rows by number."""

    def __init__(self, row=lambda row: {"x": np.ones(3, np.float32), "y": np.float32(1)}, length=ROWS):
        self.row, self.length = row, length

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        return self.row(int(row))


def source(*row, **length):
    return lambda: run(SourceDataModule(Rows(*row, **length), slices=BOTH, batch_size=2))


def raise_at_3(row):
    return {"x": np.ones(3, np.float32), "y": np.float32(1 / (row - 3))} if row != 3 else {}[row]


def in_program(values):
    made = type("Mine", (hx.Callback,), {"metrics": lambda self, state, info: values(info)})
    return lambda: fit(callbacks=made())


def frame(**columns):
    import pandas

    return pandas.DataFrame({"a": [1.0, 2.0], "y": [1, 2], **columns})


def changing_slices():
    seeds = iter(range(99))
    return lambda train: S.random_subset([3, 4], ROWS, seed=next(seeds))


def saved():
    return some_heads().save("saved")


def sparse():
    from scipy.sparse import csr_array

    return csr_array(np.eye(ROWS))


def twice(first, second):
    import pandas

    return pandas.DataFrame(np.ones((ROWS, 2)), columns=[first, second])


def dictionaries():
    heads = some_heads()
    step = lambda s, m, b, c: (b["x"] @ m["w"] - b["y"]) ** 2  # noqa: E731
    assert len(heads) == HEADS
    return with_methods(
        configure_model=lambda s, k: {"w": jnp.ones(3)}, training_step=step, validation_step=step
    )().heads


def UPDATE(self, head, batch, ctx):  # noqa: N802
    return head.apply(head.gradient(self.training_step, batch, ctx)[1])


class Rate(Line):
    def __init__(self, lr):
        self.save_hyperparameters("rate")


REST = [
    (
        "No learning rate found",
        lambda: fit(callbacks=callbacks.LearningRateMonitor("rate")),
        lambda: fit(callbacks=callbacks.LearningRateMonitor("lr")),
    ),
    (
        "No learning rate found",
        lambda: fit(callbacks=callbacks.LearningRateMonitor()),
        with_methods(
            configure_optimizers=lambda self: optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
            trainer={"callbacks": callbacks.LearningRateMonitor()},
        ),
    ),
    (
        "A file is missing",
        lambda: SourceDataModule("no.array_record", slices=BOTH, decode=len).train_dataset(),
        source(),
    ),
    ("A target", table("a,y\n1,\n2,3\n"), table("a,y\n2,3\n")),
    ("A column contains neither numbers nor words", table(frame(b=[[1], [2]])), table(frame(b=[1, 2]))),
    ("A method failed", held_as(train_dataset=lambda self: {}["x"]), held_as()),
    ("A row cannot be read", source(raise_at_3), source()),
    (
        "A row differs from row 0",
        source(lambda row: {"x": np.ones(3 + (row == 3), np.float32), "y": np.float32(1)}),
        source(),
    ),
    ("A column is a sparse matrix", lambda: on(arrays(z=sparse()))(), lambda: on(arrays(z=sparse().toarray()))()),
    (
        "Invalid argument: MNISTDataModule(val_rows=)",
        lambda: (mnist()(), MNISTDataModule("mnist", slices=BOTH, val_rows=5).train_dataset()),
        mnist(),
    ),
    (
        "Invalid argument: ArrayDataModule.index_dataset(sampling=)",
        lambda: data().index_dataset(sampling="all"),
        lambda: data().index_dataset(),
    ),
    (
        "No rows are held out",
        lambda: hx.Trainer(max_steps=1, barebones=True).predict_held_out(Line(), data(), heads=some_heads()),
        lambda: hx.Trainer(max_steps=1, barebones=True).predict_held_out(
            Line(), data(slices=SHORT), heads=some_heads()
        ),
    ),
    (
        "Slices change from call to call",
        on(slices=changing_slices()),
        on(slices=lambda train: S.random_subset([3, 4], ROWS, seed=0)),
    ),
    (
        "A slice is empty",
        on(slices=S.prefix([2, ROWS], ROWS).complement(allow_empty=True)),
        lambda: on(slices=(made := S.prefix([2, ROWS], ROWS).complement(allow_empty=True))[made.lengths > 0])(),
    ),
    ("Several datasets without names", on(val=[arrays(), arrays()]), on(val={"clean": arrays(), "shifted": arrays()})),
    ("Two columns have the same name", lambda: on(twice("a", "a"))(), lambda: twice("a", "b")),
    (
        "Several validation sets with val_slices",
        on(val={"clean": arrays(), "shifted": arrays()}, val_slices=BOTH),
        on(val={"clean": arrays(), "shifted": arrays()}),
    ),
    ("Invalid argument: Heads.save(path=)", lambda: some_heads().save(3), saved),
    (
        "A callback names no step",
        lambda: fit(callbacks=type("Mine", (hx.Callback,), {"next_due": lambda self, step: "soon"})()),
        lambda: fit(callbacks=type("Mine", (hx.Callback,), {"next_due": lambda self, step: None})()),
    ),
    (
        "Unknown argument: Line.load_from_checkpoint",
        lambda: Line.load_from_checkpoint(saved(), rate=1),
        lambda: Line.load_from_checkpoint(saved()),
    ),
    ("A model cannot be called", lambda: dictionaries()(np.ones(3)), lambda: dictionaries()[0]["w"] @ np.ones(3)),
    ("Not iterable: argument splits", lambda: S.from_splits(3, 5), lambda: S.from_splits([([0], [1])], 5)),
    ("A callback's metrics have no names", in_program(lambda info: 1.0), in_program(lambda info: {"one": 1.0})),
    (
        "A callback's metric is not a scalar",
        in_program(lambda info: {"one": jnp.ones(2)}),
        in_program(lambda info: {"one": jnp.ones(2).sum()}),
    ),
    ("A callback failed while it was traced", in_program(lambda info: {}["x"]), in_program(lambda info: {})),
    ("Hyper-parameters are read-only", lambda: setattr(Line().hparams, "lr", 1), lambda: Line(1)),
    (
        "The inputs of the model are unknown",
        with_methods(
            method="predict",
            datamodule=data(predict={"a": np.ones((ROWS, 3)), "b": np.ones(ROWS)}),
            predict_step=hx.HydraModule.predict_step,
        ),
        with_methods(
            method="predict",
            datamodule=data(predict={"a": np.ones((ROWS, 3), np.float32), "b": np.ones(ROWS)}),
            predict_step=lambda self, model, batch, ctx: model(batch["a"]),
        ),
    ),
    (
        "Heads and module do not fit",
        with_methods(
            configure_model=lambda s, k: nnx.Linear(3, 2, rngs=nnx.Rngs(k)),
            method="test",
            datamodule=data(test=arrays()),
        ),
        with_methods(method="test", datamodule=data(test=arrays())),
    ),
    (
        "Invalid Trainer argument: accumulate_grad_batches",
        with_methods(update=UPDATE, trainer={"accumulate_grad_batches": 2}),
        with_methods(update=UPDATE),
    ),
    ("A hyper-parameter is not an argument of __init__", lambda: Rate(1), lambda: Line(1)),
    ("A checkpoint holds no run", lambda: fit(fit={"ckpt_path": saved()}), lambda: hx.Heads.load(saved(), Line())),
    (
        "index_dataset does not accept sampling",
        lambda: run(
            type("Mine", (ArrayDataModule,), {"index_dataset": lambda self, seed=0: None})(arrays(), slices=BOTH),
            sampling="shared",
        ),
        lambda: run(sampling="shared"),
    ),
    (
        "Weights and model do not fit",
        lambda: with_methods(
            configure_model=lambda s, k: nnx.Linear(3, 2, rngs=nnx.Rngs(k)),
            trainer={"fit": {"init_from": some_heads()}},
        )(),
        lambda: fit(fit={"init_from": some_heads()}),
    ),
    (
        "A metric over a whole set failed",
        with_methods(
            validation_step=lambda s, m, b, c: s.log("std", hx.WholeSet(len, b["y"], b["y"])),
            datamodule=data(val=arrays()),
        ),
        with_methods(
            validation_step=lambda s, m, b, c: s.log("std", hx.WholeSet(len, b["y"])), datamodule=data(val=arrays())
        ),
    ),
]
