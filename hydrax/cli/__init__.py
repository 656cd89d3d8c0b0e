"""The command `hydrax`.

Files, in reading order:
  main.py           parses the command line; lists and exports the heads of a run
  commands.py       fit, validate, test, predict and plan by a config
  config_errors.py  what is wrong with a config, in one line
"""

from hydrax.cli.main import main

__all__ = [
    "main",
]
