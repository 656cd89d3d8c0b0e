"""Each piece of advice in a message works: a case of `advice_under_test` makes the mistake, then does as it is told.

The last test reads the source, so a new message with "Fix: " needs a case, or a line among the exceptions.
"""

import ast
import functools
import re
from pathlib import Path

import advice_under_test as table
import pytest

import hydrax as hx

ROOT = Path(__file__).parents[2]
CASES = [pytest.param(*case, id=case[0]) for case in table.CASES]


@functools.cache
def refusal(opening, mistake):
    """Makes a mistake, once, and returns the message that refuses it."""
    with pytest.raises(hx.HydraxError) as refused:
        mistake()
    assert str(refused.value).startswith(opening)
    return str(refused.value)


@pytest.fixture(autouse=True)
def an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("opening", "mistake", "followed"), CASES)
def test_advice_that_is_followed_works(opening, mistake, followed):
    assert "Fix: " in refusal(opening, mistake)
    followed()


# ---- every message of the source has a case

NEVER = r"(?!)"  # a call that passes on what it is given: the messages are those of its callers


class Source:
    """The messages of one file: texts with "Fix: ", and calls of functions that take the advice as an argument."""

    def __init__(self, path):
        self.path, self.tree = path.relative_to(ROOT), ast.parse(path.read_text())
        self.functions = [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)]

    def helpers(self):
        """Names of the functions whose callers give the advice."""
        for function in self.functions:
            if any(advice(node) & parameters(function) for node in ast.walk(function)):
                yield function.name

    def messages(self, helpers):
        """Yields the place of each message, and what a refusal that has it must match, piece by piece."""
        for function in self.functions:
            inner = {id(part) for node in ast.walk(function) for part in getattr(node, "values", ())}
            for node in ast.walk(function):
                place = f"{self.path}:{getattr(node, 'lineno', 0)} in {function.name}"
                is_text = isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in inner
                if is_text and "Fix: " in shown(node) and node is not getattr(function.body[0], "value", None):
                    if not advice(node) & parameters(function):
                        yield place, [pattern(node)]
                elif isinstance(node, ast.Call) and called(node) in helpers:
                    given = [*node.args, *(one.value for one in node.keywords)]
                    yield (
                        place,
                        [piece for one in given if (piece := pattern(resolved(one, function, node)))] or [NEVER],
                    )


def parameters(function):
    return {one.arg for one in [*function.args.args, *function.args.kwonlyargs]}


def advice(text):
    """The variable that is the advice of an f-string: all that follows its "Fix: "."""
    parts = text.values if isinstance(text, ast.JoinedStr) else []
    for before, part in zip(parts, parts[1:], strict=False):
        if isinstance(before, ast.Constant) and before.value.endswith("Fix: ") and isinstance(part, ast.FormattedValue):
            return {getattr(part.value, "id", None)}
    return set()


def called(call):
    return getattr(call.func, "id", getattr(call.func, "attr", None))


def shown(node):
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)


def resolved(node, function, before):
    """The text that a name was given last before a call, if a plain assignment gave it."""
    found = node
    for one in ast.walk(function) if isinstance(node, ast.Name) else ():
        if isinstance(one, ast.Assign) and one.lineno < before.lineno:
            (target,), value = one.targets, one.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            for name, text in pairs:
                found = text if isinstance(name, ast.Name) and name.id == node.id else found
    return found


def pattern(node):
    """What a text of the source looks like in a message; nothing for what is no text."""
    if not isinstance(node, ast.JoinedStr) and not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        return ""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".*" for part in parts)
    return re.sub("%[sdr]", ".*", text)


@functools.cache
def sources():
    folders = ("hydrax", "callbacks", "datamodules")  # of which hydrax has links to the others
    paths = {path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    return [Source(path) for path in sorted(paths)]


def messages():
    helpers = {name for source in sources() for name in source.helpers()}
    return [message for source in sources() for message in source.messages(helpers)]


def is_in(pieces, text):
    return all(re.search(piece, text, re.DOTALL) for piece in pieces)


def test_no_message_is_without_a_case_and_no_exception_is_idle():
    told = [refusal(opening, mistake) for opening, mistake, _ in table.CASES]
    rest = [(place, pieces) for place, pieces in messages() if not any(is_in(pieces, text) for text in told)]
    plain = {place: " ".join(pieces).replace("\\", "") for place, pieces in rest if pieces != [NEVER]}
    excepted = [opening for group in table.EXCEPTIONS.values() for opening in group]
    missing = [place for place, text in plain.items() if not any(opening in text for opening in excepted)]
    idle = [opening for opening in excepted if not any(opening in text for text in plain.values())]
    assert (missing, idle) == ([], [])
