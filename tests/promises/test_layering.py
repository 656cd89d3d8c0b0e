"""Promise 7, layering: imports follow docs/design, section "The house"; nothing holds more than a reader can take in.

The rules read the source and run none of it. Each is a function from a file's name and syntax tree to complaints, so
the last tests can show that each does complain.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import hydrax

ROOT = Path(__file__).parents[2]

# Layer by layer, and inside a layer line by line: a file may import from what stands before it and from nothing else.
LAYERS = (
    ("errors", "jaxlib_guard"),
    (
        *("slice_arguments", "rotation", "row_law", "row_windows", "row_strata", "row_lists", "row_bits", "row_sets"),
        *("row_draws", "row_weights", "slice_recipes", "row_store", "slice_axes", "slice_description"),
        *("computed_slices", "listed_slices", "slices", "spread", "best_scores", "hparams", "settings"),
    ),
    ("columns", "module", "data", "callback"),
    (
        *(
            "model",
            "state",
            "draw",
            "convolutions",
            "pooling",
            "products",
            "reductions",
            "lowering",
            "finite",
            "step_checks",
            "accumulators",
            "training_head",
            "step",
            "preflight",
        ),
        *("layout", "work", "plan", "schedule", "program"),
    ),
    (
        *(
            "figures",
            "summaries",
            "event_files",
            "remote_logger",
            "export",
            "compile_cache",
            "folder_lock",
            "step_folders",
            "checkpoint_arrays",
            "checkpoint_rows",
            "checkpoint",
            "bad_row",
            "row_maps",
            "row_access",
            "row_processes",
            "row_reader",
        ),
        *(
            "feed",
            "stream",
            "dataset",
            "walk",
            "devices",
            "machine",
            "memory",
            "shelf",
            "compiled",
            "engine",
            "interrupts",
            "profiler",
        ),
        *("quarantine", "dispatch", "step_clock", "loop", "heads", "predictions", "evaluation", "ledger", "result"),
        *(
            "run_folder",
            "messages",
            "resume",
            "assembly",
            "tune",
            "plan_report",
            "run_view",
            "stages",
            "fitting",
            "evaluator",
            "trainer",
        ),
    ),
    ("loss", "nn", "one_call", "config_errors", "run_commands", "cli"),
)
ORDER = [unit for layer in LAYERS for unit in layer]
# The guard's whole job is to read and write XLA_FLAGS; tests/project/test_jaxlib_guard.py holds what it may do.
PURE = {unit for layer in LAYERS[:4] for unit in layer} - {"jaxlib_guard"}
PLUG_INS = ("callbacks", "datamodules")
# Imports against the order, inside functions only: file and target. `Module.load_from_checkpoint` is where Lightning's
# users look for what heads.py does.
LATE = {("hydrax/module.py", "hydrax.heads.load_with")}
# Imports against the order for type checkers only: what a user gets from these files has a name further down.
FOR_TYPES = {
    ("hydrax/module.py", "hydrax.heads.Heads"),
    ("hydrax/module.py", "hydrax.training_head.TrainingHead"),
    ("hydrax/callback.py", "hydrax.heads.Heads"),
    ("hydrax/callback.py", "hydrax.plan_report.PlanReport"),
    ("hydrax/callback.py", "hydrax.quarantine.Fault"),
}
# Core files that plug-ins may import from, besides what `hydrax` itself offers.
OPEN = tuple(
    f"hydrax.{name}"
    for name in (
        "best_scores",
        "errors",
        "event_files",
        "figures",
        "folder_lock",
        "remote_logger",
        "spread",
        "summaries",
    )
)

IO_MODULES = {"fcntl", "glob", "io", "mmap", "os", "pathlib", "pickle", "shutil", "socket", "subprocess", "tempfile"}
IO_CALLS = {"input", "open", "print"}
MAX_LINES = 400
MAX_FUNCTION_LINES = 70


class Import(NamedTuple):
    """One import statement; a target is absolute and ends in the name taken, as `hydrax.slices.Slices`."""

    line: int
    targets: list[str]
    lazy: bool  # inside a function
    for_types: bool  # under `if TYPE_CHECKING:`


def imports(tree: ast.Module) -> Iterator[Import]:
    nodes = list(ast.walk(tree))
    lazy = inside(node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    for_types = inside(node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    for node in nodes:
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        yield Import(node.lineno, targets, node in lazy, node in for_types)


def inside(nodes: Iterable[ast.AST]) -> set[ast.AST]:
    return {inner for node in nodes for inner in ast.walk(node)}


def unit_of(file: str) -> str:
    """The place of a core file in LAYERS: hydrax/slices.py -> slices, hydrax/nn/nonlinear.py -> nn."""
    return Path(file).with_suffix("").parts[1]


def is_ours(target: str) -> bool:
    """Whether an import stays in this repository, be it written as it should be or not."""
    return target.split(".")[0] in {"hydrax", "", *PLUG_INS}


def core_complaints(file: str, tree: ast.Module) -> list[str]:
    """A core file imports `hydrax.<file above it>`; all of nn/ is one line. Plug-ins: see plug_in_imports."""
    unit = unit_of(file)
    above = [*ORDER[: ORDER.index(unit)], *PLUG_INS, *({"nn"} & {unit})]
    allowed = {f"hydrax.{name}" for name in above}
    return [
        f"{file}:{found.line} imports {target}, which is none of the files above {unit}"
        for found in imports(tree)
        for target in found.targets
        if is_ours(target) and ".".join(target.split(".")[:2]) not in allowed
        if not (found.lazy and (file, target) in LATE or found.for_types and (file, target) in FOR_TYPES)
    ]


def plug_in_imports(file: str, tree: ast.Module) -> list[tuple[str, bool]]:
    """(file, lazy) of each import of a plug-in."""
    prefixes = tuple(f"hydrax.{plug_in}" for plug_in in PLUG_INS)
    return [(file, found.lazy) for found in imports(tree) if any(t.startswith(prefixes) for t in found.targets)]


def purity_complaints(file: str, tree: ast.Module) -> list[str]:
    """Layers 0 to 3 import no module for I/O (but to name a type), call nothing that does I/O, hold no global state."""
    complaints = [
        f"{file}:{found.line} imports {target}: I/O belongs in layer 4"
        for found in imports(tree)
        for target in found.targets
        if target.split(".")[0] in IO_MODULES and not found.for_types
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IO_CALLS:
            complaints.append(f"{file}:{node.lineno} calls {node.func.id}(): I/O belongs in layer 4")
        elif isinstance(node, ast.Global):
            complaints.append(f"{file}:{node.lineno} changes global {', '.join(node.names)}")
    return complaints


def plug_in_complaints(file: str, tree: ast.Module) -> list[str]:
    """A plug-in uses public names of hydrax and of OPEN; its folder's __init__.py gathers the folder."""
    public = {f"hydrax.{name}" for name in hydrax.__all__} | {"hydrax", *OPEN}
    folder, name = Path(file).parts
    gathered = (f"hydrax.{folder}.",) if name == "__init__.py" else ()
    complaints = [
        f"{file}:{found.line} imports {target}, which hydrax does not offer to plug-ins"
        for found in imports(tree)
        for target in found.targets
        if is_ours(target)
        and target not in public
        and not target.startswith((*(f"{file}." for file in OPEN), *gathered))
    ]
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "hydrax"
    }
    complaints += [
        f"{file}:{node.lineno} uses hydrax.{node.attr}, which hydrax does not offer to plug-ins"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
        if f"hydrax.{node.attr}" not in public
    ]
    return complaints


