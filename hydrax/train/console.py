"""Lines that a run says: plain on stderr, or as the user has set logging up."""

from __future__ import annotations

import logging

_log = logging.getLogger("hydrax")


def say(line: str) -> None:
    """Logs a line at level INFO, and shows it where nobody has decided otherwise."""
    if _log.level == logging.NOTSET:  # else the user has decided
        _log.setLevel(logging.INFO)
    if not _log.handlers and _is_default():
        plain = logging.StreamHandler()
        plain.addFilter(lambda record: _is_default())  # the user may set logging up later
        _log.addHandler(plain)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_for_the_root)
    _log.info(line)


def _is_default() -> bool:
    """Whether nobody has set logging up. absl does when Orbax is imported, unasked: a handler that shows warnings."""
    root = logging.getLogger()
    return root.level == logging.WARNING and all(
        type(handler) is logging.StreamHandler
        and handler.formatter is not None
        and handler.formatter._fmt == logging.BASIC_FORMAT
        for handler in root.handlers
    )


def _is_for_the_root(record: logging.LogRecord) -> bool:
    """Not Hydrax's own lines, while these have a handler of their own."""
    return record.name != _log.name or not _is_default()
