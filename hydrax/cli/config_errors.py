"""Errors of a config, shortened to one line.

jsonargparse reports an error as a tree of everything it tried, twenty lines for a misspelt number. Its exceptions carry
that text and nothing else, so there is no way round reading it. A wording that a later version changes is shown as it
comes, in one line.
"""

from __future__ import annotations

import inspect
import re

import yaml

from hydrax.arguments import refuse_unknown
from hydrax.errors import ArgumentError
from hydrax.train import Trainer

_HELP = "Fix: see --help, or --model.help CLASS and --data.help CLASS for the arguments of a class."

_UNKNOWN = re.compile(
    r"unrecognized arguments: --trainer\.(\w+)[= ]?(.*)|Group 'trainer' does not accept option '(\w+)'"
)
# What a part of the text says; the first alternative that fits counts. Noise tells what was tried, not what is wrong.
_PART = re.compile(
    r"""^[-\ ]*  (?:
          (?P<noise>Does\ not\ validate\ against.*|Subtypes:.*|Errors:|Given\ value\ type:.*|Expected\ a\ path\ but.*
            |Expected\ a\ (?:NoneType|collections).*|Subclass\ types\ expect.*|a\ class\ path\ \(str\)|a\ dict\ with.*
            |Problem\ with\ given.*|Type\ .*\ expects\ a\ function.*)
        | Parser\ key\ "(?P<where>.*?)":
        | Expected\ an?\ (?P<expected>[\w.]+)(?=\.\ Got\ value:|$)
        | Expected\ a\ dot\ import\ path\ string:\ (?P<class_path>.*)
        )
      | (?:Given|\.\ Got)\ value:\ (?:(?P<tree>(?:NestedArg|Namespace|\{|\[).*)|(?P<got>.*))
      | (?P<said>[^-\s].*?)(?=\.\ Got\ value:|$)
    """,
    re.MULTILINE | re.VERBOSE,
)


def refuse_repeats(text: str) -> None:
    """Refuses a key given twice and a node inside itself; PyYAML takes the last of the one and never ends on the other.

    >>> refuse_repeats("trainer: {max_steps: 2, max_steps: 3}")
    Traceback (most recent call last):
        ...
    yaml.error.YAMLError: line 1: the key 'max_steps' is given twice in one mapping; keep one of them

    Raises:
      YAMLError: there is such a key or node, or the text is not YAML.
    """

    done: set[int] = set()  # nodes that need no second look: aliases of aliases would take exponential time

    def walk(node: yaml.Node, parents: tuple[yaml.Node, ...]) -> None:
        if any(node is parent for parent in parents):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: an alias names a node that it is a part of; write it out")
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        keys = [key for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        names = [key.value for key in keys]
        for place, key in enumerate(keys):
            if names.index(key.value) < place:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(
                    f"line {line}: the key {key.value!r} is given twice in one mapping; keep one of them"
                )
        for part in [value for _, value in pairs] + (node.value if isinstance(node, yaml.SequenceNode) else []):
            if id(part) not in done:
                walk(part, (*parents, node))
        done.add(id(node))

    if (root := yaml.compose(text, Loader=yaml.SafeLoader)) is not None:
        walk(root, ())


def in_one_line(text: str) -> str:
    """Describes in one line where a config is wrong, what it got and what it expected.

    >>> in_one_line('''Parser key "trainer.max_steps":
    ...   Does not validate against any of the Union subtypes
    ...   Errors:
    ...     - Expected a <class 'int'>
    ...     - Expected a <class 'NoneType'>
    ...   Given value: 1.5''').partition(" Fix: ")[0]
    'trainer.max_steps: Got 1.5, expected int.'

    Args:
      text: the message of an error of jsonargparse.
    """
    unknown = _UNKNOWN.match(text)
    if unknown is not None:
        return _unknown(unknown[1] or unknown[3], unknown[2] or "a value")
    found: dict[str, dict[str, None]] = {kind: {} for kind in _PART.groupindex}  # dicts keep the order, without repeats
    for part in _PART.finditer(re.sub(r"<class '([\w.]+)'>", r"\1", text)):
        assert part.lastgroup is not None
        found[part.lastgroup][part[part.lastgroup].rstrip(": ")] = None
    said = list(found["said"])
    for line in said:
        if "Fix: " in line:  # Hydrax's own message, raised inside what jsonargparse tried
            return line
    if "Not a valid subclass of PerHead" in said:
        said = ["One value per head is written {class_path: hydrax.PerHead, init_args: {values: [...]}}, not as a list"]
    elif found["class_path"]:
        said = [line for line in said if not line.startswith("Not a valid subclass")]
    if found["expected"] and (found["got"] or not said):
        got = next(iter(found["got"] or found["tree"]), "another value")
        said.append(f"Got {got:.80}, expected {' or '.join(found['expected'])}")
    for name in found["class_path"] if not said else ():
        said.append(f"Got {name}, expected the dotted path of a class, or the name of a class of Hydrax")
    place = f"{'.'.join(found['where'])}: " if found["where"] else ""
    return f"{place}{'; '.join(said) or ' '.join(text.split())}. {_HELP}"


def _unknown(name: str, value: str) -> str:
    """Returns the Trainer's own message about an argument that it does not have."""
    known = [known for known, one in inspect.signature(Trainer).parameters.items() if one.kind is one.KEYWORD_ONLY]
    try:
        refuse_unknown({name: value}, known, "Trainer")
    except ArgumentError as error:
        return str(error)
    raise AssertionError(name)
