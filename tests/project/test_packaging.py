"""What a user installs: the wheel contains every package, and all its imports are declared."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
# The packages of the core; hydrax/callbacks and hydrax/datamodules are symlinks to the plug-ins.
FOLDERS = [path.parent.relative_to(ROOT / "hydrax") for path in sorted((ROOT / "hydrax").glob("*/**/__init__.py"))]
PACKAGES = [folder.as_posix() for folder in FOLDERS if folder.parts[0] not in ("callbacks", "datamodules")]
# The place of each folder of the repository in the wheel.
INSTALLED = {
    "hydrax": "hydrax",
    **{f"hydrax/{package}": f"hydrax/{package}" for package in PACKAGES},
    "callbacks": "hydrax/callbacks",
    "datamodules": "hydrax/datamodules",
}


# The declared name of an import that several distributions provide.
OTHER_NAMES = {"mlflow": "mlflow-skinny"}


def normal(requirement: str) -> str:
    """Returns the name of a requirement as package indexes compare it: `tensorboardX>=2.6.5` -> `tensorboardx`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", requirement)[0]).lower()


def third_party_imports(folder: str) -> set[str]:
    """Returns the distributions that the files of a folder import, at the top or inside functions."""
    nodes = [node for path in (ROOT / folder).glob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"hydrax"}
    owners = packages_distributions()
    return {OTHER_NAMES.get(root) or normal(owners.get(root, [root])[0]) for root in roots}


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a tree without the symlinks, because packaging must not depend on them."""
    tree = tmp_path_factory.mktemp("tree")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    for folder in ("hydrax", "callbacks", "datamodules"):
        shutil.copytree(
            ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "callbacks", "datamodules")
        )
    # The build takes setuptools from this environment (extra `dev`), so it needs no network.
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tree / "dist",
        tree,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (path,) = (tree / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> set[str]:
    """Names in the wheel."""
    return set(ZipFile(wheel_file).namelist())


@pytest.mark.parametrize(("folder", "installed"), INSTALLED.items())
def test_the_wheel_holds_every_file_of(wheel, folder, installed):
    sources = {path.name for path in (ROOT / folder).glob("*.py")}
    assert sources == {
        name.removeprefix(f"{installed}/") for name in wheel if re.fullmatch(rf"{installed}/\w+\.py", name)
    }


def test_the_wheel_says_that_hydrax_is_typed(wheel):
    assert "hydrax/py.typed" in wheel


@pytest.mark.slow  # mypy reads JAX's types anew; `make lint` checks the same program against the source
def test_a_users_program_passes_strict_mypy_with_what_the_wheel_installs(wheel_file, tmp_path):
    ZipFile(wheel_file).extractall(tmp_path / "installed")
    program = shutil.copy(ROOT / "tests" / "typed_program.py", tmp_path)
    # What lies on Python's own path counts as installed: mypy believes its types for py.typed alone.
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", tmp_path / "cache"]
    command += ["--disable-error-code=import-untyped", program]  # optax ships no types
    found = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert "Success: no issues found in 1 source file" in found.stdout, found.stdout


def test_the_wheel_puts_nothing_but_hydrax_into_site_packages(wheel):
    assert {name.split("/")[0] for name in wheel} == {"hydrax", f"hydrax_heads-{PROJECT['version']}.dist-info"}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("hydrax", []),
        *((f"hydrax/{package}", []) for package in PACKAGES if package not in ("results", "loggers", "cli")),
        ("hydrax/results", ["export", "tables"]),
        ("hydrax/loggers", ["plots"]),
        ("hydrax/cli", ["cli"]),
        ("datamodules", ["tables"]),
        ("callbacks", ["wandb", "mlflow"]),
    ],
)
def test_every_import_is_a_declared_dependency_or_of_an_extra_of_its_folder(folder, extras):
    declared = PROJECT["dependencies"] + [one for extra in extras for one in PROJECT["optional-dependencies"][extra]]
    assert third_party_imports(folder) <= {normal(requirement) for requirement in declared}


def test_constraints_hold_only_names_versions_and_python_markers():
    form = re.compile(r'[\w.-]+==[\w.]+( ; python_version (<|>=) "3\.\d+")?')
    assert [line for line in CONSTRAINTS if not form.fullmatch(line)] == []


@pytest.mark.parametrize("extra", ["dependencies", *PROJECT["optional-dependencies"]])
def test_constraints_pin_every_declared_dependency_of(extra):
    declared = {"dependencies": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}[extra]
    pinned = {normal(line) for line in CONSTRAINTS} | {normal(PROJECT["name"])}
    assert {normal(requirement) for requirement in declared} <= pinned
