"""Draws the picture of docs/design.md, which packages import which, from the import statements in `hydrax/`.

    .venv/bin/python docs/import_picture.py [FILE]

Uses the standard library only. tests/project/test_pictures.py fails if the committed picture is out of date.
"""

import ast
import sys
from pathlib import Path

CORE = Path(__file__).parents[1] / "hydrax"
PICTURE = Path(__file__).parent / "images" / "design-imports.svg"
PLUG_INS = {"callbacks", "datamodules"}  # outside the core: they use public names of `hydrax` only
BOX_WIDTH, BOX_HEIGHT, COLUMN_WIDTH, ROW_HEIGHT, MARGIN = 92, 34, 122, 58, 16


def packages() -> dict[str, list[Path]]:
    """The files of each package; not the single files at the top, such as `errors.py`, which all may use."""
    folders = [face.parent for face in sorted(CORE.glob("*/__init__.py")) if face.parent.name not in PLUG_INS]
    return {folder.name: sorted(folder.rglob("*.py")) for folder in folders}


def imports() -> dict[str, set[str]]:
    """For each package the other packages that it imports, late and type-only imports included."""
    found = packages()
    named_by = {name: {there for path in paths for there in named(path)} for name, paths in found.items()}
    return {name: named_by[name] & found.keys() - {name} for name in found}


def named(path: Path) -> set[str]:
    """The names below `hydrax` that a file imports: `from hydrax.slices import Slices` gives slices."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    targets = [f"{node.module}.{alias.name}" for node in nodes for alias in node.names]
    return {target.split(".")[1] for target in targets if target.startswith("hydrax.")}


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """The column of each package: one to the right of the packages that it imports."""
    found: dict[str, int] = {}
    while len(found) < len(graph):  # ends, as tests/promises/test_layering.py allows no circle
        ready = {name: there for name, there in graph.items() if name not in found and there <= found.keys()}
        found |= {name: max((found[one] + 1 for one in there), default=0) for name, there in ready.items()}
    return found


def reached(graph: dict[str, set[str]], name: str) -> set[str]:
    """Everything that a package imports, directly or through others."""
    return graph[name].union(*(reached(graph, there) for there in graph[name]))


def direct(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that no chain of other imports implies: few enough to be drawn as lines."""
    return [
        (name, there)
        for name, all_there in graph.items()
        for there in sorted(all_there)
        if not any(there in reached(graph, other) for other in all_there)
    ]


def draw() -> str:
    """The picture as SVG, the same text on each machine."""
    graph = imports()
    columns: dict[int, list[str]] = {}
    for name, level in sorted(levels(graph).items()):
        columns.setdefault(level, []).append(name)
    tallest = max(map(len, columns.values()))
    width = 2 * MARGIN + COLUMN_WIDTH * (len(columns) - 1) + BOX_WIDTH
    height = 2 * MARGIN + ROW_HEIGHT * (tallest - 1) + BOX_HEIGHT
    corners = {
        name: (MARGIN + COLUMN_WIDTH * level, MARGIN + ROW_HEIGHT * (2 * at + tallest - len(names)) // 2)
        for level, names in columns.items()
        for at, name in enumerate(names)
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#556"/></marker>',
    ]
    for name, there in direct(graph):
        (right, y), (left, end_y) = corners[name], corners[there]
        x, y, end_x, end_y = right, y + BOX_HEIGHT // 2, left + BOX_WIDTH, end_y + BOX_HEIGHT // 2
        bend = (x - end_x) // 2
        curve = f"M{x} {y}C{x - bend} {y} {end_x + bend} {end_y} {end_x} {end_y}"
        lines.append(f'<path d="{curve}" fill="none" stroke="#556" marker-end="url(#head)"/>')
    for name, (x, y) in corners.items():
        size = f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}"'
        text = f'x="{x + BOX_WIDTH // 2}" text-anchor="middle"'
        whole = ", ".join(sorted(graph[name])) or "nothing"
        lines += [
            f"<g><title>{name} imports {whole}</title>",
            f'<rect x="{x}" y="{y}" {size} rx="5" fill="#e4ecf7" stroke="#556"/>',
            f'<text {text} y="{y + 21}" font-size="13">{name}</text></g>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE).write_text(draw())