def length_complaints(file: str, tree: ast.Module, num_lines: int) -> list[str]:
    complaints = [f"{file} has {num_lines} lines, expected at most {MAX_LINES}"] if num_lines > MAX_LINES else []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length >= MAX_FUNCTION_LINES:
                complaints.append(
                    f"{file}:{node.lineno} {node.name} has {length} lines, expected < {MAX_FUNCTION_LINES}"
                )
    return complaints


def files(folder: str) -> list[str]:
    # One level only: hydrax/callbacks and hydrax/datamodules are symlinks to folders walked by themselves.
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.py"))


def parse(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), file)


CORE = files("hydrax") + files("hydrax/nn")
PLACED = [file for file in CORE if unit_of(file) in ORDER]
PLUG_IN_FILES = [file for folder in PLUG_INS for file in files(folder)]


def test_every_core_file_has_its_place_in_the_layers():
    unplaced = set(CORE) - set(PLACED) - {"hydrax/__init__.py"}
    assert not unplaced, f"{sorted(unplaced)}: give each its place in LAYERS, and say why in CHANGELOG.md"


@pytest.mark.parametrize("folder", PLUG_INS)
def test_a_plug_in_folder_is_flat(folder):
    assert [path.name for path in (ROOT / folder).iterdir() if path.is_dir() and path.name != "__pycache__"] == []


