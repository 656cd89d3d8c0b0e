"""SourceDataModule: the datasets it returns, and ArrayRecord files read row by row."""

import re
import sys

import grain
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

import hydrax as hx
from hydrax.data.reader import RowReader
from hydrax.datamodules import SourceDataModule

FORM = re.compile(r"\S.*: .+\. Got .+, expected .+\. Fix: .+\.", re.DOTALL)
ROWS = 12
SLICES = hx.Slices.full(2, ROWS)
SETS = ("train", "val", "test", "predict")


def image(row):
    return np.arange(6, dtype=np.uint8).reshape(2, 3) + row


def write(path, rows):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
        writer.write(image(row).tobytes())
    writer.close()
    return path


def decode(record):
    return {"image": np.frombuffer(record, np.uint8).reshape(2, 3)}


@pytest.fixture
def shards(tmp_path):
    """Two files with rows 0 to 4 and 5 to 11."""
    return [write(tmp_path / "a.array_record", range(5)), write(tmp_path / "b.array_record", range(5, ROWS))]


def refusal(call, kind, *words):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert FORM.fullmatch(message), message
    assert [word for word in words if word not in message] == [], message


def test_it_hands_out_what_it_was_given_and_leaves_rows_on_the_host():
    sets = {name: np.zeros(ROWS) for name in SETS}
    module = SourceDataModule(**sets, slices=SLICES, val_slices=SLICES, read_threads=2)
    assert [module.dataset(name) is sets[name] for name in SETS] == [True] * 4
    assert (module.slices(), module.val_slices()) == (SLICES, SLICES)
    assert (module.residence, module.read_threads) == ("host", 2)


def test_there_is_no_dataset_but_the_training_one_unless_it_is_given():
    module = SourceDataModule(np.zeros(ROWS), slices=SLICES)
    assert [module.dataset(name) for name in SETS[1:]] == [None] * 3
    assert module.val_slices() is None


@pytest.mark.parametrize(
    "dataset", [grain.MapDataset.range(ROWS), (np.zeros(ROWS), np.zeros(ROWS))], ids=["source", "tuple"]
)
def test_a_dataset_that_is_no_path_is_left_as_it_is_beside_one_that_is(dataset, shards):
    module = SourceDataModule(dataset, val=shards, slices=SLICES, decode=decode)
    assert module.train_dataset() is dataset
    assert len(module.val_dataset()) == ROWS


@pytest.mark.parametrize("name", SETS)
def test_the_rows_of_files_follow_one_another(shards, name):
    module = SourceDataModule(**{"train": np.zeros(ROWS), name: shards}, slices=SLICES, decode=decode)
    records = module.dataset(name)
    assert len(records) == ROWS
    assert records is module.dataset(name)
    np.testing.assert_array_equal([records[row]["image"] for row in range(ROWS)], [image(row) for row in range(ROWS)])
    np.testing.assert_array_equal([item["image"] for item in records.__getitems__([7, 2])], [image(7), image(2)])


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_one_path_is_one_file(shards, kind):
    assert len(SourceDataModule(kind(shards[1]), slices=SLICES, decode=decode).train_dataset()) == 7


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.timeout(60)
def test_threads_and_processes_read_array_records(shards, processes):
    module = SourceDataModule(shards, slices=SLICES, decode=decode)
    reader = RowReader(module.train_dataset(), "train", processes=processes)
    rows = np.array([11, 0, 4, 5])
    np.testing.assert_array_equal(reader.read(rows)["image"], [image(row) for row in rows])
    reader.close()


# ---- what is refused


def records(decode=decode):
    return lambda paths: SourceDataModule(paths, slices=SLICES, decode=decode).train_dataset()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"slices": [[0, 1]]}, ["Invalid argument: SourceDataModule(slices=)", "Got [[0, 1]]"]),
        ({"val_slices": 3}, ["Invalid argument: SourceDataModule(val_slices=)", "Got 3"]),
        (
            {"val_slices": SLICES},
            ["Invalid argument: SourceDataModule(val_slices=)", "expected None without val"],
        ),
        ({"train": None}, ["Invalid argument: SourceDataModule(train=)"]),
        ({"decode": "jpeg", "val": "file"}, ["Invalid argument: SourceDataModule(decode=)", "Got 'jpeg'"]),
        ({"val": "file"}, ["Invalid argument: SourceDataModule(decode=)", "Got None"]),
        ({"val": ["file"]}, ["Invalid argument: SourceDataModule(decode=)", "Got None"]),
        ({"decode": decode}, ["Invalid argument: SourceDataModule(decode=)", "expected None without paths"]),
        ({"threads": 3}, ["Invalid SourceDataModule argument: threads", "the nearest name is read_threads"]),
    ],
    ids=["slices", "val_slices", "val_slices alone", "train", "decode", "path", "paths", "no path", "setting"],
)
def test_an_argument_that_cannot_be_meant_is_refused(arguments, words):
    given = {"train": np.zeros(ROWS), "slices": SLICES, **arguments}
    refusal(lambda: SourceDataModule(**given), hx.ArgumentError, *words)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none", ["A file is missing: SourceDataModule(train=)", "none. Got nothing there"]),
        (lambda folder: [folder], ["A file is missing: SourceDataModule(train=)", "Got a folder there"]),
    ],
    ids=["missing", "folder"],
)
def test_a_file_that_is_not_there_is_named(make, words, tmp_path):
    refusal(lambda: records()(make(tmp_path)), hx.DataError, *words, "expected an ArrayRecord file")


@pytest.mark.parametrize(
    "content", [lambda whole: b"", lambda whole: b"plain text", lambda whole: whole[:-1]], ids=["empty", "text", "cut"]
)
@pytest.mark.timeout(60)
def test_a_file_that_is_no_array_record_file_is_named(content, shards):
    shards[0].write_bytes(content(shards[0].read_bytes()))
    refusal(
        lambda: records()(shards),
        hx.DataError,
        "A file is not an ArrayRecord file: SourceDataModule(train=)",
        "a.array",
    )


@pytest.mark.timeout(60)
def test_a_record_that_cannot_be_decoded_is_named(shards):
    picky = records(lambda record: {5: lambda: 1 / 0}.get(record[0], lambda: decode(record))())
    reader = RowReader(picky(shards), "train")
    refusal(
        lambda: reader.read(np.arange(ROWS), lambda row: "wanted by head 3"),
        hx.DataError,
        "A row cannot be read: train dataset, row 5, wanted by head 3",
        "ZeroDivisionError",
    )
    reader.close()


def test_a_missing_package_is_named(shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain.sources", None)
    refusal(lambda: records()(shards), hx.DataError, "no package array_record", "pip install array_record")
