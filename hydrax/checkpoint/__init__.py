"""Files of a saved step.

Files, in reading order:
  format.py   saves and loads a tree of arrays with its metadata
  schema.py   `meta.json`: its one schema, its checksum, the list of files
  arrays.py   arrays in a folder, by tensorstore
  folders.py  step folders: written whole or not at all, found, set aside, deleted
  lock.py     one writer in a folder
"""

from hydrax.checkpoint.folders import check_root, first_sound, holds_steps, make_way
from hydrax.checkpoint.format import check, check_same, load, load_below, load_models, save
from hydrax.checkpoint.lock import locked
from hydrax.checkpoint.schema import read_meta
