"""Console output of a run: plain lines on stderr, or whatever logging configuration the user has."""

from __future__ import annotations

import logging

_log = logging.getLogger("hydrax")


def say(line: str) -> None:
    """Logs a line at level INFO, and shows it on stderr unless logging is configured otherwise."""
    if _log.level == logging.NOTSET:  # any other level is the user's choice
        _log.setLevel(logging.INFO)
    if not _log.hasHandlers():
        plain = logging.StreamHandler()
        # If the root logger gets handlers later, they show the line, and it must not come twice. Other packages may add
        # one too (absl does at its first message); theirs is left alone, and the line then has its format.
        plain.addFilter(lambda record: not logging.getLogger().handlers)
        _log.addHandler(plain)
    _log.info(line)
