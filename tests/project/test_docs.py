"""`make docs`: the pages are made without a warning, and a public name that stands on no page ends the build."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
LEFT_OUT = ".. autoexception:: SliceError\n   :show-inheritance:\n"


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A build whose only fault is a public name without an entry."""
    folder = tmp_path_factory.mktemp("docs")
    pages = shutil.copytree(DOCS, folder / "docs")
    errors = pages / "reference" / "errors.rst"
    assert LEFT_OUT in errors.read_text()
    errors.write_text(errors.read_text().replace(LEFT_OUT, ""))
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", pages, folder / "html"]
    return subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, timeout=250)


def test_a_public_name_without_a_page_ends_the_build(build):
    assert build.returncode != 0
    assert "A public name stands on no page" in build.stderr
    assert "Got no hydrax.SliceError," in build.stderr


def test_nothing_else_is_wrong_with_the_pages(build):
    faults = [line for line in build.stderr.splitlines() if "WARNING:" in line or "ERROR:" in line]
    assert [line for line in faults if "hydrax.SliceError" not in line] == []
