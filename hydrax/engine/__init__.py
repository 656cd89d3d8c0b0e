"""All heads on this machine: the compiled programs, where each head is, and the plan.

Files, in reading order:
  programs.py       `Programs`: the functions of one head under the head axis
  draw.py           how a program gets its index batches: drawn by the host, or in the program
  compiled.py       `Compiled`: a function that is compiled ahead of its calls
  layout.py         `Layout`: on which device, in which block and at which place each head is
  devices.py        the devices that run heads; on a CPU each core
  spill.py          `Spill`: keeps waiting heads on disk
  engine.py         `Engine`: runs the programs for all heads, block by block
  anomaly.py        `AnomalyDetector`: names head, row and line of what goes wrong in a step
  quarantine.py     takes heads that became NaN or infinite back to their last finite step
  plan.py           `Plan`: how a run is laid out, chosen by rules from shapes
  flops.py          counts the operations and bytes of a step
  memory.py         how much memory a fit needs, and how much there is
  limits.py         what the machine is, and what it can reach at most
  plan_report.py    `PlanReport`: what `trainer.plan()` returns
  forks.py          refuses to run programs in a forked process
  compile_cache.py  turns on JAX's compile cache
"""

from hydrax.engine import compile_cache
from hydrax.engine.devices import find_devices, shares_host_memory
from hydrax.engine.draw import Draw, HostBatches, OwnRotation, SharedRotation, SuperstepRows
from hydrax.engine.engine import Blocks, Engine, check_per_head, head_inputs, heads_of, read_steps
from hydrax.engine.flops import StepCost, count_bytes, count_flops
from hydrax.engine.forks import refuse_forked
from hydrax.engine.layout import Layout, lay_out
from hydrax.engine.limits import environment, measure_limits, speed_environment
from hydrax.engine.memory import Memory, is_out_of_memory, room, too_large
from hydrax.engine.plan import FETCH_BYTES, NO_CHOICE, Choice, Plan, make_plan, step_secs
from hydrax.engine.plan_report import Candidate, PlanReport
from hydrax.engine.quarantine import Fault, Steps, report_faults, roll_back
from hydrax.engine.spill import Spill
