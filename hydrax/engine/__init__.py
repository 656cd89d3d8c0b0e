"""All heads on this machine: the compiled programs, where the heads stand, and the plan.

Files, in reading order:
  engine.py         `Engine`: runs the programs for all heads, block by block
  programs.py       one head's functions under the head axis, compiled
  draw.py           how the program gets its index batches
  layout.py         where each head stands: device, block, chunk
  devices.py        the devices that heads are spread over
  memory.py         how much memory a fit takes and how much there is
  spill.py          heads that wait on disk for their turn
  limits.py         what the machine is, and what it can do at most
  flops.py          operations and bytes of a step, counted
  plan.py           `Plan`: how a run is executed, chosen by rules from shapes
  plan_report.py    `PlanReport`: what `trainer.plan()` returns
  compiled.py       a function compiled ahead of its calls
  quarantine.py     rolls heads that became NaN or infinite back
  compile_cache.py  keeps compiled programs in the user's cache folder
"""

from hydrax.engine import compile_cache
from hydrax.engine.devices import find_devices
from hydrax.engine.draw import Draw, HostBatches, OwnRotation, SharedRotation, SuperstepRows
from hydrax.engine.engine import Blocks, Engine, check_per_head, head_inputs, heads_of, read_steps
from hydrax.engine.flops import StepCost, count_flops
from hydrax.engine.layout import Layout, lay_out
from hydrax.engine.limits import environment, limits, speed_environment
from hydrax.engine.memory import Memory, is_out_of_memory, room, too_large
from hydrax.engine.plan import FETCH_BYTES, NO_CHOICE, Choice, Plan, make_plan, step_secs
from hydrax.engine.plan_report import Candidate, PlanReport
from hydrax.engine.quarantine import Fault, Steps, report, roll_back
from hydrax.engine.spill import Spill

__all__ = [
    "Blocks",
    "Candidate",
    "Choice",
    "Draw",
    "Engine",
    "FETCH_BYTES",
    "Fault",
    "HostBatches",
    "Layout",
    "Memory",
    "NO_CHOICE",
    "Plan",
    "PlanReport",
    "OwnRotation",
    "SharedRotation",
    "Spill",
    "Steps",
    "SuperstepRows",
    "StepCost",
    "check_per_head",
    "compile_cache",
    "count_flops",
    "environment",
    "speed_environment",
    "find_devices",
    "head_inputs",
    "heads_of",
    "is_out_of_memory",
    "lay_out",
    "limits",
    "make_plan",
    "read_steps",
    "report",
    "room",
    "step_secs",
    "roll_back",
    "too_large",
]
