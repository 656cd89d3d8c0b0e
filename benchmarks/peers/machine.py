"""What ran where, as lines; imports none of what it names."""

import datetime
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "scikit-learn", "joblib")


def version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"


def cpu() -> str:
    """Returns the name of the processor, if the system tells it."""
    info = Path("/proc/cpuinfo")
    found = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return found[0].partition(":")[2].strip() if found else platform.machine()


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def describe() -> str:
    """Returns versions, cores, load, date and command."""
    command = " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]])
    versions = ", ".join([f"Python {platform.python_version()}", *map(version, PACKAGES)])
    day = datetime.datetime.now(datetime.UTC).date()
    return f"{versions}\n{cpu()}, {os.cpu_count()} cores, {load()}, {day}\n`{command}`"
