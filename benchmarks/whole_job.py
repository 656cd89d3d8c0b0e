"""Measures whole jobs: from the start of a process, imports included, to the result.

Two short jobs, each written with Hydrax and in the way that its users write it today:
- prefix: a learning curve of 784 linear models 784-2, model k on the first k rows, 300 steps of AdamW, B = 32. By hand:
  chunks of 8 models, each a scan over all steps of the vmapped step, one program and one thread for each core;
- folds: a 5-fold of an MLP 64-100-10 on scikit-learn's digits, 200 epochs of Adam, B = 200, and the predictions out of
  fold. scikit-learn: `cross_val_predict(MLPClassifier(...), n_jobs=2)`, whose defaults these are.

Hydrax runs with the Trainer's defaults: checks, TensorBoard, a checkpoint and the bar. A "barebones" row has none of
the last three. Every run is a fresh process, and all take turns. "Warm" processes find the programs of an earlier,
untimed run in the compile cache, those by hand as well; "cold" ones find an empty folder. The parent records when it
starts a process, and the process when it has its result as NumPy arrays. CPU seconds are those of the process and its
children, to the exit. Results: benchmarks/README.md.

    python benchmarks/whole_job.py
    python benchmarks/whole_job.py --quick    # tiny, for CI
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from peers import machine
from peers.report import number, table

OPPONENTS = {"prefix": "JAX by hand: chunks", "folds": "scikit-learn, 2 processes"}
HYDRAX, BAREBONES = "Hydrax", "Hydrax, barebones"
WANTED = {("prefix", "warm"): 1.0, ("prefix", "cold"): 1.3, ("folds", "warm"): 0.5, ("folds", "cold"): 0.9}
CHUNK = 8
WIDTH, HIDDEN = 784, 100


def prefix_data() -> Any:
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)
    return x, (x @ rng.normal(size=(WIDTH, 2))).argmax(1).astype(np.int32)


def prefix_by_hand(heads: int, steps: int, folder: str) -> Any:
    """Trains the prefixes with JAX and Optax alone; returns the parameters [H, ...] and the losses of the last step."""
    from concurrent.futures import ThreadPoolExecutor

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    x, y = prefix_data()
    optimizer, batch = optax.adamw(1e-3, weight_decay=1e-4), 32

    def loss_of(params: Any, images: Any, labels: Any) -> Any:
        logits = images @ params["kernel"] + params["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def run(lengths: Any, keys: Any, x: Any, y: Any) -> Any:
        def one_step(params: Any, opt_state: Any, length: Any, t: Any) -> Any:
            rows = (t * batch + jnp.arange(batch)) % length
            loss, gradients = jax.value_and_grad(loss_of)(params, x[rows], y[rows])
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        def run_chunk(chunk: Any) -> Any:
            lengths, keys = chunk
            kernel = jax.vmap(lambda key: jax.random.normal(key, (WIDTH, 2)) / WIDTH**0.5)(keys)
            params = {"kernel": kernel, "bias": jnp.zeros((CHUNK, 2))}

            def body(state: Any, t: Any) -> Any:
                params, opt_state, loss = jax.vmap(one_step, in_axes=(0, 0, 0, None))(*state, lengths, t)
                return (params, opt_state), loss

            start = (params, jax.vmap(optimizer.init)(params))
            (params, _), losses = jax.lax.scan(body, start, jnp.arange(steps))
            return params, losses[-1]

        return jax.lax.map(run_chunk, (lengths.reshape(-1, CHUNK), keys.reshape(-1, CHUNK)))

    lanes, ids = os.cpu_count() or 1, np.arange(heads)
    padded = np.resize(ids, -(-heads // (lanes * CHUNK)) * lanes * CHUNK)
    keys = jax.vmap(lambda head: jax.random.fold_in(jax.random.key(0), head))(padded)
    compiled = jax.jit(run).lower(padded[: len(padded) // lanes] + 1, keys[: len(padded) // lanes], x, y).compile()

    def of_lane(lane: int) -> Any:
        part = padded[lane::lanes]
        return jax.tree.map(np.asarray, compiled(part + 1, keys[lane::lanes], x, y))

    with ThreadPoolExecutor(lanes) as pool:
        return list(pool.map(of_lane, range(lanes)))


def prefix_hydrax(heads: int, steps: int, folder: str, **trainer: Any) -> Any:
    import hydrax as hx  # before Optax and Flax, as the README has it

    # isort: split
    import optax
    from flax import nnx

    from hydrax.datamodules import ArrayDataModule

    class Module(hx.HydraModule):
        def configure_model(self, key: Any) -> Any:
            return nnx.Linear(WIDTH, 2, rngs=nnx.Rngs(key))

        def configure_optimizers(self) -> Any:
            return optax.adamw(1e-3, weight_decay=1e-4)

        def training_step(self, model: Any, batch: Any, ctx: hx.Context) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])

    x, y = prefix_data()
    data = ArrayDataModule({"x": x, "y": y}, slices=hx.Slices.prefix(range(1, heads + 1), WIDTH), batch_size=32)
    result = hx.Trainer(max_steps=steps, default_root_dir=folder, **trainer).fit(Module(), data)
    return result.heads.trainable, result.metrics


def fold_data() -> Any:
    import numpy as np
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y.astype(np.int32)


def folds_sklearn(heads: int, epochs: int, folder: str) -> Any:
    import warnings

    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.neural_network import MLPClassifier

    x, y = fold_data()
    model = MLPClassifier(HIDDEN, alpha=0.0, max_iter=epochs, n_iter_no_change=epochs + 1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it did not converge, as intended
        return cross_val_predict(model, x, y, cv=KFold(heads, shuffle=True, random_state=0), n_jobs=2)


def folds_hydrax(heads: int, epochs: int, folder: str, **trainer: Any) -> Any:
    import hydrax as hx  # before Optax and scikit-learn, as the README has it

    # isort: split
    import optax
    from sklearn.model_selection import KFold

    from hydrax.datamodules import ArrayDataModule

    class Module(hx.HydraModule):
        def configure_model(self, key: Any) -> Any:
            return hx.nn.MLP([64, HIDDEN, 10])(key)

        def configure_optimizers(self) -> Any:
            return optax.adam(1e-3)

        def training_step(self, model: Any, batch: Any, ctx: hx.Context) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])

        def predict_step(self, model: Any, batch: Any, ctx: hx.Context) -> Any:
            return model(batch["x"])

    x, y = fold_data()
    slices = hx.Slices.from_splits(KFold(heads, shuffle=True, random_state=0).split(x), len(x))
    data = ArrayDataModule({"x": x, "y": y}, slices=slices, batch_size=200)
    fitted = hx.Trainer(max_epochs=epochs, default_root_dir=folder, **trainer)
    fitted.fit(Module(), data)
    return fitted.predict_held_out().per_row().argmax(-1)


JOBS: dict[tuple[str, str], Callable[..., Any]] = {
    ("prefix", HYDRAX): prefix_hydrax,
    ("prefix", BAREBONES): lambda *sizes: prefix_hydrax(*sizes, barebones=True),
    ("prefix", OPPONENTS["prefix"]): prefix_by_hand,
    ("folds", HYDRAX): folds_hydrax,
    ("folds", BAREBONES): lambda *sizes: folds_hydrax(*sizes, barebones=True),
    ("folds", OPPONENTS["folds"]): folds_sklearn,
}


def run_one(job: str, who: str, sizes: tuple[int, int], cache: str) -> tuple[float, float]:
    """Runs a job in a fresh process; returns its wall-clock seconds to the result, and its CPU seconds."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": cache}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    if who == OPPONENTS["prefix"]:  # who writes by hand sets these where a second start is to be fast
        env |= {"JAX_COMPILATION_CACHE_DIR": f"{cache}/by_hand", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", job, who, *map(str, sizes), folder]
        began = time.time()
        ran = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert ran.stdout is not None
        printed = ran.stdout.read()
        _, status, used = os.wait4(ran.pid, 0)
        ran.returncode = os.waitstatus_to_exitcode(status)
    if ran.returncode:
        raise SystemExit(f"{who} failed in the job {job}: exit status {ran.returncode}.")
    return json.loads(printed.splitlines()[-1]) - began, used.ru_utime + used.ru_stime


def rows_of(job: str, found: dict[tuple[str, str], list[tuple[float, float]]]) -> list[tuple[str, ...]]:
    """Makes the rows of a job's table; a ratio is the median over turns of the ratios within a turn."""
    rows = []
    for (state, who), times in found.items():
        theirs = found[state, OPPONENTS[job]]
        ratios = [ours[0] / other[0] for ours, other in zip(times, theirs, strict=True)]
        wall, cpu = (statistics.median(one[part] for one in times) for part in (0, 1))
        wanted = f"{WANTED[job, state]:g}" if who != OPPONENTS[job] else "-"
        span = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        rows.append((state, who, f"{wall:.2f}", f"{cpu:.2f}", number(statistics.median(ratios)), span, wanted))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="number of runs per variant")
    parser.add_argument("--jobs", nargs="+", choices=OPPONENTS, default=list(OPPONENTS))
    parser.add_argument("--states", nargs="+", choices=("cold", "warm"), default=["cold", "warm"])
    parser.add_argument("--quick", action="store_true", help="tiny jobs, one turn, a cold cache: checks that it runs")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        job, who, heads, length, folder = args.one
        JOBS[job, who](int(heads), int(length), folder)
        print("\n" + json.dumps(time.time()), flush=True)
        return

    sizes = {"prefix": (16, 4), "folds": (2, 2)} if args.quick else {"prefix": (784, 300), "folds": (5, 200)}
    turns, states = (1, ["cold"]) if args.quick else (args.turns, args.states)
    print(f"{machine.describe()}\n\n{turns} turns")
    for job in args.jobs:
        who = [one for known, one in JOBS if known == job]
        found: dict[tuple[str, str], list[tuple[float, float]]] = {(state, one): [] for state in states for one in who}
        with tempfile.TemporaryDirectory() as filled:
            for one in who if "warm" in states else ():
                run_one(job, one, sizes[job], filled)
            for _ in range(turns):
                for state, one in found:
                    with tempfile.TemporaryDirectory() as empty:
                        found[state, one].append(run_one(job, one, sizes[job], filled if state == "warm" else empty))
        head = ("compile cache", "who", "s to the result", "CPU s", "to the opponent", "least and most", "wanted")
        print(f"\n### {job}\n\n{table(head, rows_of(job, found))}", flush=True)
    print(f"\n{machine.load()} at the end")


if __name__ == "__main__":
    main()
