"""examples/: they run as a user starts them, and what they write is what they say."""

import ast
import csv
import re
import runpy
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(script: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *arguments])
        runpy.run_path(str(script), run_name="__main__")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_every_import_of_an_example_is_what_make_demo_installs(script):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = {
        re.split(r"[<>=\[]", name)[0] for name in project["dependencies"] + extras["plots"] + extras["examples"]
    }
    nodes = list(ast.walk(ast.parse(script.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"hydrax"}
    assert {packages_distributions()[root][0] for root in roots} <= installed


# ---- examples/learning_curve.py ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Lengths 1, 35 and 1257, two seeds of each, 40 steps."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    run(ROOT / "examples" / "learning_curve.py", "--lengths=3", "--seeds=2", "--steps=40", f"--out={out}")
    return out


def test_the_learning_curve_has_a_line_for_each_length(small):
    assert [(line["length"], line["heads"]) for line in table(small / "learning_curve.csv")] == [
        ("1", "2"),
        ("35", "2"),
        ("1257", "2"),
    ]


def test_the_learning_curve_is_the_mean_and_spread_of_the_heads_scores(small):
    scores = np.array([float(head["score"]) for head in table(small / "heads.csv")]).reshape(3, 2)
    curve = table(small / "learning_curve.csv")
    np.testing.assert_allclose([float(line["accuracy_mean"]) for line in curve], scores.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        [float(line["accuracy_std"]) for line in curve], abs(scores[:, 0] - scores[:, 1]) / 2, rtol=1e-3, atol=1e-7
    )


def test_the_heads_of_the_learning_curve_are_listed_with_recipe_seed_and_length(small):
    heads = table(small / "heads.csv")
    assert list(heads[0]) == ["head", "recipe", "seed", "length", "score", "status"]
    assert [(head["recipe"], head["seed"], head["length"], head["status"]) for head in heads[2:4]] == [
        ("prefix(35)", "0", "35", "ok"),
        ("prefix(35)", "1", "35", "ok"),
    ]


def test_the_learning_curve_is_drawn(small):
    assert (small / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_learning_curve_s_run_can_be_read_by_tensorboard(small):
    events = EventAccumulator(str(small / "hydrax_logs" / "version_0"))
    events.Reload()
    # An epoch is 40 steps: 1257 rows in batches of 32.
    assert [event.step for event in events.Scalars("val_accuracy/median")] == [40]
    assert {"train_loss/mean", "val_loss/mean", "heads/live"} <= set(events.Tags()["scalars"])


def test_the_learning_curve_says_where_things_are_and_how_to_look_at_them(tmp_path, capsys):
    run(ROOT / "examples" / "learning_curve.py", "--lengths=2", "--seeds=1", "--steps=2", f"--out={tmp_path}")
    shown = capsys.readouterr().out
    for name in ("learning_curve.png", "heads.csv", "tensorboard.main --logdir"):
        assert name in shown
    assert str(tmp_path / "hydrax_logs" / "version_0") in shown


@pytest.mark.slow
def test_the_learning_curve_rises_from_chance_to_over_95_percent_in_under_90_seconds(tmp_path):
    start = time.perf_counter()
    run(ROOT / "examples" / "learning_curve.py", f"--out={tmp_path}")
    secs = time.perf_counter() - start
    accuracy = [float(line["accuracy_mean"]) for line in table(tmp_path / "learning_curve.csv")]
    assert len(table(tmp_path / "heads.csv")) >= 256
    assert 0.05 < accuracy[0] < 0.2
    assert accuracy[-1] > 0.95
    assert np.all(np.diff(accuracy) > -0.01)
    assert secs < 90
