"""Compares Hydrax with the same training written in other ways: by hand in JAX, in PyTorch, in scikit-learn.

Each case is one process, in which all opponents live and train in turn (peers/turns.py): on the same rows, from the
same initial values, with the same loss, batch size and optimiser. Compilation is reported in its own column and not
counted. The result is the ratio of times within a turn, as a median over turns. Hydrax runs as its users run it,
through `Trainer.fit`; peers/hydrax_fit.py explains how it takes turns. An opponent with variants (chunk widths,
implementations of the optimiser) runs the one that was fastest in its warm-up, and the table names it.

Cases: a, 784 prefixes of a linear model; b, of an MLP; c, CNNs; d, transformers; e, a 5-fold; f, 16,384 heads compared
with 1,024; g, growth with heads and with rows, one process for each point. Results: benchmarks/README.md.

    pip install -e '.[bench]' && pip install torch==2.13.0
    python benchmarks/engine.py --output results
    python benchmarks/engine.py --quick    # tiny, for CI: checks that it runs and that equal starts give equal losses
    python benchmarks/engine.py --check    # the same for all cases and opponents
"""

import argparse
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers import machine, report

CASES = ("a", "b", "c", "d", "e", "f", "g")
QUICK = {"a": ("vmap", "chunks", "torch one by one"), "f": (), "g": ()}  # cases and opponents
LEAST_SECS = 0.3  # per turn
BUSY_SHARE = 0.25  # of the cores; with a higher load the report warns
HEADS, USUAL_LENGTH, FEW_ROWS = (16, 64, 256, 1_024, 4_096, 16_384, 65_536), 1_600, 1_600
LENGTHS, USUAL_HEADS, MANY_ROWS = (10, 100, 1_000, 10_000, 100_000, 1_000_000), 256, 1_000_000


def run_alone(module: str, device: str, keeps_compiled: bool = False, **how: Any) -> Any:
    """Runs a module of peers in its own process, with the devices it needs. Returns its last printed line."""
    flags = os.environ.get("XLA_FLAGS", "")
    if device == "cpu" and "device_count" not in flags:
        flags += f" --xla_force_host_platform_device_count={os.cpu_count()}"
    env = os.environ | {
        "JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[device],
        "XLA_FLAGS": flags.strip(),
        # PyTorch and JAX share the card.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
    }
    if not keeps_compiled:  # otherwise the time of a first call would depend on earlier runs
        env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    # -P: modules in the current folder are not imported.
    command = [sys.executable, "-P", "-m", f"peers.{module}", json.dumps(how)]
    ran = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        raise SystemExit(f"peers.{module} {how} failed: exit status {ran.returncode}, its error stands above.")
    return json.loads(ran.stdout.splitlines()[-1])


def run_growth(args: argparse.Namespace) -> dict[str, Any]:
    """Returns points by number of heads, and by length of the slices."""
    by_heads = [(heads, USUAL_LENGTH, FEW_ROWS) for heads in HEADS]
    by_length = [(USUAL_HEADS, length, MANY_ROWS) for length in LENGTHS]
    if args.tiny:
        by_heads = by_length = [(4, 10, 100)]
    how = {"turn_count": args.turns, "least_secs": args.least_secs, "tiny": args.tiny}

    @functools.cache
    def run(point: tuple[int, int, int]) -> Any:
        num_heads, length, num_rows = point
        sizes = {"num_heads": num_heads, "length": length, "num_rows": num_rows}
        return run_alone("growth", args.device, args.tiny, **sizes, **how)

    return {"by heads": [run(point) for point in by_heads], "by length": [run(point) for point in by_length]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="cases to run; all by default")
    parser.add_argument("--opponents", nargs="+", help="opponents to run, such as vmap; all by default")
    parser.add_argument("--turns", type=int, help="turns per opponent; 5 by default")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--output", type=Path, help="folder for engine.md, engine.json and engine.png")
    parser.add_argument("--quick", action="store_true", help="tiny heads and few steps, for some cases and opponents")
    parser.add_argument("--check", action="store_true", help="tiny too, but for all cases and opponents")
    args = parser.parse_args()
    args.tiny = args.quick or args.check
    args.cases = args.cases or (tuple(QUICK) if args.quick else CASES)
    args.turns = args.turns or (1 if args.tiny else 5)
    args.least_secs = 0.0 if args.tiny else LEAST_SECS
    return args


def main() -> None:
    args = parse()
    texts: list[str] = []

    def say(text: str) -> None:
        texts.append(text)
        print(text + "\n", flush=True)

    say(machine.describe())
    if args.tiny:
        say("Tiny heads, few steps: the times below say nothing.")
    if os.getloadavg()[0] > BUSY_SHARE * (os.cpu_count() or 1) and not args.tiny:
        say(
            "**Other work runs on these cores, so the times below say little**: PyTorch's threads, which wait for each "
            "other, suffer a hundredfold where cores are shared."
        )
    limits = run_alone("limits", args.device, args.tiny, tiny=args.tiny)
    found: dict[str, Any] = {}
    for letter in args.cases:
        if letter == "g":
            found[letter] = run_growth(args)
            say(report.of_growth(found[letter]))
            continue
        how = {"turn_count": args.turns, "tiny": args.tiny, "least_secs": args.least_secs}
        only = QUICK.get(letter) if args.quick else args.opponents
        found[letter] = run_alone("run_case", args.device, args.tiny, letter=letter, only=only, **how)
        say(report.of_case(found[letter], micro=args.device == "gpu"))
    if found.keys() - {"g"}:
        say(report.of_limits(found, limits, on_gpu=args.device == "gpu"))
    say(report.of_reach(found))
    say(f"{machine.load()} at the end")
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "engine.md").write_text("\n\n".join(texts) + "\n")
        (args.output / "engine.json").write_text(json.dumps({"limits": limits, **found}, indent=1))
        try:
            report.plot(found, args.output / "engine.png")
        except ImportError:
            print("No engine.png: matplotlib is not installed.", file=sys.stderr)
    wrong = [text for letter, case in found.items() for text in case.get("wrong", [])]
    if wrong:
        raise SystemExit("Not all opponents train the same thing:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
