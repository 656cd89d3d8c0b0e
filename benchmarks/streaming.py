"""Measures the time and memory of training from a file instead of from the device.

The script writes a memory map of random rows (4.3 GB by default, deleted at the end) and trains the same heads on it:
- device: the whole dataset is copied to the device first;
- host: residence="host", the rows of each superstep are read from the map, which is in the page cache;
- host, cold: the same, after the file was dropped from the page cache.

The variants take turns, each fit in its own process, and the median over turns counts. A speed is relative to "device"
in the same turn. Compilation and the first superstep count for memory, not for time. Memory is sampled from
/proc/self/status while the fit runs, minus what the process held after its imports: its own memory, and pages of mapped
files, which the kernel may reclaim. Results: benchmarks/README.md.

    python benchmarks/streaming.py
"""

import argparse
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from chunk_width import Classifier, Clock, machine

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

WIDTHS = (1024, 256, 10)
WAYS = ("device", "host", "host, cold")
MEMORY = ("RssAnon", "RssFile")  # the process's own memory, and pages of mapped files


@dataclass(frozen=True)
class Measured:
    """Seconds and core-seconds of one step of all heads, and peak bytes beyond those of the libraries, by name."""

    step_secs: float
    core_secs: float
    peak: dict[str, int]


class CoreClock(Clock):
    """Also records the CPU time used so far, which other work on the machine affects less than the time."""

    def __init__(self) -> None:
        super().__init__()
        self._cores: list[float] = []

    def on_train_steps_end(self, event: hx.Event) -> None:
        super().on_train_steps_end(event)
        self._cores.append(time.process_time())

    def core_secs(self) -> float:
        return (self._cores[-1] - self._cores[0]) / (self.heard[-1][0] - self.heard[0][0])


class Memory:
    """Samples the resident memory of this process until it is stopped."""

    def __init__(self) -> None:
        self._before = self._now()
        self.peak = dict.fromkeys((*MEMORY, "all"), 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def stop(self) -> dict[str, int]:
        self._stop.set()
        self._thread.join()
        return self.peak

    def _sample(self) -> None:
        while not self._stop.wait(0.01):
            more = {name: size - self._before[name] for name, size in self._now().items()}
            self.peak = {name: max(most, more[name]) for name, most in self.peak.items()}

    def _now(self) -> dict[str, int]:
        status = Path("/proc/self/status").read_text()
        sizes = {name: 1024 * int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in MEMORY}  # type: ignore[index]
        return sizes | {"all": sum(sizes.values())}


@contextmanager
def rows_on_disk(folder: str | None, num_rows: int) -> Iterator[Path]:
    """Writes a file of float32 rows and flushes it, so that the page cache can drop it. Deletes it at the end."""
    rng = np.random.default_rng(0)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".float32") as file:
        for first in range(0, num_rows, 2**14):
            file.write(rng.random((min(2**14, num_rows - first), WIDTHS[0]), np.float32))
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def forget(file: Path) -> None:
    """Drops a file that nobody maps from the page cache. The layer below a virtual machine may still hold it."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(way: str, file: Path, num_rows: int, heads: int, hidden: int, batch_size: int, steps: int) -> Measured:
    """Runs one fit, in which each head learns from a random half of the rows."""
    if way == "host, cold":
        forget(file)
    train = {
        "x": np.memmap(file, np.float32, "r", shape=(num_rows, WIDTHS[0])),
        "y": np.random.default_rng(1).integers(0, WIDTHS[-1], num_rows),
    }
    slices = hx.Slices.random_subset(np.full(heads, num_rows // 2), num_rows)
    data = ArrayDataModule(train, slices=slices, batch_size=batch_size, residence=way.split(",")[0])
    clock = CoreClock()
    trainer = hx.Trainer(max_steps=steps, steps_per_call=min(50, steps // 2), callbacks=clock, barebones=True)
    jnp.zeros(1).block_until_ready()  # starts the backend
    memory = Memory()
    try:
        trainer.fit(Classifier((WIDTHS[0], hidden, WIDTHS[-1])), data)
    finally:
        peak = memory.stop()
    return Measured(clock.step_secs(), clock.core_secs(), peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2**20, help=f"number of rows, {4 * WIDTHS[0]} bytes each")
    parser.add_argument("--turns", type=int, default=5, help="number of fits per variant")
    parser.add_argument("--steps", type=int, default=250, help="steps per fit; the first superstep is not timed")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=WIDTHS[1], help="width of the hidden layer")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--folder", help="folder of the file; by default the system's temporary folder")
    args = parser.parse_args()

    print(machine())
    found: dict[str, list[Measured]] = {way: [] for way in WAYS}
    # Each fit has its own process, so that memory left by one does not count for the next.
    alone = ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1)
    with rows_on_disk(args.folder, args.rows) as file, alone:
        for _ in range(args.turns):
            for way in WAYS:
                how = (args.rows, args.heads, args.hidden, args.batch_size, args.steps)
                found[way].append(alone.submit(measure, way, file, *how).result())

    size = 4 * args.rows * WIDTHS[0]
    print(
        f"\n{args.heads} heads, MLP {WIDTHS[0]}-{args.hidden}-{WIDTHS[-1]}, B = {args.batch_size}; a map of "
        f"{size / 1e9:.2f} GB; {args.turns} turns of {args.steps} steps\n"
    )
    print(
        "| rows from | ms a step | of all cores | speed to device | slowest and fastest turn | own MB | mapped | both |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for way, fits in found.items():
        step = 1e3 * statistics.median(one.step_secs for one in fits)
        cores = 1e3 * statistics.median(one.core_secs for one in fits)
        speeds = [of.step_secs / one.step_secs for of, one in zip(found["device"], fits, strict=True)]
        speed = f"{statistics.median(speeds):.2f} | {min(speeds):.2f} .. {max(speeds):.2f}"
        peaks = " | ".join(f"{max(one.peak[name] for one in fits) / 1e6:.0f}" for name in (*MEMORY, "all"))
        print(f"| {way} | {step:.1f} | {cores:.1f} | {speed} | {peaks} |")
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
