"""What happens between supersteps.

Files, in reading order:
  loop.py        `FitLoop`: the training loop
  run_state.py   `RunState`: everything of a fit that changes
  callback.py    `Callback`, `Event`, `Control`, `TrainerView`
  dispatch.py    calls the hooks and collects their answers
  schedule.py    when logs, validations and epochs are due
  interrupts.py  Ctrl-C and SIGTERM
  timing.py      where the time goes
"""

from hydrax.loop.callback import Callback, Control, Event, TrainerView, overrides
from hydrax.loop.dispatch import Dispatcher, check_callbacks, keys, naming, owner_of, raise_first, snapshot_name
from hydrax.loop.interrupts import Interrupted, Interrupts
from hydrax.loop.loop import FitLoop
from hydrax.loop.run_state import Kept, RunState, read_live
from hydrax.loop.schedule import Schedule
from hydrax.loop.timing import Timed, not_timed, profiled
