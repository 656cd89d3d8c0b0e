"""What every test shares: Hydrax before JAX, no silent rank promotion, tests of one kind of device there only."""

import hydrax  # noqa: F401  # isort: skip  # first: its guard must stand before JAX starts its backend

import gc
import os
import signal
from collections.abc import Iterator

import jax
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job
    signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A GPU multiplies float32 in TF32 unless told otherwise: three digits, where the tests compare with NumPy's seven.
jax.config.update("jax_default_matmul_precision", "highest" if jax.default_backend() == "gpu" else None)
# Tracing makes objects by the million and hardly a cycle: Python would look for some at each 700.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
            item.add_marker(pytest.mark.skip(reason="needs a GPU: JAX finds none here"))
        if item.get_closest_marker("cpu") and jax.default_backend() != "cpu":
            item.add_marker(pytest.mark.skip(reason="says what holds on a CPU: JAX uses another device here"))


@pytest.fixture(scope="session", autouse=True)
def compiled_programs_are_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiling is most of what the tests cost: a program that one test compiled is read back by the next.

    By those of other workers and by the processes that tests start, too; so nothing is left in the cache folder of
    whoever runs the tests.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        # What was imported stays; without this each collection walks through all of it.
        gc.collect()
        gc.freeze()
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_in_memory_go_with_their_file() -> Iterator[None]:
    """No other file has the same functions; what JAX keeps of all of them grew to 5 GB in each process."""
    yield
    jax.clear_caches()
    gc.collect()
