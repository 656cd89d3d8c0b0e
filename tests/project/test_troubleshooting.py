"""docs/troubleshooting.md: its quotes are in the source, and every error class has a section and a test."""

import ast
import re
from pathlib import Path

import pytest

from hydrax import errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
CLASSES = [name for name, value in vars(errors).items() if isinstance(value, type)]
LEAVES = [name for name in CLASSES if name != "HydraxError"]  # HydraxError is their parent and is not raised itself


def trees(*folders: str) -> list[ast.AST]:
    return [ast.parse(path.read_text()) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def shown(node: ast.AST) -> str:
    """Returns a text of the source as the page quotes it, with `...` for values."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)
    return re.sub(r"%[sdr]", "...", text)


def texts(nodes: list[ast.AST]) -> list[str]:
    return [shown(node) for tree in nodes for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr)]


def section(title: str) -> str:
    return re.split(r"^##+ ", PAGE.split(f"# {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def openings(title: str) -> list[str]:
    """Returns the first column of the table of a section."""
    return re.findall(r"^\| `(.+?)` \|", section(title), flags=re.MULTILINE)


SOURCE = trees("hydrax", "callbacks", "datamodules")
MESSAGES = {
    name: texts(
        [
            call.args[0]
            for tree in SOURCE
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == name and call.args
        ]
    )
    for name in LEAVES
}
ALL = texts(SOURCE)


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_of_error_has_a_section(name):
    assert f"\n### {name}\n" in PAGE


@pytest.mark.parametrize("name", LEAVES)
def test_each_section_quotes_a_message(name):
    assert openings(name) != []


@pytest.mark.parametrize(("name", "opening"), [(name, opening) for name in LEAVES for opening in openings(name)])
def test_each_message_quoted_is_one_of_its_class(name, opening):
    assert [text for text in MESSAGES[name] if text.startswith(opening)] != []


@pytest.mark.parametrize("opening", openings("Warnings"))
def test_each_warning_quoted_is_in_the_source(opening):
    assert [text for text in ALL if text.startswith(opening)] != []


def test_some_twenty_five_messages_are_explained():
    assert len([opening for name in LEAVES for opening in openings(name)]) >= 25


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_of_error_is_raised_by_a_test(name):
    calls = [node for tree in trees("tests") for node in ast.walk(tree) if isinstance(node, ast.Call)]
    raises = [call for call in calls if ast.unparse(call.func) == "pytest.raises"]
    assert [call for call in raises if re.search(rf"\b{name}\b", ast.unparse(call.args[0]))] != []
