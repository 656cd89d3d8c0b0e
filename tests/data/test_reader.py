"""RowReader: its rows equal those of a dataset on the device, and failures raise an error instead of hanging."""

import mmap
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import grain
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from hydrax.data.access import is_source
from hydrax.data.reader import RowReader
from hydrax.errors import DataError

FORM = re.compile(r"\S.*: .+\. Got .+, expected .+\. Fix: .+\.", re.DOTALL)
ROWS = 100


def in_child():
    return multiprocessing.parent_process() is not None


class Source:
    """Row r of an array as `{"x": array[r], "y": r}`; some rows do something else."""

    def __init__(self, length=ROWS, **odd):
        self.length, self.odd = length, {int(name[1:]): act for name, act in odd.items()}

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        return self.odd.get(row, lambda: {"x": np.full(3, row, np.float32), "y": row})()


class Batched(Source):
    """Returns many rows at once, and records how many it was asked for."""

    def __init__(self, items=lambda rows: [Source()[row] for row in rows], **odd):
        super().__init__(**odd)
        self.items, self.asked = items, []

    def __getitems__(self, rows):
        self.asked.append(len(rows))
        return self.items(rows)


class Length(Source):
    def __len__(self):
        return self.length()


def raising(error):
    """A function that raises."""

    def act():
        raise error

    return act


def giving(item):
    return lambda: item


def owners(row):
    return f"wanted by heads {row} and 7"


