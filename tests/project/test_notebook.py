"""examples/notebook.ipynb: it runs from top to bottom, prints correct results, and is stored without outputs."""

import json
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).parents[2]
# Prints what the cells have computed.
TELL = """
import json
kept = [curve[10], curve[300], accuracy[best.place], (answers == val["digit"]).mean(), out_of_fold_accuracy]
print(json.dumps([float(number) for number in kept] + [out_of_fold.sum(axis=1).round(4).tolist()]))
"""


@pytest.fixture(scope="module")
def notebook() -> NotebookNode:
    return nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)


@pytest.fixture(scope="module")
def ran(notebook, tmp_path_factory) -> NotebookNode:
    """The notebook after a run, with one more cell."""
    # Jupyter must leave nothing in the home folder.
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        copy = nbformat.from_dict({**notebook, "cells": [*notebook.cells, nbformat.v4.new_code_cell(TELL)]})
        return NotebookClient(copy, timeout=200, resources={"metadata": {"path": str(ROOT)}}).execute()


@pytest.fixture(scope="module")
def told(ran) -> list[Any]:
    return json.loads(ran.cells[-1].outputs[0].text)


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_the_notebook_is_kept_without_outputs(notebook):
    assert outputs(notebook) == []
    assert {cell.execution_count for cell in notebook.cells if cell.cell_type == "code"} == {None}


def test_the_notebook_s_curve_rises_and_its_best_head_alone_is_as_good_as_it_was_in_the_fit(told):
    few, many, in_the_fit, alone, *_ = told
    assert few < 0.7
    assert few + 0.2 < many
    np.testing.assert_allclose(alone, in_the_fit, atol=1e-6)


def test_the_notebook_s_out_of_fold_accuracy_is_about_that_of_scikit_learn_s_cross_validation(told):
    *_, accuracy, sums = told
    assert sums == [1.0] * 1797
    x, y = load_digits(return_X_y=True)
    folds = StratifiedKFold(10, shuffle=True, random_state=0)
    with threadpool_limits(1):  # where cores are shared its threads wait for each other, and take ten times as long
        expected = cross_val_score(LogisticRegression(), x / 16, y, cv=folds).mean()
    np.testing.assert_allclose(accuracy, expected, atol=0.03)


def test_the_notebook_has_its_pictures_and_a_few_lines_of_progress(ran):
    pictures = [output for output in outputs(ran) if "image/png" in output.get("data", {})]
    said = "".join(output.text for output in outputs(ran) if output.get("name") == "stderr")
    assert len(pictures) == 3
    assert "Warning" not in said
    assert len(said.splitlines()) < 40
