"""Examples in docstrings print what they show.

They are short, so they leave out the imports that each would begin with: see GIVEN. They also see the names of their
file, for functions that are not public.
"""

import doctest
import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hydrax as hx

ROOT = Path(__file__).parents[2]
GIVEN = {"hx": hx, "jax": jax, "jnp": jnp, "nnx": nnx, "np": np, "optax": optax}
# Paths below hydrax/, where callbacks/ and datamodules/ are installed.
FILES = {
    path.relative_to(root): text
    for root, pattern in ((ROOT / "hydrax", "**/*.py"), (ROOT, "callbacks/*.py"), (ROOT, "datamodules/*.py"))
    for path in sorted(root.glob(pattern))
    if ">>> " in (text := path.read_text())
}


class Finder(doctest.DocTestFinder):
    """Finds examples of functions behind a decorator, too: a wrapper is of the file that defines the decorator."""

    def _from_module(self, module, thing):
        return super()._from_module(module, inspect.unwrap(thing) if inspect.isfunction(thing) else thing)


def examples():
    """Docstrings with examples, by name."""
    found = []
    for file in FILES:
        module = importlib.import_module(".".join(["hydrax", *file.with_suffix("").parts]).removesuffix(".__init__"))
        found += Finder().find(module, globs={**vars(module), **GIVEN})
    return {test.name.removeprefix("hydrax."): test for test in found if test.examples}


EXAMPLES = examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_shows(name):
    report = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    outcome = doctest.DocTestRunner(optionflags=flags).run(EXAMPLES[name], out=report.append, clear_globs=False)
    assert outcome.failed == 0, "".join(report)


def test_every_example_is_run_and_there_are_some():
    run = sum(len(test.examples) for test in EXAMPLES.values())
    assert run == sum(text.count(">>> ") for text in FILES.values())
    assert run >= 20
