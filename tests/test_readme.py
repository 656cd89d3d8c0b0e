"""README.md and docs/: their Python runs as it stands, and what they name is there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import hydrax as hx

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
README_LINES, EXAMPLE_LINES = 150, 30


def text(page: str) -> str:
    return (ROOT / page).read_text()


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text(page), flags=re.DOTALL | re.MULTILINE)


def run(page: str, folder: Path) -> dict[str, Any]:
    """What a reader's session holds who ran all blocks of a page in an empty folder, one after the other."""
    session: dict[str, Any] = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, block in enumerate(python_blocks(page)):
            exec(compile(block, f"{page}, block {number}", "exec"), session)
    return session


@pytest.fixture(scope="module")
def readme(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("readme")
    return run("README.md", folder) | {"folder": folder}


@pytest.fixture(scope="module")
def callback_guide(tmp_path_factory) -> dict[str, Any]:
    return run("docs/writing-a-callback.md", tmp_path_factory.mktemp("callback"))


@pytest.fixture(scope="module")
def datamodule_guide(tmp_path_factory) -> dict[str, Any]:
    return run("docs/writing-a-datamodule.md", tmp_path_factory.mktemp("datamodule"))


# ---- what the pages name ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:]+)\)", text(page))
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_test_and_script_named_is_there(page):
    named = re.findall(r"\b(?:tests|examples|benchmarks|hydrax|callbacks|datamodules)/\w+\.py\b", text(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_design_names_every_file_of_the_core():
    files = {path.name for path in (ROOT / "hydrax").glob("*.py")} - {"__init__.py"}
    assert sorted(file for file in files if f"`{file}`" not in text("docs/design.md")) == []


@pytest.mark.parametrize("folder", ["hydrax", "callbacks", "datamodules", "examples", "benchmarks", "tests", "docs"])
def test_the_readme_has_a_line_for(folder):
    assert f"| [{folder}/]({folder}) |" in text("README.md")


def test_the_readme_can_be_read_in_one_go():
    assert len(text("README.md").splitlines()) <= README_LINES


def test_the_first_example_fits_on_a_screen():
    lines = [line for line in python_blocks("README.md")[0].splitlines() if line.strip()]
    assert len(lines) <= EXAMPLE_LINES


# ---- what their code does ---------------------------------------------------------------------------------------


def test_the_readme_s_example_gives_a_loss_for_each_of_200_heads(readme):
    assert readme["losses"].shape == (200,)


def test_the_readme_s_example_draws_a_learning_curve_that_falls(readme):
    first, last = readme["losses"][:20].mean(), readme["losses"][-20:].mean()
    assert last < 0.6 * first


def test_the_readme_s_head_is_an_ordinary_layer(readme):
    assert isinstance(readme["result"].heads[7], nnx.Linear)


@pytest.mark.parametrize("pattern", ["events.out.tfevents.*", "checkpoints/last/*", "checkpoints/heads.csv"])
def test_the_readme_s_fit_writes(readme, pattern):
    assert list((readme["folder"] / "hydrax_logs" / "version_0").glob(pattern)) != []


def test_the_readme_s_one_call_gives_as_many_models_as_asked_for(readme):
    assert len(readme["models"]) == 20
    assert isinstance(readme["model"], nnx.Linear)


def test_the_guide_s_first_callback_stops_heads_that_have_reached_the_bound(callback_guide):
    losses = callback_guide["result"].metrics["val_loss"]
    np.testing.assert_array_equal(callback_guide["result"].live, losses >= 0.01)
    np.testing.assert_array_equal(callback_guide["result"].live, [True, False, False])


def test_the_guide_s_first_callback_survives_a_resume(callback_guide):
    stop = callback_guide["stop"]
    again = callback_guide["StopAtLoss"](0.01)
    again.load_state_dict(stop.state_dict())
    assert set(again.stopped_at) == {1, 2}
    assert again.stopped_at == stop.stopped_at


def test_the_guide_s_second_callback_adds_up_the_norms_of_the_updates(callback_guide):
    path = callback_guide["PathLength"]()
    info = hx.StepInfo(trainable=None, gradients=None, updates={"kernel": np.array([3.0, 4.0])}, loss=None, step=None)
    assert path.on_step(path.on_step(path.init(None), info), info)["length"] == 10.0


def test_the_guide_reads_the_second_callback_s_state_of_all_heads(callback_guide):
    assert callback_guide["lengths"].shape == (3,)
    assert np.all(callback_guide["lengths"] > 0)


def test_the_guide_s_data_module_scores_each_fold_by_a_head_that_has_not_seen_it(datamodule_guide):
    assert datamodule_guide["accuracy"].shape == (5,)
    # scikit-learn's logistic regression scores 0.956 to 0.981 on these folds.
    assert np.all(datamodule_guide["accuracy"] > 0.9)