@pytest.mark.parametrize("file", PLACED)
def test_a_core_file_imports_only_from_files_above_its_own(file):
    assert core_complaints(file, parse(file)) == []


@pytest.mark.parametrize("file", [file for file in PLACED if unit_of(file) in PURE])
def test_layers_0_to_3_do_no_io_and_hold_no_global_state(file):
    assert purity_complaints(file, parse(file)) == []


def test_core_reaches_the_plug_ins_by_one_lazy_import_in_the_trainer_and_one_for_the_classes_a_config_names():
    found = [found for file in CORE for found in plug_in_imports(file, parse(file))]
    assert found == [("hydrax/run_commands.py", True), ("hydrax/trainer.py", True)]


@pytest.mark.parametrize("file", PLUG_IN_FILES)
def test_a_plug_in_uses_only_public_names_and_no_other_plug_in(file):
    assert plug_in_complaints(file, parse(file)) == []


@pytest.mark.parametrize("file", CORE + PLUG_IN_FILES)
def test_no_file_and_no_function_is_too_long(file):
    assert length_complaints(file, parse(file), (ROOT / file).read_text().count("\n")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from hydrax.trainer import Trainer",
        "from hydrax import trainer",
        "import hydrax.trainer",
        "import hydrax",
        "from hydrax import Trainer",
        "from . import errors",
        "from .errors import HydraxError",
        "from callbacks import EarlyStopping",
        "def f():\n    from hydrax.slices import Slices",
    ],
)
def test_an_import_that_does_not_go_up_is_complained_of(source):
    assert len(core_complaints("hydrax/slices.py", ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source", ["from hydrax.errors import SliceError", "from hydrax import rotation", "import jax"]
)
def test_an_import_that_goes_up_or_out_is_not_complained_of(source):
    assert core_complaints("hydrax/slices.py", ast.parse(source)) == []


@pytest.mark.parametrize(
    ("source", "complaints"),
    [
        ("def f():\n    from hydrax.heads import load_with", 0),
        ("from hydrax.heads import load_with", 1),
        ("if TYPE_CHECKING:\n    from hydrax.heads import Heads", 0),
        ("from hydrax.heads import Heads", 1),
    ],
)
def test_an_import_against_the_order_that_has_leave_is_complained_of_unless_it_is_late_or_for_types(source, complaints):
    assert len(core_complaints("hydrax/module.py", ast.parse(source))) == complaints


@pytest.mark.parametrize(
    "source", ["import os", "from pathlib import Path", "print(1)", "def f():\n    open('x')", "def f():\n    global x"]
)
def test_io_and_global_state_are_complained_of(source):
    assert len(purity_complaints("hydrax/step.py", ast.parse(source))) == 1


def test_a_path_that_only_names_a_type_is_not_complained_of():
    assert purity_complaints("hydrax/step.py", ast.parse("if TYPE_CHECKING:\n    from pathlib import Path")) == []


@pytest.mark.parametrize(
    ("source", "lazy"),
    [
        ("from hydrax.callbacks import EarlyStopping", False),
        ("from hydrax import datamodules", False),
        ("def f():\n    import hydrax.callbacks.timer", True),
    ],
)
def test_an_import_of_a_plug_in_is_found(source, lazy):
    assert plug_in_imports("hydrax/loop.py", ast.parse(source)) == [("hydrax/loop.py", lazy)]


@pytest.mark.parametrize(
    "source",
    [
        "from hydrax.trainer import Trainer",
        "from hydrax import not_public",
        "import hydrax as hx\nhx.not_public",
        "from hydrax.callbacks.timer import Timer",
        "from .timer import Timer",
        "from hydrax.datamodules import ArrayDataModule",
    ],
)
def test_a_plug_in_that_reaches_into_hydrax_or_another_plug_in_is_complained_of(source):
    assert len(plug_in_complaints("callbacks/early_stopping.py", ast.parse(source))) == 1


def test_a_long_file_and_a_long_function_are_complained_of():
    tree = ast.parse("def f():\n" + "    pass\n" * 69)
    assert len(length_complaints("hydrax/step.py", tree, 401)) == 2
