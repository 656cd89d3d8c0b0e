"""What is wrong with a config or its words, in one line: jsonargparse says it in a tree of many."""

from __future__ import annotations

import inspect
import re

from hydrax.errors import ArgumentError
from hydrax.train import Trainer, refuse_unknown

_HELP = "Fix: see --help; and --model.help CLASS, --data.help CLASS for what a class takes."

_PER_HEAD = "One value for each head is {class_path: hydrax.PerHead, init_args: {values: [...]}}, not a list"

_UNKNOWN = re.compile(
    r"unrecognized arguments: --trainer\.(\w+)[= ]?(.*)|Group 'trainer' does not accept option '(\w+)'"
)
_KEY = re.compile(r'Parser key "(.*?)":\s*(.*)')

# Lines that say how it looked for a type, not what is wrong.
_NOISE = re.compile(
    r"Does not validate against any|Subtypes:|Errors:|Given value type:|Given value: (NestedArg|Namespace|\{|\[)"
    r"|Expected a <class 'NoneType'>|Expected a path but|Expected a <class 'collections"
    r"|Subclass types expect one of|a class path \(str\)|a dict with|Problem with given|Type .* expects a function"
)
# What the others say; the first form that fits counts.
_FORMS = {
    "got": re.compile(r"Given value: (.*)"),
    "expected": re.compile(r"Expected an? <class '([\w.]+)'>"),
    "class_path": re.compile(r"Expected a dot import path string: (.*)"),
    "said": re.compile(r"(.+)"),
}


def in_one_line(text: str) -> str:
    """Where something is wrong, what, what was got and expected.

    Args:
      text: the message of one of jsonargparse's errors.
    """
    unknown = _UNKNOWN.match(text)
    if unknown is not None:
        return _unknown(unknown[1] or unknown[3], unknown[2] or "a value")
    where: dict[str, None] = {}  # in their order, each once
    found: dict[str, dict[str, None]] = {kind: {} for kind in _FORMS}
    lines = text.replace(". Got value: ", "\nGiven value: ").splitlines()
    for line in (line.strip().removeprefix("- ") for line in lines):
        key = _KEY.match(line)
        if key is not None:
            where[key[1]] = None
            line = key[2]
        kind, says = _read(line)
        found[kind][says] = None
    own = [line for line in found["said"] if "Fix: " in line]  # Hydrax's own, from inside what was tried
    if own:
        return own[0]
    said = [re.sub(r"<class '([\w.]+)'>", r"\1", line) for line in found["said"] if line]
    said = [_PER_HEAD if line == "Not a valid subclass of PerHead" else line for line in said]
    if found["class_path"]:  # that says more
        said = [line for line in said if not line.startswith("Not a valid subclass")]
    if found["got"] and found["expected"]:
        said.append(f"Got {next(iter(found['got']))}, expected {' or '.join(found['expected'])}")
    if not said:
        said = [
            f"Got {name}, expected the dotted path of a class, or the name of Hydrax's own"
            for name in found["class_path"]
        ]
    place = ".".join(where) + ": " if where else ""
    return f"{place}{'; '.join(said).rstrip(': ')}. {_HELP}"


def _read(line: str) -> tuple[str, str]:
    """What kind of thing a line says, and that; "" where it says nothing."""
    matches = ((kind, form.fullmatch(line)) for kind, form in _FORMS.items())
    kind, match = next(((kind, match) for kind, match in matches if match is not None), ("said", None))
    return ("said", "") if match is None or _NOISE.match(line) else (kind, match[1])


def _unknown(name: str, value: str) -> str:
    """What the Trainer says of an argument that it does not have."""
    known = [known for known, one in inspect.signature(Trainer).parameters.items() if one.kind is one.KEYWORD_ONLY]
    try:
        refuse_unknown({name: value}, known)
    except ArgumentError as error:
        return str(error)
    raise AssertionError(name)
