"""A line of a run is shown once: plainly, or in the form that logging is configured to."""

import subprocess
import sys

import pytest

BY_ABSL = "import absl.logging; absl.logging.vlog(1, 'adds a handler to the root logger')"


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("", "a line\n"),
        (BY_ABSL, "INFO:hydrax:a line\n"),
        (f"say('first'); {BY_ABSL}", "first\nINFO:hydrax:a line\n"),
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
