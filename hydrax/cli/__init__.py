"""The command `hydrax`.

Files, in reading order:
  main.py           the entry point; lists and exports the heads of a run
  commands.py       fit, validate, test, predict and plan from a config file
  config_errors.py  errors of a config, shortened to one line
"""

from hydrax.cli.main import main
