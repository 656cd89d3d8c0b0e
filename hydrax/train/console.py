"""Console output of a run: plain lines on stderr, or whatever logging configuration the user has."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

_log = logging.getLogger("hydrax")


def say(line: str) -> None:
    """Logs a line at level INFO, and shows it plainly on stderr unless the user has configured logging."""
    if _log.level == logging.NOTSET:  # any other level is the user's choice
        _log.setLevel(logging.INFO)
    if not _log.handlers:
        plain = _Plain()
        plain.addFilter(lambda record: not _log.propagate)
        _log.addHandler(plain)
        _log.addFilter(_route)
    _log.info(line)


class _Plain(logging.StreamHandler[Any]):
    """Writes lines to stderr; whatever is wrong with that stream must not end a fit."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Does nothing: the handler's own report would go to the same stream, and raise if it is closed."""


def show(text: str) -> None:
    """Prints to stdout; a stream that is closed or cannot be written must not lose what was computed."""
    with contextlib.suppress(OSError, ValueError):
        print(text)


def _route(record: logging.LogRecord) -> bool:
    """Sends a record either to the root logger's handlers, if the user has configured them, or to Hydrax's own."""
    root = logging.getLogger()
    # absl, which Grain uses, configures the root logger at its first message: a stream in the basic format at the level
    # that is the default anyway. Nobody has asked for that, so it must not change how the lines of a run look.
    basic = logging.Formatter(logging.BASIC_FORMAT).format(record)
    by_default = all(type(one) is logging.StreamHandler and one.format(record) == basic for one in root.handlers)
    _log.propagate = root.level != logging.WARNING or not by_default
    return True


def opening_line(num_heads: int, backend: str, devices: int, matmul_precision: str | None, folder: Path | None) -> str:
    """Formats the first line of a fit: what starts, on what, and where to look.

    Args:
      num_heads: H.
      backend: "cpu", "gpu" or "tpu".
      devices: how many devices run heads; on a CPU, cores.
      matmul_precision: the Trainer's argument.
      folder: the run's folder, or None if nothing is written.

    >>> opening_line(16, "cpu", 2, None, Path("hydrax_logs/version_0"))
    '16 heads on 2 CPU cores, logs in hydrax_logs/version_0'
    """
    parts = [f"{_count(num_heads, 'head')} on {_count(devices, 'CPU core' if backend == 'cpu' else backend.upper())}"]
    parts += [f"matmul_precision={matmul_precision}"] if matmul_precision else []
    parts += [f"logs in {_shown(folder)}"] if folder else []
    return ", ".join(parts)


def _shown(folder: Path) -> Path:
    """Returns the path from the working directory if that is shorter."""
    with contextlib.suppress(OSError, ValueError):  # there is no such directory any more, or it is elsewhere
        return folder.relative_to(Path.cwd())
    return folder


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
