"""Files written whole or not at all, as UTF-8 whatever the locale."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydrax.arguments import require


def as_path(where: str, value: Any) -> Path:
    """Returns an argument as a path; `where` names it in errors.

    Raises:
      ArgumentError: it is no path, or one that no file system takes.
    """
    require(isinstance(value, str | os.PathLike), where, value, "a str or a Path", "pass the name of a file or folder")
    try:
        fits = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:  # a lone surrogate
        fits = False
    require(fits, where, value, "a name that a file system takes", "leave out the odd characters")
    return Path(value)


def write_text(path: Path, text: str, *, sync: bool = False) -> Path:
    """Writes a text file as UTF-8; a reader sees the old file or the whole new one.

    A lone surrogate, which UTF-8 cannot encode, is written as its escape (`\\udc80`), so that one undecodable name does
    not cost the rest of the text.

    Args:
      path: the file; its folder is made if it is missing.
      text: written as it is, without any conversion of line ends.
      sync: as for `draft`.

    Returns:
      `path`.
    """
    return write_bytes(path, encoded(text), sync=sync)


def write_bytes(path: Path, data: bytes, *, sync: bool = False) -> Path:
    """Writes a file of bytes; everything else as in `write_text`."""
    with draft(path, sync=sync) as beside:
        beside.write_bytes(data)
    return path


@contextlib.contextmanager
def draft(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yields a path to write to; the file takes its real name when the block ends without an error.

    Args:
      path: the file; its folder is made if it is missing. If it is a symbolic link, the file it points to is replaced.
      sync: whether to wait until the content is on disk before the file takes its name. If False, a power failure soon
        after the write may leave an empty file, which is acceptable for logs and caches but not for results.

    Yields:
      A hidden path in the same folder, as only a rename inside one file system is atomic.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Neither the process number, which two machines on one network drive may share, nor the file's own name, which may
    # already be as long as the file system allows.
    beside = target.with_name(f".hydrax-{secrets.token_hex(8)}.part")
    try:
        yield beside
        if sync:
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
        beside.replace(target)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def stamp_of(path: Path) -> tuple[str, int, int, int] | None:
    """Returns what changes whenever anyone writes a file; None if it does not exist."""
    try:
        info = path.stat()
    except OSError:
        return None
    return str(path.absolute()), info.st_ino, info.st_mtime_ns, info.st_size


def encoded(text: str) -> bytes:
    r"""Encodes a text as UTF-8, and lone surrogates as their escapes.

    >>> encoded("ä\udc80")
    b'\xc3\xa4\\udc80'
    """
    return text.encode("utf-8", "backslashreplace")


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_QUOTED = tuple(f"'{sign}" for sign in _FORMULA)


def _inert(cell: Any) -> Any:
    """Puts a quotation mark before text that a spreadsheet would run as a formula."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULA):
        return cell
    try:
        float(cell)
        return cell
    except ValueError:
        return f"'{cell}"


def plain_cell(cell: str) -> str:
    """Undoes for a cell that was read what `csv_text` does to text that looks like a formula.

    >>> plain_cell("'=1+1"), plain_cell("'quoted'")
    ('=1+1', "'quoted'")
    """
    return cell[1:] if cell.startswith(_QUOTED) else cell


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    r"""Formats rows of cells as CSV.

    >>> csv_text([("head", "reason"), (0, "a, b")])
    'head,reason\r\n0,"a, b"\r\n'
    """
    text = io.StringIO()
    csv.writer(text).writerows(map(_inert, row) for row in rows)
    return text.getvalue()


def columns_text(columns: Sequence[Sequence[Any]]) -> str:
    r"""Formats columns of equal length as CSV, as `csv_text` does rows, in a third of the time.

    >>> columns_text([[0, 1], ["full", "full"]])
    '0,full\r\n1,full\r\n'
    """
    text = io.StringIO()
    csv.writer(text).writerows(zip(*map(_inert_column, columns), strict=True))
    return text.getvalue()


def _inert_column(cells: Sequence[Any]) -> Iterable[Any]:
    kinds = set(map(type, cells))
    if not any(issubclass(kind, str) for kind in kinds):
        return cells
    if kinds != {str}:
        return map(_inert, cells)
    known = {cell: _inert(cell) for cell in set(cells)}  # the same few texts serve many heads
    return map(known.__getitem__, cells)


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats one row or more as CSV with a header; all must have the same keys in the same order."""
    return csv_text([list(rows[0]), *(list(row.values()) for row in rows)])


@contextlib.contextmanager
def warn_if_unwritable(what: str, path: Path, fix: str) -> Iterator[None]:
    """Turns a failed write into a warning of the logger "hydrax": training is worth more than a file about it.

    Args:
      what: what is written, as the subject of the warning.
      path: where.
      fix: a phrase that says what else the user can do.
    """
    try:
        yield
    except (OSError, UnicodeError) as error:  # an ASCII locale cannot encode every file name
        logging.getLogger("hydrax").warning(
            "%s could not be written: %s. Got %r, expected a path that can be written to. Fix: make room or fix the "
            "permissions there, or %s; the run continues without it.",
            what,
            path,
            error,
            fix,
        )
