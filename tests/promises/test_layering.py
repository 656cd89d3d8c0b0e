"""Promise 7, layering: packages import in one order, through their faces and without a cycle, and stay readable.

The rules read the source and run none of it. Each is a function that takes a file or a folder and returns complaints,
so the last tests can show that each rule does complain.
"""

import ast
import graphlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import hydrax

ROOT = Path(__file__).parents[2]

# A package imports only from those before it; docs/design.md draws the same order.
ORDER = (
    *("errors", "lightning", "arguments", "jaxlib_guard", "loss", "nn", "trees", "files", "notebook"),
    *("slices", "step", "checkpoint", "engine", "data", "results", "loop", "train", "loggers", "cli"),
)
# No I/O and no global state: what these compute follows from their arguments alone.
PURE = {"errors", "lightning", "arguments", "loss", "nn", "trees", "notebook", "slices", "step"}
PLUG_INS = ("callbacks", "datamodules")
# The only imports of plug-ins, all of them late: the Trainer's default callbacks, and the classes that a config names.
REACHES_PLUG_INS = {"hydrax/__init__.py", "hydrax/train/trainer.py", "hydrax/cli/commands.py"}
# Faces that plug-ins may use besides `hydrax` itself, and what of each.
OPEN = {
    "hydrax.errors": None,
    "hydrax.arguments": None,
    "hydrax.lightning": None,
    "hydrax.files": None,
    "hydrax.loggers": None,
    "hydrax.trees": {"named_leaves"},
    "hydrax.checkpoint": {"check_root", "locked", "make_way"},
    "hydrax.results": {"BestScores", "column_of"},
    "hydrax.data": {"frame_columns", "is_frame"},
}

IO_MODULES = {"fcntl", "glob", "io", "mmap", "os", "pathlib", "pickle", "shutil", "socket", "subprocess", "tempfile"}
IO_CALLS = {"input", "open", "print"}
MAX_ENTRIES = 24  # at the top of hydrax/
MAX_FILES = 20  # in a folder
MAX_LINES = 700
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


def is_ours(target: str) -> bool:
    """Whether an import stays in this repository, whether or not it is written as it should be."""
    return target.split(".")[0] in {"hydrax", "", *PLUG_INS}


def package_of(file: str) -> str:
    """hydrax/slices/law.py -> slices, hydrax/trees.py -> trees."""
    return Path(file).with_suffix("").parts[1]


def order_complaints(file: str, tree: ast.Module) -> list[str]:
    """A core file imports from its own package or an earlier one, absolutely; plug-ins: see REACHES_PLUG_INS."""
    allowed = {*ORDER[: ORDER.index(package_of(file)) + 1], *PLUG_INS}
    return [
        f"{file}:{found.line} imports {target}, which does not come before {package_of(file)}"
        for found in imports(tree)
        for target in found.targets
        if is_ours(target) and (*target.split("."), "")[1] not in allowed
    ]


def face_complaints(file: str, tree: ast.Module) -> list[str]:
    """Another package is used through its face, `from hydrax.slices import Slices`, and never by a private name."""
    complaints = []
    for found in imports(tree):
        for target in filter(is_ours, found.targets):
            words = target.split(".")[1:]
            foreign = bool(words) and words[0] not in (package_of(file), *PLUG_INS)
            if foreign and (
                len(words) > 2 or words[0] in FACES and len(words) == 2 and words[1] not in FACES[words[0]]
            ):
                complaints.append(f"{file}:{found.line} imports {target}, past the face of {words[0]}")
            if foreign and any(word.startswith("_") for word in words):
                complaints.append(f"{file}:{found.line} imports {target}, a private name")
    return complaints