@pytest.fixture
def reader():
    """Makes readers and closes them."""
    made = []

    def make(dataset, **how):
        made.append(RowReader(dataset, "train", **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


def refusal(call, *words):
    """Checks that a call is refused, and returns the error."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert FORM.fullmatch(message), message
    assert [word for word in words if word not in message] == [], message
    return caught.value


# ---- what is a source


@pytest.mark.parametrize("source", [Source(), grain.MapDataset.range(3), range(3)], ids=["class", "grain", "range"])
def test_random_access_is_a_source(source):
    assert is_source(source)


@pytest.mark.parametrize(
    "dataset",
    [np.zeros(3), jnp.zeros(3), {"x": np.zeros(3)}, (np.zeros(3),), [np.zeros(3)], "text", b"bytes", None, iter([1])],
    ids=lambda dataset: type(dataset).__name__,
)
def test_arrays_pytrees_strings_and_streams_are_no_source(dataset):
    assert not is_source(dataset)


# ---- arrays


def on_disk(folder, array):
    np.save(folder / "column.npy", array)
    return np.load(folder / "column.npy", mmap_mode="r")


def unaligned(array):
    return np.frombuffer(b"." + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)


PICKED = np.array([17, 3, 99, 0, 42], np.int32)
COLUMN = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("float64", "float32"),
        ("float32", "float32"),
        (">f4", "float32"),
        ("float16", "float16"),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
        ("int64", "int32"),
        ("uint64", "int32"),
        (">i2", "int16"),
        ("uint8", "uint8"),
        ("bool", "bool"),
        ("complex128", "complex64"),
    ],
    ids=str,
)
def test_rows_are_those_of_the_array_in_the_dtype_of_a_device(reader, given, read):
    column = np.arange(ROWS * 6).reshape(ROWS, 2, 3).astype(given)
    found = reader(column).read(PICKED)
    assert found.dtype == np.dtype(read)
    np.testing.assert_array_equal(found, column[PICKED].astype(read))


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_64_bits_stay_where_the_precision_asks_for_them(reader, dtype):
    wide = reader(np.full(ROWS, 2**40, dtype), wide=True)
    assert wide.shapes.dtype == dtype
    assert wide.read(PICKED).tolist() == [2**40] * 5


@pytest.mark.parametrize(
    "lay_out",
    [
        lambda array, folder: array,
        lambda array, folder: on_disk(folder, array),
        lambda array, folder: on_disk(folder, np.asfortranarray(array)),
        lambda array, folder: on_disk(folder, array).copy(),
        lambda array, folder: np.repeat(array, 2, axis=1)[:, ::2],
        lambda array, folder: array[::-1][::-1],
        lambda array, folder: unaligned(array),
        lambda array, folder: jnp.asarray(array),
    ],
    ids=[
        "numpy",
        "memory map",
        "Fortran memory map",
        "copy of a map",
        "every other",
        "twice reversed",
        "unaligned",
        "jax",
    ],
)
def test_it_does_not_matter_how_a_column_lies_in_memory(reader, lay_out, tmp_path):
    array = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
    np.testing.assert_array_equal(reader(lay_out(array, tmp_path)).read(PICKED), array[PICKED])


@pytest.mark.parametrize(
    "lay_out",
    [np.asfortranarray, lambda array: array[:, ::2], lambda array: array.astype(np.float64), lambda array: array > 0],
    ids=["Fortran", "every other", "float64", "bool"],
)
def test_no_column_is_ever_copied_as_a_whole(reader, lay_out):
    column = lay_out(np.zeros((2**14, 256), np.float32))  # 16 MiB
    tracemalloc.start()
    reader(column, check_finite="raise").read(PICKED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_structure_shapes_and_bytes_are_known_before_a_row_is_read(reader):
    dataset = {"image": np.zeros((ROWS, 4, 2), np.uint8), "more": (np.zeros(ROWS, np.int64),)}
    made = reader(dataset)
    assert made.shapes == {
        "image": jax.ShapeDtypeStruct((ROWS, 4, 2), np.uint8),
        "more": (jax.ShapeDtypeStruct((ROWS,), np.int32),),
    }
    assert (made.num_rows, made.row_bytes) == (ROWS, 12)
    assert jax.tree.structure(made.read(PICKED)) == jax.tree.structure(dataset)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_read_of_many_parts_is_put_together_in_the_order_asked_for(reader, threads):
    column = np.arange(2**16, dtype=np.int32)[:, None] + np.zeros(64, np.int32)  # 16 MiB, read 1 MiB at a time
    rows = np.random.default_rng(0).permutation(2**16)
    np.testing.assert_array_equal(reader(column, threads=threads).read(rows)[:, 5], rows)


def test_what_is_asked_for_beyond_the_rows_is_zero(reader):
    found = reader(np.ones((ROWS, 2))).read(PICKED, size=8)
    np.testing.assert_array_equal(found[:, 1], [1, 1, 1, 1, 1, 0, 0, 0])


def test_no_row_at_all_can_be_read(reader):
    assert reader(np.ones((ROWS, 2))).read(np.array([], np.int32), size=2).tolist() == [[0, 0], [0, 0]]


def test_every_read_has_buffers_of_its_own_which_jax_takes_without_a_copy(reader):
    made = reader((np.ones((ROWS, 3), np.float32), np.ones(ROWS, np.uint8)))
    first, second = made.read(PICKED), made.read(PICKED)
    first[0][:] = 5
    assert second[0].max() == 1
    assert [column.ctypes.data % 64 for column in (*first, *second)] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ({}, ["A dataset has no columns: train dataset"]),
        ({"x": [1, 2]}, ["A column is not an array: train dataset['x'][0]", "int '1'"]),
        ({"x": "text"}, ["A column is not an array: train dataset['x']", "str 'text'"]),
        (np.array(["a", "b"]), ["A column has an unsupported dtype: train dataset", "<U1"]),
        (np.array([{}, None]), ["A column has an unsupported dtype: train dataset", "object"]),
        (
            {"x": np.zeros(3), "y": np.zeros(4)},
            ["Columns differ in length: train dataset['y']", "Got 4 rows", "expected 3, as train dataset['x']"],
        ),
        (np.zeros((0, 2)), ["Invalid number of rows: train dataset", "Got 0"]),
        (np.broadcast_to(np.uint8(0), 2**31), ["Invalid number of rows", "Got 2147483648"]),
    ],
    ids=lambda value: "",
)
def test_a_dataset_that_no_device_could_hold_is_refused(dataset, words):
    refusal(lambda: RowReader(dataset, "train"), *words)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_an_integer_beyond_32_bits_is_refused_when_its_row_is_read(reader, value):
    column = np.zeros((ROWS, 2), np.int64)
    column[42, 1] = value
    made = reader({"y": column})
    made.read(np.array([41, 43]))
    refusal(
        lambda: made.read(PICKED, owners),
        "An integer does not fit in 32 bits: train dataset['y'], row 42, wanted by heads 42 and 7",
        f"Got {value} of int64",
    )


def short_map(folder):
    mapped = np.memmap(folder / "rows.bin", np.float32, "w+", shape=(4096, 4))
    return mapped, lambda: os.truncate(folder / "rows.bin", 4096)


def test_a_mapped_file_that_was_cut_short_is_refused_before_it_is_read(tmp_path):
    mapped, cut = short_map(tmp_path)
    cut()
    refusal(
        lambda: RowReader({"x": mapped[8:, :2]}, "val"),
        "A memory map is longer than its file: val dataset['x']",
        "rows.bin",
        "Got a file of 4096 bytes, expected at least 65536",
    )


def test_a_mapped_file_may_be_cut_short_between_two_reads(reader, tmp_path):
    mapped, cut = short_map(tmp_path)
    made = reader(np.asarray(mapped))
    made.read(PICKED)
    cut()
    refusal(lambda: made.read(PICKED), "A memory map is longer than its file: train dataset")


def test_rows_of_a_memory_map_are_read_where_pages_cannot_be_given_back(reader, tmp_path, monkeypatch):
    monkeypatch.delattr(mmap, "MADV_DONTNEED")
    np.testing.assert_array_equal(reader(on_disk(tmp_path, COLUMN)).read(PICKED), COLUMN[PICKED])


# ---- NaN and Inf


@pytest.fixture
def with_nan():
    column = np.ones((ROWS, 2))
    column[17, 1], column[42, 0] = np.nan, 1e300  # the latter is Inf in 32 bits
    return {"x": column, "y": np.arange(ROWS), "z": np.ones(ROWS, np.float32)}


def test_nan_is_warned_of_once_a_column_with_its_rows(reader, with_nan):
    made = reader(with_nan)
    with pytest.warns(UserWarning) as caught:
        made.read(PICKED)
    made.read(PICKED)
    message = str(caught[0].message)
    assert len(caught) == 1
    assert FORM.fullmatch(message)
    assert message.startswith("A column holds NaN or Inf: train dataset['x']. Got 2 such rows")
    assert "(first: 17, 42)" in message


def test_nan_is_an_error_that_names_row_and_heads_where_it_should_be(reader, with_nan):
    made = reader(with_nan, check_finite="raise")
    made.read(np.array([1, 2]))
    refusal(
        lambda: made.read(np.array([3, 42]), owners),
        "A column holds NaN or Inf: train dataset['x'], row 42, wanted by heads 42 and 7",
    )


def test_nan_is_nothing_where_nobody_looks(reader, with_nan):
    found = reader(with_nan, check_finite="off").read(PICKED)
    np.testing.assert_array_equal(found["x"][:, 0], [1, 1, 1, 1, np.inf])


def test_nan_in_a_source_is_warned_of_too(reader):
    made = reader(Source(_42=giving({"x": np.full(3, np.nan, np.float32), "y": 1})))
    with pytest.warns(UserWarning, match=r"train dataset\['x'\]\. Got 1 such rows .* \(first: 42\)"):
        made.read(PICKED)


# ---- sources


@pytest.mark.parametrize(
    "source",
    [
        Source(),
        Batched(),
        grain.MapDataset.range(ROWS).map(lambda row: {"x": np.full(3, row, np.float32), "y": row}),
    ],
    ids=["one by one", "many at once", "grain"],
)
def test_items_of_a_source_become_columns(reader, source):
    made = reader(source)
    found = made.read(np.arange(ROWS)[::-1], size=ROWS + 1)
    assert made.shapes == {
        "x": jax.ShapeDtypeStruct((ROWS, 3), np.float32),
        "y": jax.ShapeDtypeStruct((ROWS,), np.int32),
    }
    assert (made.num_rows, made.row_bytes) == (ROWS, 16)
    np.testing.assert_array_equal(found["y"], [*range(ROWS)[::-1], 0])
    np.testing.assert_array_equal(found["x"], np.repeat(found["y"][:, None], 3, axis=1))


def test_an_item_may_be_one_number(reader):
    found = reader(grain.MapDataset.range(ROWS)).read(PICKED)
    assert (found.tolist(), found.dtype) == (PICKED.tolist(), np.int32)


def test_threads_ask_a_source_for_many_rows_at_once_where_it_can(reader):
    source = Batched()
    reader(source).read(np.arange(ROWS))
    assert (max(source.asked), sum(source.asked)) == (32, ROWS)


@pytest.mark.timeout(60)
def test_several_threads_read_at_a_time(reader):
    together = threading.Barrier(2, timeout=30)

    def meet():
        together.wait()
        return Source()[0]

    reader(Source(_1=meet, _40=meet), threads=2).read(np.arange(1, 50))
    assert not together.broken


OTHER = "A row differs from row 0: train dataset, row 42, wanted by heads 42 and 7"
LIES = "The source reports the wrong length: train dataset, row 42, wanted by heads 42 and 7"
UNREAD = "A row cannot be read: train dataset, row 42, wanted by heads 42 and 7"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (raising(OSError("disk on fire")), [UNREAD, "Got OSError: disk on fire"]),
        (raising(KeyError(42)), [UNREAD, "Got KeyError: 42"]),
        (raising(IndexError()), [LIES, "Got IndexError", "0 <= row < 100"]),
        (raising(StopIteration()), [LIES, "Got StopIteration"]),
        (giving(None), [LIES, "Got None"]),
        (giving({"x": np.zeros(3, np.float32)}), [OTHER, "Got PyTreeDef({'x': *}), expected PyTreeDef({'x': *, 'y'"]),
        (
            giving({"x": np.zeros(4, np.float32), "y": 1}),
            [OTHER, "Got train dataset['x'] float32[4]", "float32[3]"],
        ),
        (giving({"x": np.zeros(3), "y": 1}), [OTHER, "Got train dataset['x'] float64[3], expected float32[3]"]),
        (
            giving({"x": np.zeros(3, np.float32), "y": 1.5}),
            [OTHER, "Got train dataset['y'] float64[]", "int64[]"],
        ),
        (
            giving({"x": np.zeros(3, np.float32), "y": 2**31}),
            ["An integer does not fit in 32 bits: train dataset['y'], row 42, wanted by heads 42 and 7"],
        ),
    ],
    ids=["OSError", "KeyError", "IndexError", "StopIteration", "None", "structure", "shape", "dtype", "kind", "range"],
)
@pytest.mark.timeout(60)
def test_a_row_that_cannot_be_used_is_named_with_its_heads(reader, act, words):
    made = reader(Source(_42=act))
    made.read(np.arange(42))
    refusal(lambda: made.read(np.arange(1, ROWS), owners), *words)


@pytest.mark.timeout(60)
def test_what_a_source_raised_is_the_cause(reader):
    cause = OSError("disk on fire")
    assert refusal(lambda: reader(Source(_42=raising(cause))).read(PICKED)).__cause__ is cause


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (
            lambda rows: [Source()[row] for row in rows[1:]],
            ["A source's __getitems__ returned the wrong number of items", "Got 4, expected 5"],
        ),
        (lambda rows: [None] * len(rows), ["The source reports the wrong length: train dataset, row 17", "Got None"]),
        (
            lambda rows: 1 / 0,
            ["A row cannot be read: train dataset, row 17", "ZeroDivisionError", "correct __getitems__"],
        ),
    ],
    ids=["fewer", "None", "raises"],
)
@pytest.mark.timeout(60)
def test_a_source_that_gives_many_rows_wrongly_is_refused(reader, items, words):
    refusal(lambda: reader(Batched(items)).read(PICKED), *words)


@pytest.mark.timeout(60)
def test_the_row_to_blame_is_found_among_many_read_at_once(reader):
    source = Batched(lambda rows: [source[row] for row in rows], _42=raising(OSError("disk on fire")))
    refusal(lambda: reader(source).read(PICKED, owners), UNREAD, "OSError: disk on fire")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Source(0), ["Invalid number of rows: train dataset", "Got 0"]),
        (Source(2**31), ["Invalid number of rows: train dataset", "Got 2147483648"]),
        (Source(-1), ["A source has no valid length: train dataset", "Got ValueError"]),
        (Source(2.5), ["A source has no valid length: train dataset", "Got TypeError"]),
        (Length(raising(OSError("gone"))), ["A source has no valid length: train dataset", "Got OSError: gone"]),
        (Source(_0=raising(IndexError())), ["The source reports the wrong length: train dataset, row 0"]),
        (Source(_0=giving(None)), ["The source reports the wrong length: train dataset, row 0", "Got None"]),
        (Source(_0=raising(OSError("gone"))), ["A row cannot be read: train dataset, row 0", "OSError: gone"]),
        (Source(_0=giving({})), ["A dataset has no columns: train dataset"]),
        (Source(_0=giving({"x": "text"})), ["A column has an unsupported dtype: train dataset['x']", "<U4"]),
        (Source(_0=giving({"x": b"raw"})), ["A column has an unsupported dtype: train dataset['x']", "|S3"]),
    ],
    ids=["empty", "long", "negative", "half", "raises", "IndexError", "None", "OSError", "nothing", "text", "bytes"],
)
def test_a_source_that_cannot_be_used_at_all_is_refused_at_once(source, words):
    refusal(lambda: RowReader(source, "train"), *words)


# ---- the digest


def columns_of(source, length=ROWS):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[source[row] for row in range(length)])


def test_the_same_items_have_the_same_digest_whatever_gives_them(reader):
    assert reader(Source()).digest() == reader(Batched(), threads=1).digest()


@pytest.mark.parametrize(
    "lay_out",
    [np.asfortranarray, unaligned, jnp.asarray, lambda array: array.astype(np.float64)],
    ids=["Fortran", "unaligned", "jax", "float64"],
)
def test_the_same_rows_in_memory_have_the_same_digest_however_they_lie_there(reader, lay_out):
    assert reader(lay_out(COLUMN)).digest() == reader(COLUMN.copy()).digest()


def changed(**columns):
    return {**columns_of(Source()), **columns}


@pytest.mark.parametrize(
    "other",
    [
        Source(ROWS - 1),
        Source(_99=giving({"x": np.zeros(3, np.float32), "y": 99})),
        changed(y=np.arange(ROWS, dtype=np.int16)),
        changed(z=np.arange(ROWS)),
        tuple(columns_of(Source()).values()),
    ],
    ids=["length", "last row", "dtype", "column", "structure"],
)
def test_what_differs_has_another_digest(reader, other):
    assert reader(other).digest() not in (reader(Source()).digest(), reader(columns_of(Source())).digest())


@pytest.mark.parametrize("row", [0, 1, 50, ROWS - 1])
@pytest.mark.parametrize("beside", ["nothing", "memory map"])
def test_a_change_of_any_row_in_memory_changes_the_digest(reader, beside, row, tmp_path):
    others = {"nothing": {}, "memory map": {"mapped": on_disk(tmp_path, COLUMN)}}[beside]
    column = COLUMN.copy()
    column[row, 1] += 1
    assert reader({"x": column, **others}).digest() != reader({"x": COLUMN, **others}).digest()


def test_columns_in_memory_that_change_places_change_the_digest(reader):
    one, two = COLUMN, COLUMN[::-1]
    assert reader((one, two)).digest() != reader((two, one)).digest()


def test_a_change_between_the_16_rows_of_a_memory_map_is_not_seen(reader, tmp_path):
    before = reader(on_disk(tmp_path, COLUMN)).digest()
    column = COLUMN.copy()
    column[1] += 1
    assert reader(on_disk(tmp_path, column)).digest() == before


def test_a_digest_copies_no_column_as_a_whole(reader):
    made = reader(np.asfortranarray(np.zeros((2**13, 256))))  # 16 MiB
    tracemalloc.start()
    made.digest()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_a_digest_reads_at_most_16_rows_of_a_source(reader):
    source = Batched()
    reader(source).digest()
    assert sum(source.asked) == 16


def test_a_dataset_of_few_rows_has_a_digest(reader):
    assert reader(np.arange(3)).digest() != reader(np.arange(3)[::-1]).digest()


# ---- processes


def wait_for_the_end_of(pid):
    while is_running(pid):
        time.sleep(0.01)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Fatal(Source):
    """Row 5 raises, row 42 holds NaN, and row 60 kills the worker process that reads it."""

    def __init__(self):
        super().__init__(
            _5=lambda: int("five"),
            _42=giving({"x": np.full(3, np.nan, np.float32), "y": 42}),
            _60=lambda: os.kill(os.getpid(), {True: signal.SIGKILL, False: 0}[in_child()]),
        )


@pytest.fixture(scope="module")
def there():
    """A reader with two processes, shared because starting them takes a second."""
    made = RowReader(Fatal(), "train", processes=2)
    yield made
    made.close()


@pytest.mark.timeout(60)
def test_processes_read_what_threads_read(there, reader):
    rows = np.arange(59, 5, -1)
    with pytest.warns(UserWarning, match=r"train dataset\['x'\]\. Got 1 such rows .* \(first: 42\)"):
        found = there.read(rows, size=ROWS)
    jax.tree.map(np.testing.assert_array_equal, found, reader(Fatal(), check_finite="off").read(rows, size=ROWS))
    assert [column.ctypes.data % 64 for column in found.values()] == [0, 0]


@pytest.mark.timeout(60)
def test_what_a_source_raised_in_a_process_is_shown_with_its_lines(there):
    error = refusal(
        lambda: there.read(np.arange(10), owners),
        "A row cannot be read: train dataset, row 5, wanted by heads 5 and 7",
        "Got ValueError: invalid literal",
    )
    assert 'int("five")' in str(error.__cause__)


@pytest.mark.timeout(60)
def test_a_process_that_dies_is_named_with_its_row_and_heads(reader):
    made = reader(Fatal(), processes=1)
    refusal(
        lambda: made.read(np.array([7, 60, 8]), owners),
        "A reader process died: train dataset, row 60, wanted by heads 60 and 7",
    )
    refusal(lambda: made.read(np.array([7])), "A reader process died")  # and later reads fail too


@pytest.mark.timeout(60)
def test_a_source_that_cannot_be_pickled_is_refused():
    source = Source(_3=threading.Lock().acquire)
    refusal(
        lambda: RowReader(source, "train", processes=1),
        "A source cannot be sent to reader processes: train dataset",
        "TypeError: cannot pickle",
        "read_processes=0",
    )


class Homesick(Source):
    def __setstate__(self, state):
        raise OSError("the file is not here")


@pytest.mark.timeout(60)
def test_a_source_that_cannot_be_put_together_again_is_refused():
    refusal(
        lambda: RowReader(Homesick(), "train", processes=1),
        "A source cannot be sent to reader processes: train dataset",
        "OSError: the file is not here",
    )


SCRIPT = """
import os, sys, time
import numpy as np
from hydrax.data.reader import RowReader

class Source:
    def __len__(self): return 10
    def __getitem__(self, row):
        if row == 3: print(os.getpid(), flush=True); time.sleep(600)
        return np.float32(row)
"""


def run(folder, lines):
    (folder / "script.py").write_text(SCRIPT + lines)
    return subprocess.Popen(
        [sys.executable, folder / "script.py"],
        stdout=-1,
        stderr=-1,
        text=True,
        cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


@pytest.mark.timeout(60)
def test_a_script_that_does_not_guard_its_main_part_is_told_so(tmp_path):
    _, errors = run(tmp_path, 'RowReader(Source(), "train", processes=1)').communicate(timeout=50)
    assert "Reader processes cannot start: train dataset" in errors
    assert '`if __name__ == "__main__":`' in errors


@pytest.mark.timeout(60)
def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    parent = run(
        tmp_path, 'if __name__ == "__main__":\n    RowReader(Source(), "train", processes=1).read(np.array([3]))'
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    wait_for_the_end_of(child)


# ---- the end


def test_a_closed_reader_says_so(reader):
    made = reader(np.zeros(ROWS))
    made.close()
    made.close()
    refusal(lambda: made.read(PICKED), "The row reader is closed: train dataset")


def close_while_it_reads(made):
    threading.Timer(0.2, made.close).start()
    refusal(lambda: made.read(np.arange(1, ROWS)), "The row reader is closed: train dataset")


@pytest.mark.timeout(60)
def test_close_ends_a_read_that_waits_for_a_thread_for_ever(reader):
    answer = threading.Event()
    close_while_it_reads(reader(Source(_42=answer.wait), threads=1))
    answer.set()


@pytest.mark.timeout(60)
def test_close_ends_a_process_that_reads_for_ever(reader):
    before = set(multiprocessing.active_children())
    made = reader(Source(_42=lambda: time.sleep(600)), processes=1)
    (child,) = set(multiprocessing.active_children()) - before
    close_while_it_reads(made)
    wait_for_the_end_of(child.pid)
