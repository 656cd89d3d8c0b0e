"""Configures Sphinx for `make docs`. A public name that no page documents fails the build."""

import importlib
import inspect
import os
import re
import types
from typing import Any

from sphinx.util import logging

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed here
_log = logging.getLogger(__name__)

project, author = "Hydrax", "the Hydrax authors"
html_title = "Hydrax"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["images"]
html_theme = "furo"
html_copy_source = False
smartquotes = False  # "last" is code that readers type
maximum_signature_line_length = 100

# Docstrings have Google's sections. Text in single backticks is a link if it names something documented.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "special-members": "__call__, __getitem__"}
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Markdown pages are read on GitHub too: #headings are anchors there.
myst_heading_anchors = 3

# These are not links: names of other libraries, because the build uses no network; names of Hydrax's own files, which
# appear in signatures; and code in backticks.
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:.*", r"(?!hydrax\b).*"),
    ("py:.*", r"hydrax\.(?!callbacks|datamodules|nn|loss)\w+\.\w+(\.\w+)*"),
]

PUBLIC = ("hydrax", "hydrax.callbacks", "hydrax.datamodules", "hydrax.nn", "hydrax.loss")
# Returned by public functions, or meant as base classes.
ALSO_PUBLIC = (
    "hydrax.results.fit_result.Best",
    "hydrax.engine.plan_report.PlanReport",
    "hydrax.loggers.remote_logger.RemoteLogger",
)


def public_names() -> list[str]:
    """Returns the names in `__all__` of `PUBLIC` (or the names a module defines) and the methods of their classes.

    A method that overrides a method of a public class is documented there.
    """
    found: dict[str, Any] = {}
    for place in PUBLIC:
        module = importlib.import_module(place)
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == place]
        found |= {f"{place}.{name}": getattr(module, name) for name in getattr(module, "__all__", own)}
    for name in ALSO_PUBLIC:
        place, _, last = name.rpartition(".")
        found[name] = getattr(importlib.import_module(place), last)
    classes = {value: name for name, value in found.items() if inspect.isclass(value)}
    return [*found, *(f"{name}.{method}" for cls, name in classes.items() for method in methods(cls, set(classes)))]


def methods(cls: type, public: set[type]) -> list[str]:
    """Returns the public methods and properties that a class of Hydrax defines and no public base class has."""
    found = []
    for name in (name for name in dir(cls) if not name.startswith("_")):
        home = next((base for base in cls.__mro__ if name in vars(base)), object)
        is_code = isinstance(vars(home).get(name), property | classmethod | staticmethod | types.FunctionType)
        above = any(base in public and hasattr(base, name) for base in cls.__mro__[1:])
        if is_code and home.__module__.startswith("hydrax") and not above:
            found.append(name)
    return found


def report_gaps(app: Any, env: Any) -> None:
    """Warns about each public name without an entry; `make docs` turns warnings into errors."""
    for name in public_names():
        if name not in env.domains.python_domain.objects:
            _log.warning(
                "A public name is not documented: docs/reference/. Got no %s, expected one entry. Fix: add a directive "
                "such as `.. autoclass::` to the page it belongs to, or write the docstring of the method.",
                name,
            )


def drop_links_out(app: Any, page: str, source: list[str]) -> None:
    """Replaces links out of docs/ by their text. tests/project/test_readme.py checks all links."""
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", source[0])


def setup(app: Any) -> None:
    app.connect("source-read", drop_links_out)
    app.connect("env-check-consistency", report_gaps)
