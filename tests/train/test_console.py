"""What a run says comes plainly, once, and as the user has set logging up if they have."""

import subprocess
import sys

import pytest

BY_ORBAX = "import absl.logging; absl.logging.vlog(1, 'what Orbax says when it is imported')"


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("", "a line\n"),
        (BY_ORBAX, "a line\n"),
        ("logging.basicConfig(level='INFO')", "INFO:hydrax:a line\n"),
        ("logging.basicConfig(format='mine: %(message)s')", "mine: a line\n"),
        ("logging.getLogger('hydrax').setLevel('WARNING')", ""),
        ("say('first'); logging.basicConfig(level='INFO')", "first\nINFO:hydrax:a line\n"),
    ],
    ids=["nobody has set logging up", "Orbax has", "a level", "a form", "less of Hydrax", "later"],
)
def test_a_line_comes_once_and_as_the_user_wants_it(before, said):
    code = f"import logging; from hydrax.messages import say; {before or 'pass'}; say('a line')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, said)
