"""The entry point of the command `hydrax`, and the commands that read what a run has saved."""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import io
import math
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hydrax.cli import commands
from hydrax.errors import ArgumentError, HydraxError
from hydrax.files import plain_cell
from hydrax.results import export_heads

LEDGER = "heads.csv"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the arguments of the command line; by default those of the process.

    Returns:
      The exit status: 0, or 1 if the command failed, which one line on stderr explains. Unusable arguments make
      argparse exit with status 2.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # under an ASCII locale a name with other letters must not fail
        sys.stdout.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else list(argv)
    # These commands parse their own arguments, which depend on the user's classes.
    by_config = bool(words) and words[0] in commands.COMMANDS
    args = argparse.Namespace(command=words[0]) if by_config else _parser().parse_args(words)
    status = 0
    try:
        if by_config:
            status = commands.run(words[0], words[1:])
        else:
            args.run(args)
        if sys.stdout is not None:  # in a service there may be none
            sys.stdout.flush()
    except BrokenPipeError:  # `hydrax heads RUN | head`: Python flushes once more at its end, which must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (HydraxError, OSError) as error:
        if error.__cause__ is not None:  # an error in the user's own code: show the line
            traceback.print_exception(error.__cause__)
        print(f"hydrax {args.command}: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "hydrax", description="Trains many models at once, and reads what a run has saved."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in commands.COMMANDS.items():
        subparsers.add_parser(name, help=what)

    heads = subparsers.add_parser("heads", help="list the heads of a run", description="Lists the heads of a run.")
    heads.add_argument(
        "folder", metavar="RUN", type=Path, help="folder of the run (hydrax_logs/version_3), or of its checkpoints"
    )
    heads.add_argument(
        "--sort", metavar="COLUMN", help="column to sort by, smallest number first; cells without a number come last"
    )
    heads.add_argument("--reverse", action="store_true", help="reverse the order")
    heads.add_argument("--where", metavar="COLUMN=VALUE", action="append", default=[], help="list only these heads")
    heads.add_argument("--status", help='short for --where status=...: ok, stopped, quarantined or "not finite"')
    heads.add_argument("--limit", metavar="N", type=_count, help="list at most N heads")
    heads.set_defaults(run=_list_heads)

    export = subparsers.add_parser("export", help="write heads to one file", description="Writes heads to one file.")
    export.add_argument("folder", metavar="RUN", type=Path, help="folder of the run, or of its checkpoints")
    export.add_argument(
        "--head",
        metavar="POSITION",
        type=int,
        help="position of the only head to write, counted from 0 (default: all heads)",
    )
    export.add_argument(
        "--kind", choices=("last", "best"), default="last", help="the checkpoint to read (default: last)"
    )
    export.add_argument(
        "--to", metavar="FILE", type=Path, help="file to write, ending in .npz or .safetensors (default: heads.npz)"
    )
    export.set_defaults(run=_export)
    return parser


def _list_heads(args: argparse.Namespace) -> None:
    with _without_collector():
        columns, rows = _read_ledger(args.folder)
        for condition in [*args.where, *([f"status={args.status}"] if args.status else [])]:
            column, equals, value = condition.partition("=")
            if not equals:
                raise ArgumentError(
                    f"Incomplete condition: --where. Got {condition!r}, expected COLUMN=VALUE. Fix: add the value."
                )
            at, number = _place(column, columns, "--where"), _number(value)
            rows = [row for row in rows if row[at] == value or _is_same(row[at], value, number)]
        if args.sort is not None:
            at = _place(args.sort, columns, "--sort")
            numbers = np.array([_number(row[at]) for row in rows], np.float64)
            # NaN sorts last, and equal numbers keep their order, also in reverse.
            order = np.argsort(-numbers if args.reverse else numbers, kind="stable")[: args.limit]
        else:
            order = np.arange(len(rows))[:: -1 if args.reverse else 1][: args.limit]
        # Formatted in the order of the file, in which cells are neighbours in memory: a third of the time for many.
        places = np.sort(order)
        rows = [rows[place] for place in places.tolist()]
        padded = [_padded(name, [row[at] for row in rows]) for at, name in enumerate(columns)]
        header, *lines = map(str.rstrip, map("  ".join, zip(*padded, strict=True)))
        print("\n".join([header, *(lines[at] for at in np.searchsorted(places, order).tolist())]))


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keeps Python from looking for garbage: a million rows would make it look often, and read three times as long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_ledger(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Reads the columns and the rows of a run's ledger; cells are as they are written."""
    path = _checkpoints(folder) / LEDGER
    if not path.is_file():
        raise ArgumentError(
            f"The run has no ledger: {folder}. Got no {LEDGER} there, expected one. Fix: pass the folder of a run that "
            "has saved a checkpoint."
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns, *rows = csv.reader(file, strict=True)
        if any(len(row) != len(columns) for row in rows):
            raise ValueError("rows of unequal length")
        return list(map(plain_cell, columns)), rows
    except (ValueError, csv.Error) as error:  # not UTF-8, empty, or rows of unequal length
        raise ArgumentError(
            f"Damaged ledger: {path}. Got a file that cannot be read ({error}), expected a table as Hydrax writes it. "
            "Fix: resume the run, which writes it again, or restore it from a copy."
        ) from None


def _padded(name: str, cells: Sequence[str]) -> list[str]:
    """Returns a column as it is printed, with its name on top, padded to one width."""
    shown = [_printable(name), *(_printable(plain_cell(cell) or "-") for cell in cells)]
    width = max(map(len, shown))
    return [cell.ljust(width) for cell in shown]


def _printable(cell: str) -> str:
    r"""Escapes what would move the cursor or change the terminal, as a name in a downloaded ledger may.

    >>> print(_printable("größe\x1b[2J"))
    größe\x1b[2J
    """
    if cell.isprintable():
        return cell
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cell)


def _export(args: argparse.Namespace) -> None:
    name = "heads.npz" if args.head is None else f"head_{args.head}.npz"
    print(export_heads(_checkpoints(args.folder) / args.kind, args.to or name, head=args.head))


def _checkpoints(folder: Path) -> Path:
    """Returns the folder of a run's checkpoints, from the folder of the run or from that folder itself."""
    below = folder / "checkpoints"
    return below if below.is_dir() else folder


def _place(column: str, columns: Sequence[str], option: str) -> int:
    if column not in columns:
        known = ", ".join(map(_printable, columns))
        raise ArgumentError(
            f"Unknown column: {option}. Got {column!r}, expected one of {known}. Fix: pass one of them."
        )
    return columns.index(column)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an int of 0 or more")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_same(cell: str, value: str, number: float) -> bool:
    return plain_cell(cell) == value or (not math.isnan(number) and _number(cell) == number)
