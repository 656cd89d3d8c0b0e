"""The command `hydrax`: runs by a config, and what a run left, seen and taken out from a shell."""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydrax.cli import commands
from hydrax.errors import ArgumentError, HydraxError
from hydrax.results import export_heads

LEDGER = "heads.csv"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: its words; None: those of the process.

    Returns:
      The exit status: 0, or 1 where it could not be done and one line on stderr says why. (argparse exits with 2 where
      the words make no command.)
    """
    words = sys.argv[1:] if argv is None else list(argv)
    # These read their own words: what they know depends on the user's classes.
    by_config = bool(words) and words[0] in commands.COMMANDS
    args = argparse.Namespace(command=words[0]) if by_config else _parser().parse_args(words)
    status = 0
    try:
        if by_config:
            status = commands.run(words[0], words[1:])
        else:
            args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `hydrax heads RUN | head`; Python would flush once more at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (HydraxError, OSError) as error:
        if error.__cause__ is not None:  # a mistake in the user's own code, whose line they need
            traceback.print_exception(error.__cause__)
        print(f"hydrax {args.command}: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("hydrax", description="Trains many models at once, and shows what a run left.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in commands.COMMANDS.items():
        subparsers.add_parser(name, help=what)

    heads = subparsers.add_parser("heads", help="list the heads of a run", description="Lists the heads of a run.")
    heads.add_argument(
        "folder", metavar="RUN", type=Path, help="its folder (hydrax_logs/version_3), or its checkpoints'"
    )
    heads.add_argument("--sort", metavar="COLUMN", help="the least first; what is empty or no number last")
    heads.add_argument("--reverse", action="store_true", help="the greatest first")
    heads.add_argument("--where", metavar="COLUMN=VALUE", action="append", default=[], help="these heads alone")
    heads.add_argument("--status", help='short for --where status=...: ok, stopped, quarantined or "not finite"')
    heads.add_argument("--limit", metavar="N", type=_count, help="so many heads at most")
    heads.set_defaults(run=_list_heads)

    export = subparsers.add_parser(
        "export", help="write heads into one file", description="Writes heads into one file."
    )
    export.add_argument("folder", metavar="RUN", type=Path, help="its folder, or its checkpoints'")
    export.add_argument("--head", metavar="PLACE", type=int, help="this one alone, counted from 0; else all")
    export.add_argument("--kind", choices=("last", "best"), default="last", help="which checkpoint (default: last)")
    export.add_argument("--to", metavar="FILE", type=Path, help="ends in .npz or .safetensors (default: heads.npz)")
    export.set_defaults(run=_export)
    return parser


def _list_heads(args: argparse.Namespace) -> None:
    path = _checkpoints(args.folder) / LEDGER
    if not path.is_file():
        raise ArgumentError(
            f"A run has no ledger: {args.folder}. Got no {LEDGER} there, expected one. Fix: name the folder of a run "
            "that has saved a checkpoint."
        )
    with path.open(newline="") as file:
        lines = csv.DictReader(file)
        rows, columns = list(lines), list(lines.fieldnames or [])
    for condition in [*args.where, *([f"status={args.status}"] if args.status else [])]:
        column, equals, value = condition.partition("=")
        if not equals:
            raise ArgumentError(
                f"A condition says nothing: --where. Got {condition!r}, expected COLUMN=VALUE. Fix: add the value."
            )
        _check_column(column, columns, "--where")
        rows = [row for row in rows if _same(row[column], value)]
    if args.sort is not None:
        _check_column(args.sort, columns, "--sort")
        known = [row for row in rows if not math.isnan(_number(row[args.sort]))]
        known.sort(key=lambda row: _number(row[args.sort]), reverse=args.reverse)
        rows = known + [row for row in rows if math.isnan(_number(row[args.sort]))]
    elif args.reverse:
        rows.reverse()
    table = [columns, *([row[column] or "-" for column in columns] for row in rows[: args.limit])]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def _export(args: argparse.Namespace) -> None:
    name = "heads.npz" if args.head is None else f"head_{args.head}.npz"
    print(export_heads(_checkpoints(args.folder) / args.kind, args.to or name, head=args.head))


def _checkpoints(folder: Path) -> Path:
    """Where a run's checkpoints are, of its folder or of that one itself."""
    below = folder / "checkpoints"
    return below if below.is_dir() else folder


def _check_column(column: str, columns: Sequence[str], option: str) -> None:
    if column not in columns:
        raise ArgumentError(
            f"A ledger has no such column: {option}. Got {column!r}, expected one of {', '.join(columns)}. Fix: name "
            "one of them."
        )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an int of 0 or more")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _same(text: str, value: str) -> bool:
    return text == value or _number(text) == _number(value)
