"""`make docs`: the pages are built without a warning, and a public name without an entry fails the build."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
LEFT_OUT = ".. autoexception:: SliceError\n   :show-inheritance:\n"


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds the pages with one public name left out."""
    folder = tmp_path_factory.mktemp("docs")
    pages = shutil.copytree(DOCS, folder / "docs")
    errors = pages / "reference" / "errors.rst"
    assert LEFT_OUT in errors.read_text()
    errors.write_text(errors.read_text().replace(LEFT_OUT, ""))
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", pages, folder / "html"]
    return subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, timeout=250)


def test_a_public_name_without_an_entry_fails_the_build(build):
    assert build.returncode != 0
    assert "A public name is not documented" in build.stderr
    assert "Got no hydrax.SliceError," in build.stderr


def test_nothing_else_is_wrong_with_the_pages(build):
    faults = [line for line in build.stderr.splitlines() if "WARNING:" in line or "ERROR:" in line]
    assert [line for line in faults if "hydrax.SliceError" not in line] == []