def circle(folder: str) -> list[str]:
    """Files and sub-folders of a package that import each other in a circle; type-only and late imports count.

    A name that no file of the package has is taken from its face, and the face imports the files.
    """
    dotted = folder.replace("/", ".") + "."
    parts = {path.stem for path in (ROOT / folder).iterdir()}
    graph: dict[str, set[str]] = {}
    for file in files(folder):
        here = file.removeprefix(f"{folder}/").split("/")[0].removesuffix(".py")
        targets = [f"{target}." for found in imports(parse(file)) for target in found.targets]
        names = {target.removeprefix(dotted).split(".")[0] for target in targets if target.startswith(dotted)}
        there = {name if name in parts else "__init__" for name in names}
        graph.setdefault(here, set()).update(there - {here})
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def listing_complaints(folder: str) -> list[str]:
    """The docstring of a face lists each file and sub-folder of its package once, and nothing else."""
    face = ast.get_docstring(parse(f"{folder}/__init__.py"), clean=False) or ""
    listed = re.findall(r"^  (\w+)(?:\.py|/)  ", face, re.MULTILINE)
    paths = [path for path in (ROOT / folder).iterdir() if path.is_dir() or path.suffix == ".py"]
    there = [path.stem for path in paths if path.stem not in ("__init__", "__pycache__")]
    return [
        f"{folder} lists {name} {listed.count(name)} times and has {there.count(name)} of that name"
        for name in sorted({*listed, *there})
        if listed.count(name) != there.count(name)
    ]


def crowd_complaints(folder: str, pattern: str, most: int) -> list[str]:
    found = [path.name for path in (ROOT / folder).glob(pattern) if path.name != "__pycache__"]
    return [f"{folder} holds {len(found)} of {pattern}, expected at most {most}"] if len(found) > most else []


def plug_in_imports(file: str, tree: ast.Module) -> list[tuple[str, bool]]:
    """(file, lazy) of each import of a plug-in."""
    prefixes = tuple(f"hydrax.{plug_in}" for plug_in in PLUG_INS)
    return [(file, found.lazy) for found in imports(tree) if any(t.startswith(prefixes) for t in found.targets)]


def purity_complaints(file: str, tree: ast.Module) -> list[str]:
    """A pure file imports no module for I/O (except to name a type), does no I/O, and holds no global state."""
    complaints = [
        f"{file}:{found.line} imports {target}: {package_of(file)} does no I/O"
        for found in imports(tree)
        for target in found.targets
        if target.split(".")[0] in IO_MODULES and not found.for_types
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IO_CALLS:
            complaints.append(f"{file}:{node.lineno} calls {node.func.id}(): {package_of(file)} does no I/O")
        elif isinstance(node, ast.Global):
            complaints.append(f"{file}:{node.lineno} changes global {', '.join(node.names)}")
    return complaints


def is_open(target: str) -> bool:
    """Whether plug-ins may import a name."""
    face, _, name = target.rpartition(".")
    names = OPEN.get(face, set())
    return target in OPEN or names is None or name in names


def plug_in_complaints(file: str, tree: ast.Module) -> list[str]:
    """A plug-in uses public names of hydrax and of OPEN; its folder's __init__.py gathers the folder."""
    public = {f"hydrax.{name}" for name in hydrax.__all__} | {"hydrax"}
    folder, name = Path(file).parts
    gathered = (f"hydrax.{folder}.",) if name == "__init__.py" else ()
    complaints = [
        f"{file}:{found.line} imports {target}, which hydrax does not offer to plug-ins"
        for found in imports(tree)
        for target in found.targets
        if is_ours(target) and target not in public and not is_open(target) and not target.startswith(gathered)
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
    """All Python files below a folder; not those behind hydrax/callbacks and hydrax/datamodules, which are symlinks."""
    found = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.as_posix() for path in found if path.parts[:2] not in {("hydrax", name) for name in PLUG_INS})


def parse(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), file)


def offered(face: Path) -> set[str]:
    """What a package offers to others: the names that its face imports."""
    tree = ast.parse(face.read_text())
    return {target.rpartition(".")[2] for found in imports(tree) for target in found.targets}


