"""The rooms of the house, and which looks into which: drawn from the imports themselves.

    python tools/rooms.py                       count them, and draw docs/images/rooms.svg
    python tools/rooms.py OTHER/course_utils    count those of another checkout; draw nothing

A room is a module of course_utils, or one of its folders. An arrow goes from a room to each room that it imports,
wherever the import stands, also inside a function. A floor is one above the highest floor that its rooms import. Where
rooms import each other in a circle there are no floors. The picture leaves out the arrows that others imply.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
PACKAGE = "course_utils"
WIDTH, BOX, GAP, FLOOR = 1060, (118, 30), 12, 78     # of the picture, a box (width, height), between boxes and floors
Graph = dict[str, set[str]]


def imports(package: Path) -> Graph:
    """{module: the modules of the package that it imports}, both as dotted names below the package."""
    files = {_name(path.relative_to(package)): path for path in sorted(package.rglob("*.py"))}
    return {name: _imported(path, files) - {name} for name, path in files.items()}


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _imported(path: Path, known: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        package, _, below = (node.module or "").partition(".")
        if package == PACKAGE:
            for each in node.names:
                module = f"{below}.{each.name}".lstrip(".")
                found.add(module if module in known else below or "__init__")
    return found


def rooms(modules: Graph) -> Graph:
    """The same between rooms: a folder is one room."""
    arrows: Graph = defaultdict(set)
    for module, others in modules.items():
        room = module.partition(".")[0]
        arrows[room] |= {other.partition(".")[0] for other in others} - {room}
    return dict(arrows)


def circles(graph: Graph) -> list[set[str]]:
    """The largest sets within which each can be reached from each (more than one in a set)."""
    reach = {start: _reached(graph, start) for start in graph}
    found = {frozenset({b for b in reach[a] if a in reach[b]}) for a in graph if a in reach[a]}
    return [set(circle) for circle in sorted(found, key=sorted)]


def _reached(graph: Graph, start: str) -> set[str]:
    seen, left = set(), list(graph[start])
    while left:
        if (here := left.pop()) not in seen:
            seen.add(here)
            left += graph.get(here, ())
    return seen


def floors(graph: Graph) -> list[list[str]]:
    """Rooms by floor, the lowest first. Raises ValueError if there is a circle."""
    if found := circles(graph):
        raise ValueError(f"no floors: {', '.join(sorted(found[0]))} import each other in a circle")
    height: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in height:
            height[room] = 1 + max((of(other) for other in graph[room]), default=-1)
        return height[room]

    levels = max(map(of, graph)) + 1
    return [sorted(room for room in graph if height[room] == level) for level in range(levels)]


def needed(graph: Graph) -> Graph:
    """The arrows that no longer way implies."""
    return {room: {other for other in others if not any(other in _reached(graph, via) for via in others - {other})}
            for room, others in graph.items()}


def picture(graph: Graph, folders: set[str]) -> str:
    """An SVG: floors from bottom to top, folders with a bold frame."""
    levels, place = floors(graph), {}
    height = FLOOR * len(levels) + GAP
    for level, names in enumerate(levels):
        left = (WIDTH - len(names) * (BOX[0] + GAP) + GAP) / 2
        for number, name in enumerate(names):
            place[name] = left + number * (BOX[0] + GAP), height - FLOOR * (level + 1)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
             'font-size="12">', "<title>The rooms of course_utils, floor by floor, and what each imports</title>",
             f'<rect width="{WIDTH}" height="{height}" fill="white"/>']
    for room, others in sorted(needed(graph).items()):
        for other in sorted(others):
            (x, y), (x2, y2) = place[room], place[other]
            middle = BOX[0] / 2
            lines.append(f'<path d="M{x + middle:.0f} {y + BOX[1]} C{x + middle:.0f} {y + BOX[1] + 30} '
                         f'{x2 + middle:.0f} {y2 - 30} {x2 + middle:.0f} {y2}" fill="none" stroke="#888"/>')
    for name, (x, y) in sorted(place.items()):
        stroke, text = (2.5, f"{name}/") if name in folders else (1, name)
        lines += [f'<rect x="{x:.0f}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="4" fill="#f4f8fb" '
                  f'stroke="#0072B2" stroke-width="{stroke}"/>',
                  f'<text x="{x + BOX[0] / 2:.0f}" y="{y + 19}" text-anchor="middle">{text}</text>']
    return "\n".join([*lines, "</svg>", ""])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, help="the package's folder in another checkout")
    package = parser.parse_args(argv).package or ROOT / PACKAGE
    if not (package / "__init__.py").is_file():
        print(f"error: {package} is not a package", file=sys.stderr)
        return 1
    modules = imports(package)
    graph, found = rooms(modules), circles(modules)
    print(f"{len(graph)} rooms, {sum(map(len, graph.values()))} arrows between them, {len(modules)} modules, "
          f"{sum(map(len, modules.values()))} arrows, circles: {len(found)} of modules, {len(circles(graph))} of rooms")
    for circle in [*found, *circles(graph)]:
        print(f"  a circle: {', '.join(sorted(circle))}")
    if package == ROOT / PACKAGE:
        folders = {path.parent.name for path in package.glob("*/__init__.py")}
        PICTURE.write_text(picture(graph, folders), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
