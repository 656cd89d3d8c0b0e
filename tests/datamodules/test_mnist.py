"""MNISTDataModule, tested on files that are written here byte by byte, as the format is defined."""

import gzip
import re
import struct

import numpy as np
import pytest

import hydrax as hx
from hydrax.datamodules import MNISTDataModule

FORM = re.compile(r"\S.*: .+\. Got .+, expected .+\. Fix: .+\.", re.DOTALL)
TRAIN_ROWS, TEST_ROWS = 20, 4
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
PIXELS = np.random.default_rng(0).integers(0, 256, (TRAIN_ROWS, 28, 28), np.uint8)
DIGITS = np.arange(TRAIN_ROWS, dtype=np.uint8) % 10


def images(pixels=PIXELS):
    return struct.pack(">HBBIII", 0, 8, 3, *pixels.shape) + pixels.tobytes()


def labels(digits=DIGITS):
    return struct.pack(">HBBI", 0, 8, 1, len(digits)) + bytes(digits)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / IMAGES).write_bytes(images())
    (tmp_path / LABELS).write_bytes(labels())
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images(PIXELS[:TEST_ROWS])))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels(DIGITS[:TEST_ROWS])))
    return tmp_path


def module(folder, **how):
    how = {"slices": lambda train: hx.Slices.full(2, len(train["label"])), "val_rows": 5, **how}
    return MNISTDataModule(folder, **how)


def test_images_stay_bytes_and_labels_become_int32(folder):
    train = module(folder, val_rows=0).train_dataset()
    assert {name: (column.dtype, column.shape) for name, column in train.items()} == {
        "image": (np.uint8, (20, 28, 28)),
        "label": (np.int32, (20,)),
    }
    np.testing.assert_array_equal(train["image"], PIXELS)
    np.testing.assert_array_equal(train["label"], DIGITS)


def test_packed_files_hold_what_plain_ones_do(folder):
    test = module(folder).test_dataset()
    np.testing.assert_array_equal(test["image"], PIXELS[:TEST_ROWS])
    np.testing.assert_array_equal(test["label"], DIGITS[:TEST_ROWS])


def test_a_file_unpacked_under_its_packed_name_is_read(folder):
    (folder / IMAGES).rename(folder / f"{IMAGES}.gz")
    np.testing.assert_array_equal(module(folder, val_rows=0).train_dataset()["image"], PIXELS)


def test_the_test_rows_are_predicted(folder):
    data = module(folder)
    assert data.predict_dataset() is data.test_dataset()


@pytest.mark.parametrize(("val_rows", "held"), [(5, 5), (0.25, 5), (0.001, 1), (0.999, 19), (np.int64(3), 3)])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_each_row_is_either_trained_or_validated_on_and_keeps_its_place(folder, val_rows, held, seed):
    data = module(folder, val_rows=val_rows, seed=seed)
    sets = data.train_dataset(), data.val_dataset()
    assert [len(rows["label"]) for rows in sets] == [TRAIN_ROWS - held, held]
    at = [[PIXELS.tolist().index(image.tolist()) for image in rows["image"]] for rows in sets]
    assert sorted(at[0] + at[1]) == list(range(TRAIN_ROWS))
    assert at == [sorted(places) for places in at]
    np.testing.assert_array_equal(sets[1]["label"], DIGITS[at[1]])


def test_without_a_seed_the_last_rows_are_held_out(folder):
    np.testing.assert_array_equal(module(folder, seed=None).val_dataset()["image"], PIXELS[-5:])


def test_a_seed_draws_the_same_rows_again_and_another_seed_others(folder):
    drawn = [module(folder, seed=seed).val_dataset()["label"].tolist() for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_no_rows_held_out_mean_no_validation(folder):
    data = module(folder, val_rows=0, val_slices=lambda val: hx.Slices.full(2, len(val["label"])))
    assert data.val_dataset() is None
    assert data.val_slices() is None


def test_slices_may_be_made_from_the_dataset_they_are_for(folder):
    data = module(
        folder,
        slices=lambda train: hx.Slices.from_indices([np.flatnonzero(train["label"] == 7)], len(train["label"])),
        val_slices=lambda val: hx.Slices.prefix([2], len(val["label"])),
    )
    np.testing.assert_array_equal(data.train_dataset()["label"][data.slices().rows(0)] == 7, True)
    assert data.val_slices() == hx.Slices.prefix([2], 5)


def test_slices_may_be_given_as_they_are(folder):
    slices, val_slices = hx.Slices.full(2, 15), hx.Slices.full(2, 5)
    data = module(folder, slices=slices, val_slices=val_slices)
    assert data.slices() is slices
    assert data.val_slices() is val_slices


DAMAGED = {
    "empty": (IMAGES, b"", "first bytes none"),
    "other magic": (IMAGES, b"\x00\x01" + images()[2:], "00 01 08 03"),
    "other dtype": (IMAGES, b"\x00\x00\x0d\x03" + images()[4:], "00 00 0d 03"),
    "labels for images": (IMAGES, labels(), "00 00 08 01"),
    "images for labels": (LABELS, images(), "00 00 08 03"),
    "cut header": (IMAGES, images()[:10], "truncated"),
    "cut header of labels": (LABELS, labels()[:6], "truncated"),
    "cut": (IMAGES, images()[:-1], "truncated"),
    "cut labels": (LABELS, labels()[:-1], "truncated"),
    "too long": (IMAGES, images() + b"\0", "too long"),
    "other sides": (IMAGES, images(np.zeros((20, 28, 27), np.uint8)), "[20, 28, 27]"),
    "no rows": (LABELS, labels(b""), "[0]"),
    "huge": (IMAGES, struct.pack(">HBBIII", 0, 8, 3, 2**32 - 1, 28, 28), "truncated"),
    "fewer labels": (LABELS, labels(DIGITS[1:]), "Images and labels differ"),
    "label 10": (LABELS, labels([*DIGITS[1:], 10]), "Got 10 at row 19"),
    "cut gzip": (LABELS, gzip.compress(labels())[:-9], "gzip file is damaged"),
    "gzip with a flipped bit": (LABELS, gzip.compress(labels(), mtime=0)[:-8] + bytes(8), "gzip file is damaged"),
    "gzip with a bad block": (LABELS, gzip.compress(labels())[:10] + bytes([255] * 40), "gzip file is damaged"),
    "gzip and more": (LABELS, gzip.compress(labels()) + b"more", "gzip file is damaged"),
}


@pytest.mark.parametrize(("name", "content", "got"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_by_name(folder, name, content, got):
    (folder / name).write_bytes(content)
    with pytest.raises(hx.DataError, match=FORM) as raised:
        module(folder).setup("fit")
    assert got in str(raised.value)
    assert str(folder / name) in str(raised.value)


@pytest.mark.parametrize("val_rows", [-1, TRAIN_ROWS, 0.0, 1.0, -0.5, float("nan"), True, "5", None])
def test_rows_that_cannot_be_held_out_are_refused(folder, val_rows):
    with pytest.raises(hx.ArgumentError, match=FORM) as raised:
        module(folder, val_rows=val_rows).setup("fit")
    assert "MNISTDataModule(val_rows=)" in str(raised.value)
