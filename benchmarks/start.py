"""Measures start-up: from the start of a process to the end of its first training step, imports included.

The fit has 784 prefixes of a linear model 784-2. Every run is a fresh process; the variants differ in
- the compile cache: "cold", the user's cache folder is new and empty; "warm", an earlier, untimed run has filled it;
- the devices: the Trainer's default, 1, or all cores.

The variants take turns; the median over turns counts. The parent records when it starts the process, the process when
it has the metrics of the first step. Results: benchmarks/README.md.

    python benchmarks/start.py
"""

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from peers import machine
from peers.report import number, table

WANTED = {"cold": 6.0, "warm": 3.0}
WANTED_RATIO = 1.2  # time with all devices, relative to one


def fit_one_step(num_heads: int, devices: int | None) -> None:
    """The timed process: imports and one step. Prints when the step was done, or null if the argument is unknown."""
    from peers.cases import make_cases
    from peers.hydrax_fit import Module, make_slices

    import hydrax as hx
    from hydrax.datamodules import ArrayDataModule

    class FirstStep(hx.Callback):
        def next_due(self, step: int) -> int | None:
            return 1 if step < 1 else None

        def on_train_steps_end(self, event: hx.Event) -> hx.Control:
            print(json.dumps(time.time()), flush=True)
            os._exit(0)

    if devices is not None and "devices" not in inspect.signature(hx.Trainer).parameters:
        print("null")
        return
    how: dict[str, Any] = {} if devices is None else {"devices": devices}
    case = make_cases()["a"]
    rows = case.make_rows(num_heads, case.num_rows)
    data = case.make_data(case.num_rows)
    trainer = hx.Trainer(max_steps=1_000, callbacks=FirstStep(), barebones=True, **how)
    module = ArrayDataModule(data, slices=make_slices(rows, case.num_rows), batch_size=case.batch_size)
    trainer.fit(Module(case), module)


def start_secs(num_heads: int, devices: int | None, cache: str) -> float | None:
    """Returns the seconds of one fresh process, or None if the Trainer has no `devices`."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": cache}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    how = ["--heads", str(num_heads), *([] if devices is None else ["--devices", str(devices)])]
    began = time.time()
    ran = subprocess.run([sys.executable, __file__, "--one", *how], env=env, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        raise SystemExit(f"A start failed: exit status {ran.returncode}, its error stands above.")
    ended = json.loads(ran.stdout.splitlines()[-1])
    return None if ended is None else ended - began


def in_cache(state: str, num_heads: int, devices: int | None) -> float | None:
    """Runs once with an empty cache folder, or with one that an earlier run has filled."""
    with tempfile.TemporaryDirectory() as folder:
        if state == "warm":
            start_secs(num_heads, devices, folder)
        return start_secs(num_heads, devices, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="number of runs per variant")
    parser.add_argument("--heads", type=int, default=784)
    parser.add_argument("--states", nargs="+", choices=WANTED, default=list(WANTED), help="states of the compile cache")
    parser.add_argument("--default", action="store_true", help="run only the Trainer's default devices")
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        fit_one_step(args.heads, args.devices)
        return

    print(machine.describe() + f"\n\n{args.heads} heads; {args.turns} turns\n")
    counts = (None,) if args.default else (None, 1, os.cpu_count())
    secs: dict[tuple[str, int | None], list[float | None]] = {(s, d): [] for s in args.states for d in counts}
    for _ in range(args.turns):
        for state, devices in secs:
            secs[state, devices].append(in_cache(state, args.heads, devices))
    print(table(("compile cache", "devices", "s to the first step", "least and most", "wanted"), rows_of(secs)))
    print(f"\n{machine.load()} at the end")


def rows_of(secs: dict[tuple[str, int | None], list[float | None]]) -> list[tuple[str, ...]]:
    rows = []
    for (state, devices), found in secs.items():
        name = "default" if devices is None else str(devices)
        known = [one for one in found if one is not None]
        if not known:
            rows.append((state, name, "the Trainer has no devices=", "-", "-"))
            continue
        wish = f"{WANTED[state]:g} s" if devices is None else "-"
        if devices == os.cpu_count() and devices != 1:
            ratio = statistics.median(known) / statistics.median(one for one in secs[state, 1] if one is not None)
            wish = f"{WANTED_RATIO} of 1 device, got {number(ratio)}"
        rows.append((state, name, f"{statistics.median(known):.2f}", f"{min(known):.2f} .. {max(known):.2f}", wish))
    return rows


if __name__ == "__main__":
    main()
