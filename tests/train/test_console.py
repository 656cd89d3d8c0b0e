"""A line of a run is shown once: plainly, or in the form that logging is configured to."""

import subprocess
import sys
from pathlib import Path

import pytest

from hydrax.train.console import opening_line

BY_ABSL = "import absl.logging; absl.logging.vlog(1, 'adds a handler to the root logger')"


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("", "a line\n"),
        (BY_ABSL, "a line\n"),
        (f"say('first'); {BY_ABSL}", "first\na line\n"),
        ("logging.basicConfig(level='INFO')", "INFO:hydrax:a line\n"),
        ("logging.basicConfig(format='mine: %(message)s')", "mine: a line\n"),
        ("logging.getLogger('hydrax').setLevel('WARNING')", ""),
        ("say('first'); logging.basicConfig(level='INFO')", "first\nINFO:hydrax:a line\n"),
    ],
    ids=["nobody has configured logging", "absl has", "absl has later", "a level", "a form", "less of Hydrax", "later"],
)
def test_a_line_comes_once_and_as_the_user_wants_it(before, said):
    code = f"import logging; from hydrax.train.console import say; {before or 'pass'}; say('a line')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, said)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ((16, "cpu", 2, None, Path("logs/version_0")), "16 heads on 2 CPU cores, logs in logs/version_0"),
        ((1, "cpu", 1, None, None), "1 head on 1 CPU core"),
        ((20_000, "gpu", 1, "highest", None), "20,000 heads on 1 GPU, matmul_precision=highest"),
    ],
)
def test_a_fit_opens_with_one_short_line(given, line):
    assert opening_line(*given) == line
