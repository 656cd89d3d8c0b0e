"""Files of a saved step.

Files, in reading order:
  format.py   saves and loads a tree of arrays with its metadata
  arrays.py   arrays by name in a folder
  rows.py     one head, read without the others
  folders.py  step folders: written whole or not at all, found, set aside, deleted
  lock.py     one writer in a folder
"""

from hydrax.checkpoint import folders
from hydrax.checkpoint.format import check, check_same, load, load_head, load_models, read_meta, save
from hydrax.checkpoint.lock import locked

__all__ = [
    "check",
    "check_same",
    "folders",
    "load",
    "load_head",
    "load_models",
    "locked",
    "read_meta",
    "save",
]
