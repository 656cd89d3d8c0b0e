"""hydrax.jaxlib_guard: correct numbers on a CPU from the faulty jaxlib versions, and nothing else changed."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hydrax import jaxlib_guard

OFF = "--xla_cpu_experimental_ynn_fusion_type="
FAULTY = [(0, 10, 2), (0, 11), (0, 11, 2)]
SOUND = [(0, 10, 1), (0, 12), (0, 12, 0, 1)]

# jax#39103: row i of the product is (i, 0, 0), so the squares sum to i * i, which NumPy knows as well.
VMAPPED_SUM = """
import jax, jax.numpy as jnp, numpy as np

numbers = np.arange(32_769, dtype=np.float32)
rows = jnp.zeros((32_769, 3)).at[:, 0].set(numbers)
sums = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
print("wrong rows:", int((np.asarray(sums) != numbers**2).sum()))
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a fresh process on the CPU, without any XLA flag from here."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=root, capture_output=True, text=True, check=True, timeout=120
    )


@pytest.fixture(autouse=True)
def faulty_jaxlib_on_a_fresh_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case that the guard is for; each test changes one thing."""
    monkeypatch.setattr(jaxlib_guard, "jaxlib_version", (0, 10, 2))
    monkeypatch.setattr(jaxlib_guard, "_backend_started", lambda: False)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("XLA_FLAGS", "")


def test_a_vmapped_sum_of_products_is_right_in_every_row_once_hydrax_is_imported():
    done = run("from hydrax import jaxlib_guard\njaxlib_guard.apply()" + VMAPPED_SUM)
    assert done.stdout == "wrong rows: 0\n"


@pytest.mark.parametrize("version", FAULTY)
def test_the_fusion_is_turned_off_in_the_faulty_versions(monkeypatch, version):
    monkeypatch.setattr(jaxlib_guard, "jaxlib_version", version)
    assert jaxlib_guard.apply()
    assert os.environ["XLA_FLAGS"] == OFF


@pytest.mark.parametrize("version", SOUND)
def test_xla_flags_stay_empty_in_the_sound_versions(monkeypatch, version):
    monkeypatch.setattr(jaxlib_guard, "jaxlib_version", version)
    assert not jaxlib_guard.apply()
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize(
    ("platforms", "changed"), [("", True), ("cpu", True), ("cuda,cpu", True), ("cuda", False), ("tpu", False)]
)
def test_the_fusion_is_turned_off_only_where_jax_may_use_the_cpu(monkeypatch, platforms, changed):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert jaxlib_guard.apply() is changed
    assert (os.environ["XLA_FLAGS"] == OFF) is changed


def test_other_flags_of_the_user_stay_in_front(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert jaxlib_guard.apply()
    assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count=2 {OFF}"


@pytest.mark.parametrize("flags", [OFF, f"{OFF}LIBRARY_YNN --xla_dump_to=here"])
def test_the_users_own_setting_of_the_flag_is_kept(monkeypatch, flags):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert not jaxlib_guard.apply()
    assert os.environ["XLA_FLAGS"] == flags


def test_the_flag_is_told_of_once(caplog):
    with caplog.at_level(logging.INFO, logger="hydrax"):
        jaxlib_guard.apply()
        jaxlib_guard.apply()
    assert [(record.name, record.levelname) for record in caplog.records] == [("hydrax", "INFO")]
    assert OFF in caplog.text


def test_a_started_backend_is_warned_of_and_xla_flags_stay_empty(monkeypatch):
    monkeypatch.setattr(jaxlib_guard, "_backend_started", lambda: True)
    with pytest.warns(RuntimeWarning, match="Fix: import hydrax before JAX computes, or set XLA_FLAGS"):
        assert not jaxlib_guard.apply()
    assert os.environ["XLA_FLAGS"] == ""


def test_xla_flags_that_name_a_file_are_warned_of_and_kept(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "flags.txt")
    with pytest.warns(RuntimeWarning, match="Got the file name XLA_FLAGS=flags.txt"):
        assert not jaxlib_guard.apply()
    assert os.environ["XLA_FLAGS"] == "flags.txt"


@pytest.mark.parametrize(
    ("before", "started"),
    [
        ("", False),
        ("import jax", False),
        ("import jax; jax.config.update('jax_platforms', 'cpu')", False),
        ("import jax; jax.devices()", True),
    ],
)
def test_a_backend_counts_as_started_from_the_first_use_of_a_device(before, started):
    done = run(f"{before}\nfrom hydrax import jaxlib_guard\nprint(jaxlib_guard._backend_started())")
    assert done.stdout == f"{started}\n"
