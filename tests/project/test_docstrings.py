"""Docstrings of public names: each parameter is explained, and each error that a method raises is named."""

import ast
import inspect
import re
import textwrap

import pytest

import hydrax as hx
from hydrax import callbacks, datamodules

PUBLIC = {name: getattr(module, name) for module in (hx, callbacks, datamodules) for name in module.__all__}
ERRORS = {name for name, kind in PUBLIC.items() if inspect.isclass(kind) and issubclass(kind, hx.HydraxError)}
# The Trainer documents what a callback's view of it holds.
CLASSES = {name: PUBLIC[name] for name in set(PUBLIC) - ERRORS - {"TrainerView"} if inspect.isclass(PUBLIC[name])}


def functions():
    """Returns public functions and methods by name, each method once, at the class that defines it first."""
    found = {name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)}
    bases = {base for kind in CLASSES.values() for base in kind.__mro__ if base.__module__.startswith("hydrax")}
    for base in bases:
        for name, method in vars(base).items():
            method = getattr(method, "fget", getattr(method, "__func__", method))
            is_new = not any(hasattr(above, name) for above in base.__mro__[1:])
            if inspect.isfunction(method) and is_new and not re.match("_(?!_getitem_)", name):
                found[f"{base.__name__}.{name}"] = method
    return dict(sorted(found.items()))


FUNCTIONS = functions()


def parameters(function):
    """Returns all parameters except self and variadic ones."""
    named = [one for one in inspect.signature(function).parameters.values() if not str(one).startswith("*")]
    return [one.name for one in named if one.name not in ("self", "cls")]


def unexplained(names, docstring):
    """Returns the parameters that no section of a docstring explains as `name: ...`."""
    lines = re.findall(r"^\s*([\w*, ]+): ", docstring or "", flags=re.MULTILINE)
    return set(names) - {name.strip(" *") for line in lines for name in line.split(",")}


@pytest.mark.parametrize("name", [name for name, one in FUNCTIONS.items() if len(parameters(one)) > 1])
def test_a_function_of_several_parameters_explains_each_or_says_what_it_is_like(name):
    docstring = inspect.getdoc(FUNCTIONS[name])
    is_like_another = re.search(r"\b([Aa]s|those of) `\w+`", docstring)
    assert is_like_another or unexplained(parameters(FUNCTIONS[name]), docstring) == set()


@pytest.mark.parametrize("name", sorted(name for name, kind in CLASSES.items() if "__init__" in vars(kind)))
def test_a_class_explains_what_it_is_made_from(name):
    kind = CLASSES[name]
    names = {one for one in parameters(kind.__init__) if not one.startswith("_")}
    assert unexplained(names, f"{kind.__doc__}\n{kind.__init__.__doc__}") == set()


def raised(function):
    """Returns the errors of Hydrax that a function itself raises."""
    nodes = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
    calls = [node.exc for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {ast.unparse(call.func) for call in calls} & ERRORS


@pytest.mark.parametrize("name", [name for name, one in FUNCTIONS.items() if raised(one)])
def test_a_function_names_the_errors_that_it_raises(name):
    docstring = inspect.getdoc(FUNCTIONS[name]) or ""
    assert raised(FUNCTIONS[name]) - set(re.findall(r"(\w+): ", docstring.partition("Raises:")[2])) == set()
