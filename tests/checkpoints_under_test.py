"""Small checkpoints, and ways to spoil them, for the tests of what lies on the disk."""

import json

from hydrax.checkpoint import format, schema


def save(root, step, tree, *, run="this run", keep=None, heads=3):
    """Saves a tree as heads are saved, whatever is in it."""
    meta = {"kind": "heads", "ids": list(range(heads)), "hparams": {}}
    return format.save(root, step, tree, meta, run=run, keep=keep)


def rewrite_meta(step, change):
    """Applies a change to a step's metadata and gives them the checksum that then belongs to them."""
    file = step / schema.META
    meta = json.loads(file.read_text())
    del meta["sha256"]
    change(meta)
    file.write_bytes(schema.sealed(meta))


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)
