"""CIFAR10DataModule, tested on files that are written here byte by byte, as the binary version is defined."""

import re

import numpy as np
import pytest

import hydrax as hx
from hydrax.datamodules import CIFAR10DataModule

FORM = re.compile(r"\S.*: .+\. Got .+, expected .+\. Fix: .+\.", re.DOTALL)
RECORD = 3073
# Two records a file: byte 0 is the label; then 1,024 reds, 1,024 greens, 1,024 blues, line by line.
PLANES = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), np.uint8)
LABELS = np.arange(12) % 10


def records(start):
    return b"".join(bytes([LABELS[row]]) + PLANES[row].tobytes() for row in (start, start + 1))


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        (tmp_path / f"data_batch_{number + 1}.bin").write_bytes(records(2 * number))
    (tmp_path / "test_batch.bin").write_bytes(records(10))
    return tmp_path


def module(folder, **how):
    how = {"slices": lambda train: hx.Slices.full(2, len(train["label"])), "val_rows": 3, **how}
    return CIFAR10DataModule(folder, **how)


def test_images_are_bytes_with_their_channels_last_and_labels_int32(folder):
    train = module(folder, val_rows=0).train_dataset()
    assert train["image"].dtype == np.uint8
    assert train["label"].dtype == np.int32
    assert train["image"].flags.c_contiguous
    np.testing.assert_array_equal(train["image"], np.moveaxis(PLANES[:10], 1, -1))
    np.testing.assert_array_equal(train["label"], LABELS[:10])


@pytest.mark.parametrize(("line", "place", "channel"), [(0, 0, 0), (3, 31, 1), (31, 7, 2)])
def test_a_pixel_lies_where_the_format_says(folder, line, place, channel):
    byte = records(0)[1 + 1024 * channel + 32 * line + place]
    assert module(folder, val_rows=0).train_dataset()["image"][0, line, place, channel] == byte


def test_the_test_file_is_tested_and_predicted(folder):
    data = module(folder)
    np.testing.assert_array_equal(data.test_dataset()["label"], LABELS[10:])
    assert data.predict_dataset() is data.test_dataset()


@pytest.mark.parametrize(("val_rows", "held"), [(3, 3), (0.3, 3), (0.01, 1)])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_each_row_is_either_trained_or_validated_on_and_keeps_its_place(folder, val_rows, held, seed):
    data = module(folder, val_rows=val_rows, seed=seed)
    train, val = data.train_dataset()["label"].tolist(), data.val_dataset()["label"].tolist()
    assert len(val) == held
    assert sorted(train + val) == list(range(10))  # each label occurs once in ten records
    assert (train, val) == (sorted(train), sorted(val))


def test_without_a_seed_the_last_rows_are_held_out(folder):
    assert module(folder, seed=None).val_dataset()["label"].tolist() == [7, 8, 9]


def test_validation_slices_count_validation_rows(folder):
    data = module(folder, val_slices=lambda val: hx.Slices.prefix([1, 2], len(val["label"])))
    assert data.val_slices() == hx.Slices.prefix([1, 2], 3)


DAMAGED = {
    "empty": ("data_batch_2.bin", b"", "Got 0 bytes"),
    "cut": ("data_batch_2.bin", records(2)[:-1], "Got 6,145 bytes"),
    "too long": ("data_batch_2.bin", records(2) + b"\0", "Got 6,147 bytes"),
    "cut between records": ("data_batch_2.bin", records(2)[:RECORD], "Got 1, expected 2"),
    "label 10": ("data_batch_3.bin", records(4)[:RECORD] + b"\x0a" + bytes(RECORD - 1), "Got 10, expected 0 to 9"),
    "CIFAR-100": ("data_batch_1.bin", bytes(2 * (RECORD + 1)), "Got 6,148 bytes"),
}


@pytest.mark.parametrize(("name", "content", "got"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_by_name(folder, name, content, got):
    (folder / name).write_bytes(content)
    with pytest.raises(hx.DataError, match=FORM) as raised:
        module(folder).setup("fit")
    assert got in str(raised.value)
    assert str(folder / name) in str(raised.value)


def test_the_python_version_is_told_from_the_binary_one(folder):
    (folder / "data_batch_1.bin").rename(folder / "data_batch_1")
    with pytest.raises(hx.DataError, match="cifar-10-binary.tar.gz"):
        module(folder).setup("fit")


@pytest.mark.parametrize("val_rows", [-1, 10, 1.0, True, "5"])
def test_rows_that_cannot_be_held_out_are_refused(folder, val_rows):
    with pytest.raises(hx.ArgumentError, match=FORM) as raised:
        module(folder, val_rows=val_rows).setup("fit")
    assert "CIFAR10DataModule(val_rows=)" in str(raised.value)