CORE = files("hydrax")
INNER = [file for file in CORE if file != "hydrax/__init__.py"]
PLUG_IN_FILES = [file for folder in PLUG_INS for file in files(folder)]
FOLDERS = sorted({str(Path(file).parent) for file in CORE + PLUG_IN_FILES})
PACKAGES = [folder for folder in FOLDERS if folder.startswith("hydrax/")]
FACES = {
    path.parent.name: offered(path) for path in (ROOT / "hydrax").glob("*/__init__.py") if path.parent.name in ORDER
}


def test_every_file_and_package_of_the_core_has_its_place_in_the_order():
    assert {package_of(file) for file in INNER} == set(ORDER)


def test_the_top_of_the_core_holds_few_entries():
    assert crowd_complaints("hydrax", "*", MAX_ENTRIES) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_holds_few_files(folder):
    assert crowd_complaints(folder, "*.py", MAX_FILES) == []


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_face_lists_the_files_of_its_folder(folder):
    assert listing_complaints(folder) == []


@pytest.mark.parametrize("folder", PACKAGES)
def test_no_files_of_a_package_import_each_other_in_a_circle(folder):
    assert circle(folder) == []


@pytest.mark.parametrize("file", INNER)
def test_a_core_file_imports_only_from_its_own_package_and_earlier_ones(file):
    assert order_complaints(file, parse(file)) == []


@pytest.mark.parametrize("file", INNER)
def test_a_core_file_uses_other_packages_through_their_faces(file):
    assert face_complaints(file, parse(file)) == []


@pytest.mark.parametrize("file", [file for file in INNER if package_of(file) in PURE])
def test_pure_packages_do_no_io_and_hold_no_global_state(file):
    assert purity_complaints(file, parse(file)) == []


def test_the_core_reaches_the_plug_ins_late_and_from_three_files():
    found = {found for file in CORE for found in plug_in_imports(file, parse(file))}
    assert found <= {(file, True) for file in REACHES_PLUG_INS}


@pytest.mark.parametrize("file", PLUG_IN_FILES)
def test_a_plug_in_uses_only_public_names_and_no_other_plug_in(file):
    assert plug_in_complaints(file, parse(file)) == []


@pytest.mark.parametrize("folder", PLUG_INS)
def test_a_plug_in_folder_is_flat(folder):
    assert [path.name for path in (ROOT / folder).iterdir() if path.is_dir() and path.name != "__pycache__"] == []


@pytest.mark.parametrize("file", CORE + PLUG_IN_FILES)
def test_no_file_and_no_function_is_too_long(file):
    assert length_complaints(file, parse(file), (ROOT / file).read_text().count("\n")) == []


def test_the_tests_mirror_the_packages():
    mirrored = {name for name in ORDER if (ROOT / "hydrax" / name).is_dir()} | {*PLUG_INS, "promises"}
    assert mirrored <= {path.name for path in (ROOT / "tests").iterdir() if list(path.glob("test_*.py"))}


def test_dir_shows_the_public_names_only():
    assert set(dir(hydrax)) == {*hydrax.__all__, *PLUG_INS, "nn", "__version__"}


