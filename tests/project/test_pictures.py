"""docs/pictures.py and docs/import_picture.py: the pictures exist, and show what was counted by hand."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hydrax.engine import devices as devices_module

pytestmark = pytest.mark.cpu  # the plan in the picture is for two cores

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "concepts-plan.png": DOCS / "concepts.md",
    "concepts-rotation.png": DOCS / "concepts.md",
    "concepts-slices.png": DOCS / "concepts.md",
    "concepts-walks.png": DOCS / "concepts.md",
    "readme-learning-curve.png": DOCS.parent / "README.md",
}
NAMES = list(PAGES)
# For each of the four heads: the rows of its slice, and the passes that it completes in 8 steps of 6 slots.
SLICES = [range(24), range(6, 18), range(3, 10), range(12, 16)]
ENDED = [48 // 24, 48 // 12, 48 // 7, 8]


def script(name: str) -> ModuleType:
    """Imports a script of docs/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures():
    return script("pictures")


@pytest.fixture(scope="module")
def import_picture():
    return script("import_picture")


@pytest.fixture(scope="module", autouse=True)
def two_cores():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices_module, "num_cores", lambda: 2)
        yield


@pytest.fixture(scope="module")
def folders(pictures, tmp_path_factory):
    """Two folders with the output of two runs of the script."""
    found = [tmp_path_factory.mktemp("pictures") for _ in range(2)]
    for folder in found:
        pictures.main(folder)
    return found


@pytest.fixture(scope="module")
def held(pictures):
    return {name: pictures.copies(slices) for name, slices in pictures.every_kind().items()}


# ---- the files --------------------------------------------------------------------------------------------------


def test_the_script_writes_these_pictures(folders):
    assert sorted(path.name for path in folders[0].iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_the_same_each_time(folders, name):
    assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_the_page_is_there_and_small(name):
    assert f"images/{name})" in PAGES[name].read_text()
    assert 0 < (DOCS / "images" / name).stat().st_size < 100_000


# ---- imports -----------------------------------------------------------------------------------------------------


def test_the_picture_of_the_imports_is_up_to_date(import_picture):
    """If it fails: `.venv/bin/python docs/import_picture.py` draws it again."""
    assert (DOCS / "images" / "design-imports.svg").read_text() == import_picture.draw()


@pytest.mark.parametrize(
    ("package", "imported"), [("slices", set()), ("engine", {"slices", "step"}), ("loggers", {"loop", "results"})]
)
def test_the_picture_has_the_imports_that_one_counts_by_hand(import_picture, package, imported):
    assert import_picture.imports()[package] == imported


def test_the_picture_draws_an_import_only_where_no_chain_of_others_implies_it(import_picture):
    graph = {"a": set(), "b": {"a"}, "c": {"a", "b"}}
    assert import_picture.direct(graph) == [("b", "a"), ("c", "b")]
    assert import_picture.levels(graph) == {"a": 0, "b": 1, "c": 2}


# ---- slices -----------------------------------------------------------------------------------------------------


def test_prefixes_grow_by_five_rows(held):
    np.testing.assert_array_equal(held["prefix([5, 10, ...])"], np.arange(30) < np.arange(5, 31, 5)[:, None])


def test_windows_of_ten_rows_slide_by_four(held):
    rows, starts = np.arange(30), np.arange(0, 21, 4)[:, None]
    np.testing.assert_array_equal(held["window(starts, 10)"], (rows >= starts) & (rows < starts + 10))


def test_a_random_half_has_fifteen_rows_once(held):
    assert held["random_subset(0.5)"].max() == 1
    np.testing.assert_array_equal(held["random_subset(0.5)"].sum(axis=1), [15] * 6)


def test_a_bootstrap_draws_thirty_rows_some_of_them_again(held):
    np.testing.assert_array_equal(held["bootstrap"].sum(axis=1), [30] * 6)
    assert held["bootstrap"].max() > 1


def test_each_row_is_left_out_of_one_fold_s_slice_and_is_in_its_complement(held):
    train, left_out = held["from_splits(KFold(6))"], held["from_splits(KFold(6)).complement()"]
    np.testing.assert_array_equal(left_out.sum(axis=0), [1] * 30)
    np.testing.assert_array_equal(train + left_out, np.ones((6, 30)))


# ---- rotation ---------------------------------------------------------------------------------------------------


def rows_met(found, head: int, number: int) -> list[int]:
    """Returns the rows that a head sees in a pass, sorted."""
    return sorted(found.rows[:, head][found.mask[:, head] & (found.passes[:, head] == number)].tolist())


@pytest.mark.parametrize(("head", "number"), [(head, 1 + at) for head in range(4) for at in range(ENDED[head])])
def test_each_row_of_a_slice_is_met_once_in_a_pass(pictures, head, number):
    assert rows_met(pictures.walk(), head, number) == list(SLICES[head])


def test_only_the_slice_that_is_shorter_than_the_batch_has_padding(pictures):
    np.testing.assert_array_equal(pictures.walk().mask.sum(axis=2), [[6, 6, 6, 4]] * 8)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("head", range(4))
@pytest.mark.parametrize("how", [{"passes": 2}, {"sampling": "shared"}], ids=["passes", "shared"])
def test_two_passes_as_budget_and_two_shared_walks_have_each_row_once_in_each(pictures, how, head, number):
    assert rows_met(pictures.walk(**how), head, number) == list(SLICES[head])


@pytest.mark.parametrize("how", [{"passes": 2}, {"sampling": "shared"}], ids=["passes", "shared"])
def test_there_is_no_third_pass_in_either(pictures, how):
    np.testing.assert_array_equal(pictures.walk(**how).passes.max(axis=(0, 2)), [2] * 4)


def test_all_heads_meet_the_same_rows_where_they_share_them(pictures):
    rows = pictures.walk(sampling="shared").rows
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[:, :1], (8, 4, 6)))


# ---- the plan ---------------------------------------------------------------------------------------------------


def test_supersteps_end_at_sixteen_steps_an_epoch_s_end_and_the_fit_s_end(pictures):
    plan, layout, ends = pictures.plan_of_a_fit()
    assert (plan.chunk, plan.steps_per_call, plan.devices) == (2, 16, 2)
    assert ends == [0, 16, 30, 46, 60, 70]
    running = [block.heads[: block.num_chunks * 2].tolist() for block in layout.blocks]
    assert running == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 0]]
