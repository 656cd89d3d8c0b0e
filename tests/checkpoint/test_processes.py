"""Under `jax.distributed` each process saves and reads its own run, and waits for no other."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import hydrax

SECS = 240
# Each process trains for itself, one longer than the other; the first has saved all when the second has not begun.
PROGRAM = """
import json, sys, time
from pathlib import Path
import jax

number, port, root = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=number)
assert (jax.process_count(), jax.process_index()) == (2, number)

import numpy as np
import hydrax as hx
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, run
from hydrax.callbacks import ModelCheckpoint

done = root / "first is done"
while number == 1 and not done.exists():
    time.sleep(0.1)
slices = hx.Slices.random_subset([40, 17], NUM_ROWS, seed=number)
saver = ModelCheckpoint(dirpath=root / str(number), every_n_train_steps=2)
result = run(PlainClassifier(), data_of(slices), None, [saver], max_steps=4 + 2 * number).result
loaded = hx.Heads.load(root / str(number) / "last", PlainClassifier())
same = np.array_equal(loaded.trainable["kernel"], result.heads.trainable["kernel"])
resumed = run(PlainClassifier(), data_of(slices), root / str(number) / "last", [saver], max_steps=10).result
print(json.dumps({"step": result.step, "same": same, "resumed": resumed.step}), flush=True)
done.touch()
"""


def test_each_of_two_processes_saves_its_own_run_and_does_not_wait_for_the_other(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = [str(Path(hydrax.__file__).parents[1]), str(Path(__file__).parents[1])]
    program = f"import sys; sys.path[:0] = {path}\n{PROGRAM}"
    command = [sys.executable, "-c", program]
    processes = [
        subprocess.Popen(
            [*command, str(number), str(port), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        ends = [process.communicate(timeout=SECS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ends
    assert [json.loads(out.splitlines()[-1]) for out, _ in ends] == [
        {"step": 4, "same": True, "resumed": 10},
        {"step": 6, "same": True, "resumed": 10},
    ]