@pytest.mark.parametrize(
    "source",
    [
        "from hydrax.train import Trainer",
        "from hydrax import train",
        "import hydrax.train",
        "import hydrax",
        "from hydrax import Trainer",
        "from . import law",
        "from .law import RowLaw",
        "from callbacks import EarlyStopping",
        "def f():\n    from hydrax.step import Context",
        "if TYPE_CHECKING:\n    from hydrax.step import Context",
    ],
)
def test_an_import_against_the_order_is_complained_of(source):
    assert len(order_complaints("hydrax/slices/law.py", ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source", ["from hydrax.errors import SliceError", "from hydrax.slices.permutation import mix", "import jax"]
)
def test_an_import_in_the_order_is_not_complained_of(source):
    assert order_complaints("hydrax/slices/law.py", ast.parse(source)) == []


@pytest.mark.parametrize(
    ("source", "complaints"),
    [
        ("from hydrax.slices import Slices", 0),
        ("from hydrax.slices.law import RowLaw", 1),
        ("from hydrax.slices import not_offered", 1),
        ("from hydrax.trees import _hidden", 1),
        ("from hydrax.step.model import split", 0),
    ],
)
def test_an_import_past_a_face_is_complained_of(source, complaints):
    assert len(face_complaints("hydrax/step/model.py", ast.parse(source))) == complaints


@pytest.mark.parametrize(
    "source", ["import os", "from pathlib import Path", "print(1)", "def f():\n    open('x')", "def f():\n    global x"]
)
def test_io_and_global_state_are_complained_of(source):
    assert len(purity_complaints("hydrax/step/model.py", ast.parse(source))) == 1


def test_a_path_that_only_names_a_type_is_not_complained_of():
    assert purity_complaints("hydrax/step/model.py", ast.parse("if TYPE_CHECKING:\n    from pathlib import Path")) == []


@pytest.mark.parametrize(
    ("source", "lazy"),
    [
        ("from hydrax.callbacks import EarlyStopping", False),
        ("from hydrax import datamodules", False),
        ("def f():\n    import hydrax.callbacks.timer", True),
    ],
)
def test_an_import_of_a_plug_in_is_found(source, lazy):
    assert plug_in_imports("hydrax/loop/loop.py", ast.parse(source)) == [("hydrax/loop/loop.py", lazy)]


@pytest.mark.parametrize(
    "source",
    [
        "from hydrax.train import Settings",
        "from hydrax.checkpoint import load",
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
    assert len(length_complaints("hydrax/step/model.py", tree, 701)) == 2


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes the package hydrax/parts in a root of its own, from the source of each file."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)

    def make(sources: dict[str, str]) -> str:
        for name, source in sources.items():
            file = tmp_path / "hydrax" / "parts" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        return "hydrax/parts"

    return make


FACE = "from hydrax.parts.wheel import Wheel"


@pytest.mark.parametrize(
    ("sources", "members"),
    [
        ({"wheel.py": "from hydrax.parts import axle", "axle.py": ""}, set()),
        ({"wheel.py": "from hydrax.parts.axle import Axle", "axle.py": "import hydrax.parts.wheel"}, {"wheel", "axle"}),
        ({"wheel.py": "def f():\n    from hydrax.parts import tyre", "tyre.py": FACE}, {"wheel", "tyre"}),
        ({"wheel.py": "if TYPE_CHECKING:\n    from hydrax.parts.tyre import Tyre", "tyre.py": FACE}, {"wheel", "tyre"}),
        ({"wheel.py": "import hydrax.parts.tyre.rim", "tyre/rim.py": FACE}, {"wheel", "tyre"}),
        ({"__init__.py": FACE, "wheel.py": "from hydrax.parts import Wheel"}, {"__init__", "wheel"}),
    ],
)
def test_a_circle_in_a_package_is_complained_of(package, sources, members):
    assert set(circle(package(sources))) == members


@pytest.mark.parametrize(
    ("lines", "complaints"),
    [
        (["wheel.py  round", "tyre/  soft"], 0),
        (["wheel.py  round"], 1),
        (["wheel.py  round", "tyre/  soft", "axle.py  straight"], 1),
        (["wheel.py  round", "tyre/  soft", "wheel.py  round"], 1),
    ],
)
def test_a_face_that_lists_other_files_than_its_folder_holds_is_complained_of(package, lines, complaints):
    face = "\n".join(['"""Parts.', "", *(f"  {line}" for line in lines), '"""'])
    folder = package({"__init__.py": face, "wheel.py": "", "tyre/__init__.py": ""})
    assert len(listing_complaints(folder)) == complaints


@pytest.mark.parametrize(("most", "complaints"), [(2, 0), (1, 1)])
def test_a_folder_of_more_files_than_allowed_is_complained_of(package, most, complaints):
    folder = package({"wheel.py": "", "axle.py": "", "__pycache__/wheel.pyc": "", "drawing.svg": ""})
    assert len(crowd_complaints(folder, "*.py", most)) == complaints
    assert len(crowd_complaints(folder, "*", most + 1)) == complaints
