"""hydrax.compile_cache: programs compile once on a machine, with the same bits, and no trouble with it stops a run."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

from hydrax.engine import compile_cache

# Prints a digest of the trained heads, how many programs were asked for, and how many were read from the cache.
SMALL_FIT = """
import hashlib
import hydrax as hx, jax, numpy as np, optax
from hydrax.datamodules import ArrayDataModule

class Logistic(hx.HydraModule):
    def configure_model(self, key):
        return {"kernel": jax.random.normal(key, (8, 3))}
    def configure_optimizers(self):
        return optax.adamw(1e-2)
    def training_step(self, model, batch, ctx):
        return optax.softmax_cross_entropy_with_integer_labels(batch["x"] @ model["kernel"], batch["y"])

events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.split("/")[-1]))
x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
slices = hx.Slices.prefix(range(1, 10), num_rows=40)
data = ArrayDataModule({"x": x, "y": np.arange(40) % 3}, slices=slices, batch_size=4)
heads = hx.Trainer(max_steps=20, barebones=True).fit(Logistic(), data).heads
print(hashlib.sha256(np.asarray(heads.trainable["kernel"]).tobytes()).hexdigest())
print(events.count("compile_requests_use_cache"), events.count("cache_hits"))
"""


class Run:
    """A small fit in a fresh process where every warning is an error."""

    def __init__(self, cache: Path, **more: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SMALL_FIT],
            env=kept | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache), "LOCALAPPDATA": str(cache)} | more,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        self.bits, counts = done.stdout.splitlines()
        self.asked, self.read = map(int, counts.split())
        self.messages = done.stderr


def programs(cache: Path) -> list[Path]:
    return list(cache.glob("hydrax/jax/*/*-cache"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def first(cache: Path) -> Run:
    return Run(cache)


@pytest.fixture(scope="module")
def second(first: Run, cache: Path) -> Run:
    return Run(cache)


def test_the_first_process_compiles_and_keeps_every_program(first, cache):
    assert (first.asked > 0, first.read, first.messages) == (True, 0, "")
    assert programs(cache)


def test_the_second_process_reads_every_program_and_says_nothing(second):
    assert (second.read, second.messages) == (second.asked, "")


def test_programs_that_were_read_give_the_bits_of_compiled_ones(second, tmp_path):
    compiled = Run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert (compiled.asked, programs(tmp_path)) == (0, [])
    assert second.bits == compiled.bits


def test_damaged_programs_cost_one_line_and_are_replaced(second, cache):
    halves = {path: path.stat().st_size // 2 for path in programs(cache)}
    for path, size in halves.items():
        os.truncate(path, size)
    mended = Run(cache)
    assert (mended.bits, mended.read) == (second.bits, 0)
    assert mended.messages.count("\n") == 1 and "Error reading" in mended.messages
    assert [path for path, size in halves.items() if path.stat().st_size <= size] == []


def test_two_processes_at_once_end_with_the_same_bits(first, tmp_path):
    with ThreadPoolExecutor(2) as both:
        runs = list(both.map(lambda _: Run(tmp_path), range(2)))
    assert {run.bits for run in runs} == {first.bits}


# From here on inside this process. JAX opens a cache once, and tests/conftest.py has made it open another one: these
# change what is configured, not what is used.


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A process in which nothing was turned on and the user has said nothing; gives the user's cache folder."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    for name, default in zip(names, (None, 1.0, True), strict=True):
        jax.config.update(name, default)
    monkeypatch.setattr(compile_cache, "_user_cache", lambda: tmp_path)
    compile_cache._turn_on.cache_clear()
    yield tmp_path
    compile_cache._turn_on.cache_clear()
    for name, value in before.items():
        jax.config.update(name, value)


def configured() -> tuple[str | None, float]:
    return jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs


def test_programs_that_compile_fast_are_kept_too(fresh):
    compile_cache.enable()
    folder, min_secs = configured()
    assert Path(folder).parent == fresh / "hydrax" / "jax"
    assert min_secs == 0


@pytest.mark.parametrize(
    ("name", "value"), [("jax_compilation_cache_dir", "mine"), ("jax_enable_compilation_cache", False)]
)
def test_what_the_user_has_set_stays(fresh, name, value):
    jax.config.update(name, value)
    before = configured()
    compile_cache.enable()
    assert configured() == before
    assert list(fresh.iterdir()) == []


def test_a_least_compile_time_of_the_users_stays(fresh):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 3.0)
    compile_cache.enable()
    assert configured()[1] == 3.0


def test_a_folder_that_cannot_be_made_leaves_the_cache_off_and_is_told_of_once(fresh, caplog):
    (fresh / "hydrax").write_text("a file where the folder should be")
    compile_cache.enable()
    compile_cache.enable()
    assert configured() == (None, 1.0)
    assert [(record.name, record.levelname) for record in caplog.records] == [("hydrax", "WARNING")]


@pytest.mark.parametrize("part", ["hydrax", "hydrax/jax"])
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_can_write_leaves_the_cache_off_and_is_told_of_once(fresh, caplog, part, mode):
    folder = fresh / part
    folder.mkdir(parents=True)
    folder.chmod(mode)
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None
    assert [str(folder) in line and "can be written by others" in line for line in caplog.messages] == [True]


def test_a_folder_of_another_user_leaves_the_cache_off(fresh, caplog, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: os.stat(fresh).st_uid + 1)
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None
    assert "belongs to user" in caplog.text


def test_under_any_umask_its_own_folders_are_private(fresh):
    before = os.umask(0)
    try:
        compile_cache.enable()
    finally:
        os.umask(before)
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert [part.stat().st_mode & 0o777 for part in (folder, *folder.parents[:2])] == [0o700] * 3


def test_a_user_without_a_home_is_told_of_once(fresh, monkeypatch, caplog):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compile_cache, "_user_cache", homeless)
    compile_cache.enable()
    assert configured()[0] is None
    assert len(caplog.records) == 1


def test_writes_that_fail_are_told_of_once_and_are_no_warnings(fresh, caplog):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("error")
        compile_cache.enable()
        for name in ("jit_a", "jit_b"):
            # The text is JAX's: jax/_src/compiler.py, _cache_write.
            warnings.warn(f"Error writing persistent compilation cache entry for '{name}': OSError: full", stacklevel=1)
    assert seen == []
    assert [record.name for record in caplog.records] == ["hydrax"]


def test_other_warnings_go_where_they_went(fresh):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        compile_cache.enable()
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert [str(found.message) for found in seen] == ["something else"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("_cpu", lambda: ["another model"]), ("_THREAD_VARIABLES", ("PATH",))],
    ids=["another CPU", "threads set by the user"],
)
def test_another_machine_has_another_folder(monkeypatch, name, value):
    here = compile_cache._machine()
    assert compile_cache._machine() == here
    monkeypatch.setattr(compile_cache, name, value)
    assert compile_cache._machine() != here


def test_another_number_of_cores_has_another_folder(monkeypatch):
    here = compile_cache._machine()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(1000)), raising=False)
    assert compile_cache._machine() != here


@pytest.mark.parametrize(
    ("platform", "env", "folder"),
    [
        ("linux", {}, "home/.cache"),
        ("linux", {"XDG_CACHE_HOME": "/caches"}, "/caches"),
        ("linux", {"XDG_CACHE_HOME": "not/absolute"}, "home/.cache"),
        ("darwin", {}, "home/Library/Caches"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local"),
    ],
)
def test_the_users_cache_folder_is_the_systems_own(monkeypatch, platform, env, folder):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert compile_cache._user_cache() == Path(folder)


def make(folder: Path, name: str, secs: int) -> None:
    """A file of 100 bytes that was last read and written at a time."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(100))
    os.utime(path, (secs, secs))


@pytest.mark.parametrize(
    ("max_bytes", "left"), [(400, {"a", "b", "c", "d"}), (399, {"a", "c"}), (100, set()), (0, set())]
)
def test_what_was_not_used_for_longest_goes_first_down_to_three_quarters(tmp_path, max_bytes, left):
    for name, secs in (("cores-2/a", 40), ("cores-2/b", 10), ("cores-4/c", 30), ("cores-4/d", 20)):
        make(tmp_path, name, secs)
    compile_cache.sweep(tmp_path, max_bytes)
    assert {path.name for path in tmp_path.rglob("?")} == left


def test_every_stage_turns_it_on(monkeypatch):
    import hydrax as hx
    from hydrax.train.lifecycle import open_stage
    from hydrax.train.settings import Settings

    calls = []
    monkeypatch.setattr(compile_cache, "enable", lambda: calls.append(1))
    for stage in ("fit", "validate", "test", "predict"):
        with open_stage(Settings(), hx.HydraModule(), hx.DataModule(), stage):
            pass
    assert len(calls) == 4
