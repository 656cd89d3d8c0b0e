"""benchmarks/: each script runs in a small form and prints its tables."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "chunk_width": "--turns 1 --steps 4 --steps-per-call 2 --chunks 1 4",
    "engine": "--quick",
    "index_batches": "--turns 1 --steps 26 --heads 4",
    "log_cost": "--heads 4 --metrics 3 --logs 5",
    "million": "--quick",
    "plan_sweep": "--quick --kinds subsets --models 'linear 10-1'",
    "quiet_host": "--turns 1 --turn-secs 0.05 --heads 4",
    "shared_sampling": "--turns 1 --steps 51 --workloads 1",
    "start": "--turns 1 --heads 4 --states cold --default",
    "streaming": "--turns 1 --steps 20 --rows 2000 --folder .",
    "tiny": "--quick --models 'linear 10-1'",
    "whole_job": "--quick",
}
PEERS = [
    "Hydrax",
    "JAX by hand: vmap + scan",
    "JAX by hand: chunks, all devices",
    "PyTorch, one model after the other",
]
# The first cell of each row of each table.
TABLES = {
    "chunk_width": [["1", "4"]] * 2,
    "engine": [
        PEERS,
        ["Hydrax", "Hydrax, fewer heads"],
        ["4"],
        ["10"],
        ["a", "f"],
        ["a", "a", "a", "a", "f", "g", "g"],
    ],
    "index_batches": [["the draw alone", "none", "host", "program"]] * 2,
    "log_cost": [["training", "validation"]],
    "million": [
        [
            "slices and rows",
            *("fit: to the first step", "fit: first superstep, 50 steps", "fit: other supersteps, 0"),
            *("fit: last save, heads.csv", "fit, whole", "result.table()", "Heads.save", "Heads.load"),
            *("Heads.load, one head", "Heads.load, of the checkpoint", "export, .npz", "pickled and back"),
            *("fit, resumed at its end", "hydrax heads --sort train_loss --limit 10"),
            *("hydrax heads --status stopped", "loaded afresh"),
        ]
    ],
    "plan_sweep": [["linear 10-1"]],
    "quiet_host": [["default to barebones", "barebones to program"]],
    "shared_sampling": [["own", "own", "shared"]],
    "start": [["cold"]],
    "streaming": [["device", "host", "host, cold"]],
    "tiny": [["linear 10-1"]],
    "whole_job": [["cold"] * 3] * 2,
}


def run(script, options, folder):
    """Runs a script as a user does and returns its output. It may read programs that earlier tests compiled."""
    kept = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), *sys.path]),
    }
    command = [sys.executable, FOLDER / f"{script}.py", *shlex.split(options)]
    ran = subprocess.run(command, env=os.environ | kept, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def tables(printed):
    """Returns the cells of each Markdown table, without its header."""
    found = re.findall(r"^\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", printed, re.MULTILINE)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in body.splitlines()] for body in found]


def test_every_script_has_a_small_form():
    assert {path.stem for path in FOLDER.glob("*.py")} == SMALL.keys()


# Each small form compiles for at least ten seconds; the others run with the slow tests.
ALWAYS = ("engine",)
FORMS = [pytest.param(script, marks=() if script in ALWAYS else pytest.mark.slow) for script in SMALL]


@pytest.mark.parametrize("script", FORMS)
def test_a_small_form_prints_its_tables_and_leaves_nothing_behind(script, tmp_path):
    printed = run(script, SMALL[script], tmp_path)
    found = tables(printed)
    assert printed.startswith("Python 3.")
    assert [[row[0] for row in table] for table in found] == TABLES[script]
    assert [cell for table in found for row in table for cell in row if cell in ("", "nan")] == []
    assert [*tmp_path.iterdir()] == []
